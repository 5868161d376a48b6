"""A daemon's end of the link over real loopback TCP, and keys of every wrong kind to try on it."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import LogCapture

from xencolo.link import Done, Hello, Reply, Request, Welcome, encode
from xencolod import keys
from xencolod.link import Link, open_link
from xencolod.listener import Answer, Peer, serve_link
from xencolod.nurseries import background
from xencolod.security import Security, secured_by

UUID = "0c6f2c8e-52a4-4f0d-9b1d-7f6c0d2b5a11"
SESSION = "00ff" * 4
HELLO = Hello(uuid=UUID, name="web", generation=1)
WELCOME = Welcome(generation=1, state="listening", host="127.0.0.1", port=9000, encrypted=True)
PLAIN = Security(None, None, None)
#: Seconds; for tests on the real clock, where only a fault comes near it.
TIMEOUT = 20.0


async def welcome(request: Request, _: Peer) -> Reply:
    """Welcome every hello and do the rest at once."""
    return WELCOME if isinstance(request, Hello) else Done()


# -- keys ---------------------------------------------------------------------------------------

PEM = serialization.Encoding.PEM
LONG_AGO = datetime.now(UTC) - 2 * keys.VALID


class Authority:
    """An authority that, unlike that of a real key file, can sign more than once."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = keys._authority(self.key, datetime.now(UTC))

    def keys(self, *, name: str = keys.HOSTNAME, made: datetime | None = None) -> keys.Keys:
        """Keys of this authority, for another name or of another time if told."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = keys._certificate(
            key, self.certificate, self.key, made or datetime.now(UTC), hostname=name
        )
        private = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return keys.Keys(
            "test keys",
            private,
            certificate.public_bytes(PEM),
            self.certificate.public_bytes(PEM),
            certificate.not_valid_after_utc,
        )


OURS = Authority()
THEIRS = Authority()
KEYS = OURS.keys()
SECURITY = secured_by(KEYS)


def believing(shown: keys.Keys | None, *, newest: ssl.TLSVersion | None = None) -> Security:
    """A client that believes our server, whatever it shows itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=KEYS.authority.decode())
    if newest:
        context.maximum_version = newest
    security = secured_by(shown) if shown else PLAIN
    if security.client:
        security.client.load_verify_locations(cadata=KEYS.authority.decode())
        if newest:
            security.client.minimum_version = newest
            security.client.maximum_version = newest
    return Security(None, security.client or context, None)


# -- the ends -----------------------------------------------------------------------------------


@dataclass
class Served:
    """A daemon's end that runs.

    :ivar gone: the peers that it said are gone.
    """

    port: int = 0
    log: list[Any] = field(default_factory=list)
    gone: list[Peer] = field(default_factory=list)
    security: Security = SECURITY
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What was logged under the name."""
        return [event for event in self.log if event["event"] == name]

    async def until_logged(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for an event and return the last."""
        while len(self.events(name)) < count:
            await trio.sleep(0.01)
        return self.events(name)[-1]

    @asynccontextmanager
    async def link(
        self, security: Security | None = None, timeout: float = TIMEOUT, interval: float = 2.0
    ) -> AsyncIterator[Link]:
        """Connect as another host's daemon does, with the server's own security by default."""
        async with open_link(
            "127.0.0.1",
            self.port,
            security or self.security,
            timeout=timeout,
            ping_interval=interval,
        ) as link:
            yield link

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[trio.abc.Stream]:
        """Connect with the right keys, to say wrong things."""
        plain = await trio.open_tcp_stream("127.0.0.1", self.port)
        stream: trio.abc.Stream = plain
        if self.security.client:
            stream = trio.SSLStream(plain, self.security.client, server_hostname=keys.HOSTNAME)
            await stream.do_handshake()
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async def is_well(self) -> bool:
        """Tell whether another daemon is served now."""
        async with self.link() as link:
            return await link.ask(HELLO) == WELCOME


@asynccontextmanager
async def served(
    answer: Answer = welcome,
    security: Security = SECURITY,
    timeout: float = TIMEOUT,
    port: int = 0,
    address: str = "127.0.0.1",
) -> AsyncIterator[Served]:
    """Run a daemon's end, on a free port unless told."""
    capture, end = LogCapture(), Served(security=security)
    end.log = capture.entries
    log = structlog.wrap_logger(
        None,
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
    )

    async def run(*, task_status: trio.TaskStatus[int]) -> None:
        with end.scope:
            await serve_link(
                address,
                port,
                security,
                answer,
                log,
                timeout=timeout,
                on_gone=end.gone.append,
                task_status=task_status,
            )

    async with background() as nursery:
        end.port = await nursery.start(run)
        yield end


@asynccontextmanager
async def scripted(
    script: Callable[[trio.SocketStream], Any], security: Security = PLAIN
) -> AsyncIterator[int]:
    """Serve connections by a script, over TLS if told; the port."""

    async def serve(plain: trio.SocketStream) -> None:
        stream: Any = plain
        if security.server:
            stream = trio.SSLStream(plain, security.server, server_side=True)
        try:
            await script(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the client had enough
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Everything until the other end closes, however it does."""
    data = b""
    try:
        while more := await stream.receive_some(1 << 16):
            data += more
    except trio.BrokenResourceError:
        return data
    return data


async def read_line(stream: trio.abc.Stream) -> bytes:
    """One line, when nothing follows it."""
    line = b""
    while not line.endswith(b"\n"):
        more = await stream.receive_some()
        assert more, "the other end closed"
        line += more
    return line


def hello_line(number: int = 1, hello: Hello = HELLO) -> bytes:
    """The first line."""
    return encode(number, hello)
