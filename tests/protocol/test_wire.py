"""The wire format: every way to split it, every limit, every operation."""

import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo import wire
from xencolo.errors import PathError, WireError
from xencolo.wire import Decoder, Op, Packet, Permission

_PACKETS = [
    Packet(Op.READ, 1, 0, b"/a\0"),
    Packet(Op.DIRECTORY, 0xFFFFFFFF, 0xFFFFFFFF, b""),
    Packet(Op.WRITE, 2, 7, b"/a\0" + bytes(range(256))),
    Packet(Op.WATCH_EVENT, 0, 0, b"/a\0token\0"),
    Packet(Op.READ, 3, 0, b"x" * wire.PAYLOAD_MAX),
    Packet(Op.ERROR, 4, 0, b"ENOENT\0"),
]
_STREAM = b"".join(wire.encode(*packet) for packet in _PACKETS)
_NEXT = wire.encode(Op.RM, 9, 0, b"/next\0")


def _feed(pieces: list[bytes]) -> list[Packet]:
    decoder = Decoder()
    packets = [packet for piece in pieces for packet in decoder.feed(piece)]
    assert decoder.pending == 0
    return packets


def test_whole() -> None:
    assert _feed([_STREAM]) == _PACKETS


def test_one_byte_at_a_time() -> None:
    assert _feed([bytes([byte]) for byte in _STREAM]) == _PACKETS


@given(st.lists(st.integers(0, len(_STREAM)), max_size=12))
def test_any_split(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(_STREAM)]
    assert _feed([_STREAM[a:b] for a, b in pairwise(places)]) == _PACKETS


@pytest.mark.parametrize("held", range(1, len(_NEXT)))
def test_trailing_data_waits(held: int) -> None:
    decoder = Decoder()
    assert decoder.feed(_STREAM + _NEXT[:held]) == _PACKETS
    assert decoder.pending == held
    assert decoder.feed(_NEXT[held:]) == [Packet(Op.RM, 9, 0, b"/next\0")]
    assert decoder.pending == 0


@given(
    st.lists(
        st.builds(
            Packet,
            st.sampled_from(Op).map(int),
            st.integers(0, wire.ID_MASK),
            st.integers(0, wire.ID_MASK),
            st.binary(max_size=80),
        )
    )
)
def test_decoding_undoes_encoding(packets: list[Packet]) -> None:
    assert _feed([b"".join(wire.encode(*packet) for packet in packets)]) == packets


@pytest.mark.parametrize("op", Op)
def test_every_operation(op: Op) -> None:
    assert _feed([wire.encode(op, 1, 2, b"p\0")]) == [Packet(op, 1, 2, b"p\0")]


def test_the_numbers_are_xs_wire_h_s() -> None:
    assert wire.encode(Op.DIRECTORY_PART, 1, 2, b"/\x000\0").hex() == (
        "160000000100000002000000040000002f003000"
    )
    assert (Op.CONTROL, Op.SET_TARGET, Op.RESET_WATCHES, Op.SET_QUOTA) == (0, 19, 21, 26)


@pytest.mark.parametrize(
    ("op", "length"),
    [
        (Op.READ, wire.PAYLOAD_MAX + 1),
        (Op.READ, 0xFFFFFFFF),
        (20, 0),
        (max(Op) + 1, 0),
        (0xFFFF, 3),
    ],
)
def test_malformed_headers(op: int, length: int) -> None:
    header = wire.HEADER.pack(op, 1, 0, length)
    decoder = Decoder()
    assert decoder.feed(header[:-1]) == []
    with pytest.raises(WireError, match=header.hex()):
        decoder.feed(header[-1:])


def test_a_server_sees_unknown_operations() -> None:
    message = wire.HEADER.pack(20, 1, 0, 1) + b"\0"
    assert Decoder(any_op=True).feed(message) == [Packet(20, 1, 0, b"\0")]


def test_a_client_of_oxenstored_takes_long_replies() -> None:
    listing = b"name\0" * 4000
    message = wire.HEADER.pack(Op.DIRECTORY, 1, 0, len(listing)) + listing
    decoder = Decoder(payload_max=wire.REPLY_MAX)
    assert decoder.feed(message) == [Packet(Op.DIRECTORY, 1, 0, listing)]
    with pytest.raises(WireError):
        decoder.feed(wire.HEADER.pack(Op.DIRECTORY, 1, 0, wire.REPLY_MAX + 1))


@pytest.mark.parametrize(
    ("op", "payload", "reason"),
    [(Op.WRITE, b"x" * 4097, "WRITE: payload of 4097 bytes"), (20, b"", "operation 20 is none")],
)
def test_encode_refuses(op: int, payload: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        wire.encode(op, 0, 0, payload)


def test_strings() -> None:
    assert wire.strings("/a", b"t", "") == b"/a\0t\0\0"
    assert wire.split(b"/a\0t\0\0") == [b"/a", b"t", b""]
    assert wire.split(b"a\0b") == [b"a", b"b"]
    assert wire.split(b"") == []


def test_errors_have_xenstored_s_names() -> None:
    assert wire.ERRNOS[b"EAGAIN"] == errno.EAGAIN
    assert wire.ERROR_NAMES[errno.E2BIG] == b"E2BIG"
    assert wire.ERRNOS[b"EQUOTA"] == errno.ENOSPC
    assert wire.ERROR_NAMES[errno.ENOSPC] == b"ENOSPC"  # the other is oxenstored's alone


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "relative/path", "/local/domain/0/-_@Z9", "/" + "a" * 3071, "b" * 2048],
)
def test_good_paths(path: str) -> None:
    assert wire.check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "only letters"),
        ("/a b", "only letters"),
        ("/ä", "only letters"),
        ("/a\0", "only letters"),
        ("/a\n", "only letters"),
        ("//a", "an empty component"),
        ("/a//b", "an empty component"),
        ("/a/", "an empty component"),
        ("//", "an empty component"),
        ("/" + "a" * 3072, "3073 bytes, 3072 at most"),
        ("b" * 2049, "2049 bytes, 2048 at most"),
    ],
)
def test_bad_paths(path: str, reason: str) -> None:
    with pytest.raises(PathError, match=reason):
        wire.check_path(path)


def test_watch_paths() -> None:
    assert wire.check_watch_path("@releaseDomain") == "@releaseDomain"
    assert wire.check_watch_path("/a") == "/a"
    with pytest.raises(PathError, match="@introduceDomain and @releaseDomain"):
        wire.check_watch_path("@other")


def test_permissions() -> None:
    permissions = wire.parse_permissions(b"n5\0r6\0w7\0b8\0")
    assert permissions == (*map(Permission, "nrwb", (5, 6, 7, 8)),)
    assert [str(permission) for permission in permissions] == ["n5", "r6", "w7", "b8"]
    assert wire.writers(permissions) == ({5, 7, 8}, False)
    assert wire.writers(wire.parse_permissions(b"w0\0")) == ({0}, True)


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"x5\0", b"n\0", b"n5\0r\0", b"n-1\0", b"n123456\0"]
)
def test_malformed_permissions(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.parse_permissions(payload)
