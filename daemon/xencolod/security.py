"""Who may talk on the link: TLS both ways by the key file, or, where it is asked for, nothing."""

import os
import ssl
from datetime import UTC, datetime
from typing import NamedTuple

import trio

from xencolo.errors import KeysError, LinkUntrusted
from xencolod.config import Link as LinkConfig
from xencolod.keys import HOSTNAME, Keys, load


class Security(NamedTuple):
    """How connections are protected: by TLS both ways, or, all None, not at all."""

    server: ssl.SSLContext | None
    client: ssl.SSLContext | None
    keys: Keys | None


def security_of(link: LinkConfig) -> Security:
    """Return what the configuration says; reads the key file.

    :raises KeysError: there are no keys to be used; the message has the remedy.
    """
    if link.unencrypted_and_unauthenticated:
        return Security(None, None, None)
    keys = load(link.keys)
    if keys.expires <= datetime.now(UTC):
        raise KeysError(
            keys.path,
            f"its certificate ended on {keys.expires:%Y-%m-%d}; move it away, make another with "
            "`xencolo keys` and copy it to each host",
        )
    return secured_by(keys)


def secured_by(keys: Keys) -> Security:
    """Return TLS by these keys.

    :raises KeysError: OpenSSL can't use them.
    """
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, keys)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, keys)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise KeysError(keys.path, f"OpenSSL can't use it: {error}") from error
    # A resumed session would do without the certificates.
    server.num_tickets = 0
    return Security(server, client, keys)


def _context(protocol: int, keys: Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    # Both ends are xencolo: there is nothing older to be polite to.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=keys.authority.decode("ascii"))
    # The ssl module takes its own key from a file only; the keys' file may have changed since.
    descriptor = os.memfd_create("keys", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, keys.private_key + keys.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


_TLS_WORDS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS; link.unencrypted_and_unauthenticated has to be "
    "the same on both hosts",
    "HTTP_REQUEST": "it speaks HTTP",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS 1.3",
}


def _tls_fault(error: trio.BrokenResourceError) -> str:
    """What went wrong in a handshake."""
    match error.__cause__:
        case ssl.SSLCertVerificationError(verify_message=reason):
            return f"its certificate is not ours: {reason}; all hosts need the same key file"
        case ssl.SSLEOFError() | None:
            return "it closed the connection; its log says why, if it is an xencolod"
        case ssl.SSLError(reason=str(reason)):
            return _TLS_WORDS.get(reason, reason.replace("_", " ").lower())
        case cause:
            return str(cause)


async def secure(
    plain: trio.SocketStream, context: ssl.SSLContext | None, *, server: bool
) -> trio.abc.Stream:
    """Return the stream with TLS on it, the handshake done and the other end's name looked at.

    :param context: None leaves the stream as it is.
    :raises LinkUntrusted: it failed. The stream is closed then, and when it is cancelled.
    """
    if context is None:
        return plain
    stream = trio.SSLStream(
        plain, context, server_hostname=None if server else HOSTNAME, server_side=server
    )
    try:
        await stream.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            raise LinkUntrusted(_tls_fault(error)) from error
        raise
    # OpenSSL compares the name for clients; an authority of the operator's own may have signed
    # other certificates too.
    names = stream.getpeercert().get("subjectAltName", ())
    if ("DNS", HOSTNAME) not in names:
        await trio.aclose_forcefully(stream)
        raise LinkUntrusted(f"its certificate is not for {HOSTNAME} but for {names}")
    return stream
