"""The key file: who may talk to whom, over the link and over NBD.

One PEM file holds a private key, its certificate and the certificate of the authority that signed
it. :func:`make` throws the authority's key away, so nobody can ever be added: who has the file is
one of the hosts that replicate to each other. Both ends show the certificate and check the other's.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xencolo.errors import KeysError

#: The name in each certificate, whatever host shows it: what ``tls-hostname`` of QEMU has to be.
HOSTNAME = "xencolo"
VALID = timedelta(days=3650)
#: Room for clocks that differ.
_EARLIER = timedelta(days=1)
_FILE_MAX = 1 << 16
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\r?\n.+?-----END \1-----\r?\n?", re.DOTALL)
_REMEDY = "make one with `xencolo keys` and copy it to each host"


class Keys(NamedTuple):
    """What a key file holds, as PEM, checked to belong together.

    :ivar path: the file.
    :ivar expires: when the first of the certificates does.
    """

    path: str
    private_key: bytes
    certificate: bytes
    authority: bytes
    expires: datetime

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex: equal on hosts that have the same file."""
        found = x509.load_pem_x509_certificate(self.certificate)
        return found.fingerprint(hashes.SHA256()).hex()


# -- making -------------------------------------------------------------------------------------


def make(path: Path) -> Keys:
    """Make a key file, mode 0600, valid for 3650 days; it is there whole or not at all.

    :raises KeysError: something is there already, or it can't be written.
    """
    data = _fresh(datetime.now(UTC))
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Unlike a rename, a link never replaces what is there.
            os.link(temporary, path)
        finally:
            Path(temporary).unlink()
    except FileExistsError:
        raise KeysError(
            str(path),
            "is there already, and hosts may rely on it; move it away first, or name another file",
        ) from None
    except OSError as error:
        raise KeysError(str(path), f"can't be written: {error.strerror}") from error
    return parse(data, str(path))


def _fresh(now: datetime) -> bytes:
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _authority(authority_key, now)
    certificate = _certificate(key, authority, authority_key, now)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = serialization.Encoding.PEM
    return private + certificate.public_bytes(pem) + authority.public_bytes(pem)


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


_NO_USE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)
_AUTHORITY_NAME = f"{HOSTNAME} authority"


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    return (
        _builder(_AUTHORITY_NAME, _AUTHORITY_NAME, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**_NO_USE | {"key_cert_sign": True}), critical=True)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    hostname: str = HOSTNAME,
) -> x509.Certificate:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(HOSTNAME, _AUTHORITY_NAME, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # QEMU refuses a critical one without keyEncipherment, which is none of this key's uses.
        .add_extension(x509.KeyUsage(**_NO_USE | {"digital_signature": True}), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )


# -- reading ------------------------------------------------------------------------------------


def load(path: str) -> Keys:
    """Read a key file.

    :raises KeysError: it is absent, can be read by others, or holds no keys that belong together.
    """
    try:
        # A pipe under this name would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_FILE_MAX + 1) if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError:
        raise KeysError(path, f"there is no such file; {_REMEDY}") from None
    except OSError as error:
        raise KeysError(path, f"can't be read: {error.strerror}") from error
    if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
        raise KeysError(path, "others than root may use it; chmod 600 and chown root it")
    return parse(data, path)


def parse(data: bytes, path: str) -> Keys:
    """Read the bytes of a key file; whether it has expired is not looked at.

    :raises KeysError: as :func:`load`.
    """
    blocks = [(found[1], found[0]) for found in _PEM.finditer(data)]
    private = [pem for kind, pem in blocks if kind.endswith(b"PRIVATE KEY")]
    certificates = [pem for kind, pem in blocks if kind == b"CERTIFICATE"]
    if len(data) > _FILE_MAX or len(private) != 1 or len(certificates) != 2:
        raise KeysError(
            path,
            "is no key file: it has to hold a private key, its certificate and the authority's "
            f"certificate, in PEM; {_REMEDY}",
        )
    try:
        key = serialization.load_pem_private_key(private[0], None)
        certificate, authority = map(x509.load_pem_x509_certificate, certificates)
        certificate.verify_directly_issued_by(authority)
    except Exception as error:
        # Cryptography's own classes for bad PEM, bad DER, bad signature and unknown kinds share
        # no base class.
        raise KeysError(path, f"is damaged: {error or type(error).__name__}; {_REMEDY}") from error
    if key.public_key() != certificate.public_key():
        raise KeysError(path, f"its private key is not its certificate's; {_REMEDY}")
    expires = min(certificate.not_valid_after_utc, authority.not_valid_after_utc)
    return Keys(path, private[0], certificates[0], certificates[1], expires)


# -- for QEMU -----------------------------------------------------------------------------------


#: The group ffdhe2048 of RFC 7919. Without it QEMU looks for one of its own whenever the disks are served,
#: and does nothing else meanwhile: 290 to 700 ms here, 2 ms with it.
_DH_PARAMETERS = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def qemu_credentials(file: str, directory: str) -> str:
    """Lay the keys out for QEMU's tls-creds-x509, as server and as client.

    :param file: the key file.
    :param directory: where the layout's own directory goes, named after what is in it: the same
        keys have the same one, and it is there whole or not at all.
    :returns: that directory, for ``dir`` of the object; blocking, but quick.
    :raises KeysError: as :func:`load`, or it can't be written.
    """
    keys = load(file)
    files = {
        "ca-cert.pem": keys.authority,
        "server-cert.pem": keys.certificate,
        "server-key.pem": keys.private_key,
        "client-cert.pem": keys.certificate,
        "client-key.pem": keys.private_key,
        "dh-params.pem": _DH_PARAMETERS,
    }
    name = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    target = Path(directory, f"tls-{name}")
    if target.is_dir():
        return str(target)
    try:
        aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=directory))
        try:
            for name, data in files.items():
                _write_private(aside / name, data)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise KeysError(str(target), f"can't be written: {error.strerror}") from error
    return str(target)


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
