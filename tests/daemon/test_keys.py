"""The key file: made once, read with suspicion, laid out for QEMU."""

import base64
import os
import re
import stat
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from tests.daemon.link_rig import LONG_AGO, OURS, THEIRS
from xencolo.errors import KeysError
from xencolod import keys
from xencolod.cli import main
from xencolod.config import Link
from xencolod.security import security_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.pem"
    keys.make(path)
    return path


def pem(found: keys.Keys) -> bytes:
    return found.private_key + found.certificate + found.authority


# -- making -------------------------------------------------------------------------------------


def test_a_file_is_made_for_root_alone_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    before = os.umask(0)
    try:
        made = keys.make(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.pem"]  # noqa: PTH208 - hidden ones too
    assert keys.load(str(path)) == made
    left = made.expires - datetime.now(UTC)
    assert keys.VALID - timedelta(minutes=5) < left <= keys.VALID
    assert len(path.read_bytes().split(b"PRIVATE KEY-----\n")) == 3, "one key, not the authority's"


def test_no_two_are_alike(tmp_path: Path) -> None:
    first, second = (keys.make(tmp_path / name) for name in ("a", "b"))
    assert not set(first[1:4]) & set(second[1:4])
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_what_is_there_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    match kind:
        case "file":
            path.write_text("mine")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    with pytest.raises(KeysError, match=r"keys\.pem: is there already"):
        keys.make(path)
    assert len(os.listdir(tmp_path)) == 1  # noqa: PTH208 - hidden ones too
    assert kind != "file" or path.read_text() == "mine"


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"no/keys\.pem: can't be written: No such file"):
        keys.make(tmp_path / "no" / "keys.pem")


def test_the_command_says_what_it_made_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    done = CliRunner().invoke(main, ["keys", str(path)])
    assert done.exit_code == 0
    made = keys.load(str(path))
    assert made.fingerprint in done.stdout
    assert f"{made.expires:%Y-%m-%d}" in done.stdout
    again = CliRunner().invoke(main, ["keys", str(path)])
    assert again.exit_code == 1
    assert again.stderr.startswith(f"xencolo: {path}: is there already")
    assert keys.load(str(path)) == made


# -- reading ------------------------------------------------------------------------------------


def test_a_file_that_is_absent_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"no: there is no such file; make one with `xencolo keys`"):
        keys.load(str(tmp_path / "no"))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o644])
def test_a_file_that_others_can_use_is_not_used(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(KeysError, match="others than root may use it; chmod 600"):
        keys.load(str(file))


def test_a_file_of_somebody_else_is_not_used(file: Path) -> None:
    os.chown(file, 12345, 0)
    with pytest.raises(KeysError, match="chown root"):
        keys.load(str(file))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeysError, match="is no key file"):
        keys.load(str(tmp_path / "pipe"))
    (tmp_path / "directory").mkdir(0o700)
    with pytest.raises(KeysError, match="directory: "):
        keys.load(str(tmp_path / "directory"))


OWN, OTHER, FOREIGN = OURS.keys(), OURS.keys(), THEIRS.keys()
ENCRYPTED = serialization.load_pem_private_key(OWN.private_key, None).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.BestAvailableEncryption(b"secret"),
)
DAMAGED = {
    "nothing": b"",
    "text": b"hello",
    "no key": OWN.certificate + OWN.authority,
    "no authority": OWN.private_key + OWN.certificate,
    "two keys": OWN.private_key + pem(OTHER),
    "three certificates": pem(OWN) + OTHER.certificate,
    "another key": OTHER.private_key + OWN.certificate + OWN.authority,
    "another authority": OWN.private_key + OWN.certificate + FOREIGN.authority,
    "the wrong order": OWN.private_key + OWN.authority + OWN.certificate,
    "an encrypted key": ENCRYPTED + OWN.certificate + OWN.authority,
    "no base64": re.sub(rb"(?m)^M", b"*", pem(OWN)),
    "too much": pem(OWN) + b"#" * (1 << 16),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_set_of_keys_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeysError, match=r"keys\.pem: .*`xencolo keys`"):
        keys.load(str(path))


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    data = file.read_bytes().rstrip()
    for length in range(0, len(data), 7):
        with pytest.raises(KeysError):
            keys.parse(data[:length], "x")
    assert keys.parse(data, "x")


def test_text_between_the_parts_does_not_matter() -> None:
    data = b"hosts a and b\n" + pem(OWN).replace(b"\n", b"\r\n")
    assert keys.parse(data, "x").fingerprint == OWN.fingerprint


# -- what the configuration says ----------------------------------------------------------------


def test_security_is_what_the_configuration_says(file: Path, tmp_path: Path) -> None:
    secured = security_of(Link(keys=str(file)))
    assert secured.server
    assert secured.client
    assert secured.keys == keys.load(str(file))
    plain = Link(keys=str(tmp_path / "no"), unencrypted_and_unauthenticated=True)
    assert security_of(plain) == (None, None, None)
    with pytest.raises(KeysError, match="there is no such file"):
        security_of(Link(keys=str(tmp_path / "no")))


def test_keys_that_have_ended_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(pem(OURS.keys(made=LONG_AGO)))
    path.chmod(0o600)
    with pytest.raises(KeysError, match=r"its certificate ended on 20\d\d-.* make another"):
        security_of(Link(keys=str(path)))


# -- for QEMU -----------------------------------------------------------------------------------


def ffdhe2048() -> int:
    """Return the prime of the group, as RFC 7919 (appendix A.1) defines it by Euler's number."""
    with localcontext() as context:
        context.prec = 700
        e = Decimal(1).exp() * 2**1918
    return 2**2048 - 2**1984 + (int(e) + 560316) * 2**64 - 1


FFDHE2048 = ffdhe2048()


def group_in(pem: bytes) -> tuple[int, int]:
    """Return prime and generator of a PKCS #3 file: a sequence of two integers, in DER."""
    begin, *lines, end = pem.decode().splitlines()
    assert (begin, end) == ("-----BEGIN DH PARAMETERS-----", "-----END DH PARAMETERS-----")
    der = base64.b64decode("".join(lines))
    head, prime, generator = der[:8], der[8:-3], der[-3:]
    assert head == bytes.fromhex("3082010802820101")
    assert generator[:2] == bytes.fromhex("0201")
    return int.from_bytes(prime), generator[2]


def test_the_layout_for_qemu_is_private_whole_and_made_once(file: Path, tmp_path: Path) -> None:
    directory = Path(keys.qemu_credentials(str(file), str(tmp_path)))
    found = keys.load(str(file))
    laid_out = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert group_in(laid_out.pop("dh-params.pem")) == (FFDHE2048, 2)
    assert laid_out == {
        "ca-cert.pem": found.authority,
        "server-cert.pem": found.certificate,
        "server-key.pem": found.private_key,
        "client-cert.pem": found.certificate,
        "client-key.pem": found.private_key,
    }
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    made = directory.stat().st_mtime_ns
    assert keys.qemu_credentials(str(file), str(tmp_path)) == str(directory)
    assert directory.stat().st_mtime_ns == made
    other = tmp_path / "other.pem"
    keys.make(other)
    assert keys.qemu_credentials(str(other), str(tmp_path)) != str(directory)


def test_a_layout_that_can_not_be_written_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="can't be written: No such file"):
        keys.qemu_credentials(str(file), str(tmp_path / "no"))
    assert os.listdir(tmp_path) == ["keys.pem"]  # noqa: PTH208 - hidden ones too
