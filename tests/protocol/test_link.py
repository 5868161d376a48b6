"""The messages of the link: each there and back, and everything that is none refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.errors import LinkProtocolError
from xencolo.lines import LineFramer
from xencolo.link import (
    DISKS_MAX,
    KINDS,
    LINE_MAX,
    Checkpoint,
    Detach,
    DiskInfo,
    Done,
    Hello,
    Ping,
    Prepare,
    Refusal,
    Reply,
    Request,
    Start,
    Welcome,
    decode_opening,
    decode_reply,
    decode_request,
    encode,
    refusal,
)

UUID = "0c6f2c8e-52a4-4f0d-9b1d-7f6c0d2b5a11"
SESSION = "00ff" * 4
HELLO = Hello(
    uuid=UUID,
    name="web",
    generation=3,
    session=SESSION,
    disks=(DiskInfo("xvda", "web", 1 << 40), DiskInfo("hdb", "wéb,2", 0)),
)
REQUESTS: tuple[Request, ...] = (
    HELLO,
    Hello(uuid=UUID, name="w", generation=0),
    Prepare(SESSION),
    Prepare(SESSION, assume_equal=True),
    Start(SESSION),
    Checkpoint(SESSION, 7),
    Detach(SESSION),
    Ping(),
)
REPLIES: tuple[Reply, ...] = (
    Welcome(
        generation=3,
        state="listening",
        session=SESSION,
        in_sync=True,
        host="2001:db8::2",
        port=9000,
        encrypted=True,
    ),
    Welcome(generation=0, state="degraded", host="h", port=1, encrypted=False),
    Done(),
    *(refusal(kind, "it is\nso", 4) for kind in KINDS),  # type: ignore[arg-type]
    Refusal("busy", ""),
)


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_is_one_line_there_and_back(request_: Request) -> None:
    line = encode(5, request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == (5, request_)


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_is_one_line_there_and_back(reply: Reply) -> None:
    line = encode(5, reply)
    assert line.count(b"\n") == 1
    assert decode_reply(line) == (5, reply)


def test_the_first_line_looks_like_this() -> None:
    """What other versions rely on."""
    line = encode(1, Hello(uuid=UUID, name="web", generation=1))
    assert json.loads(line) == {
        "id": 1,
        "message": {
            "type": "hello",
            "version": 2,
            "uuid": UUID,
            "name": "web",
            "generation": 1,
            "session": None,
            "diverged": False,
            "disks": [],
        },
    }
    assert decode_opening(encode(9, HELLO)) == (9, HELLO)


@pytest.mark.parametrize("version", [0, 1, 3, 10**6])
def test_another_version_is_answered_whatever_else_it_says(version: int) -> None:
    message = {"type": "hello", "version": version, "uuid": 5, "more": [{"x": None}]}
    line = json.dumps({"id": 3, "message": message, "trace": "x"}).encode()
    number, answer = decode_opening(line)
    assert number == 3
    assert isinstance(answer, Refusal)
    assert answer.kind == "version"
    assert f"version 2 of the link, not {version}: install the same xencolo" in answer.reason


def changed(message: object, **changes: object) -> bytes:
    """A line whose message has other fields."""
    line = json.loads(encode(1, message))  # type: ignore[arg-type]
    line["message"] |= changes
    return json.dumps(line).encode()


NO_REQUEST = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'{"id": 1}',
    b'{"message": {"type": "ping"}}',
    b'{"id": -1, "message": {"type": "ping"}}',
    b'{"id": 99999999999999999999, "message": {"type": "ping"}}',
    b'{"id": "1", "message": {"type": "ping"}}',
    b'{"id": 1, "message": {"type": "ping"}, "more": 1}',
    b'{"id": 1, "message": {"type": "ping", "more": 1}}',
    b'{"id": 1, "message": {"type": "quit"}}',
    b'{"id": 1, "message": {}}',
    b'{"id": 1, "message": {"type": "ping"}} {}',
    b'{"id": 1, "message": {"type": "\xff"}}',
    b'{"id": 1, "message": ' + b"[" * 50000,
    encode(1, Done()),
    changed(HELLO, uuid=UUID.upper()),
    changed(HELLO, uuid="../../etc"),
    changed(HELLO, name=""),
    changed(HELLO, name="a\0b"),
    changed(HELLO, generation=-1),
    changed(HELLO, generation=1 << 63),
    changed(HELLO, generation=True),
    changed(HELLO, disks=[{"vdev": "xvda", "export": "e", "length": -1}]),
    changed(HELLO, disks=[{"vdev": "xvda", "export": "e"}]),
    changed(HELLO, disks=[{"vdev": "x", "export": "e", "length": 1}] * (DISKS_MAX + 1)),
    *(
        changed(Start(SESSION), session=session)
        for session in (None, "", "abc", "x" * 8, SESSION.upper() + "F", "a" * 65, SESSION + "\n")
    ),
    changed(Prepare(SESSION), assume_equal="yes"),
    changed(Checkpoint(SESSION, 1), number=-1),
]


@pytest.mark.parametrize("line", NO_REQUEST, ids=lambda line: repr(line[:60]))
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(LinkProtocolError, match="is no message") as error:
        decode_request(line)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "line",
    [
        encode(1, Ping()),
        encode(1, Prepare(SESSION)),
        b'{"id": 1, "message": {"type": "hello"}}',
        b'{"id": 1, "message": {"type": "hello", "version": "1"}}',
        b'{"id": 1, "message": {"type": "hello", "version": 2}}',
        b"GET / HTTP/1.1",
    ],
)
def test_only_a_hello_opens(line: bytes) -> None:
    with pytest.raises(LinkProtocolError):
        decode_opening(line)


@pytest.mark.parametrize(
    "line",
    [
        encode(1, Ping()),
        changed(Done(), more=1),
        changed(REPLIES[0], port=0),
        changed(REPLIES[0], port=65536),
        changed(REPLIES[0], host=""),
        changed(REPLIES[0], host="a\0"),
        changed(REPLIES[0], session="no hex"),
        changed(refusal("busy", "x"), kind="tired"),
    ],
)
def test_what_is_no_reply_is_refused(line: bytes) -> None:
    with pytest.raises(LinkProtocolError):
        decode_reply(line)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused(line: bytes) -> None:
    for decode in (decode_opening, decode_request, decode_reply):
        with pytest.raises(LinkProtocolError):
            decode(line)


@given(st.text())
def test_any_reason_can_be_sent(reason: str) -> None:
    sent = refusal("failed", reason * 50)
    assert decode_reply(encode(1, sent)) == (1, sent)
    assert sent.reason == (reason * 50)[:2000]


def test_a_reason_of_broken_text_can_be_sent() -> None:
    assert refusal("failed", "/x\udcff").reason == "/x\\udcff"


@pytest.mark.parametrize("name", ["x" * LINE_MAX, "\udcff"])
def test_what_can_not_be_sent_says_so(name: str) -> None:
    with pytest.raises(LinkProtocolError, match=r"^Hello "):
        encode(1, Hello(uuid=UUID, name=name, generation=1))


def test_the_largest_hello_is_a_line() -> None:
    disks = tuple(DiskInfo(f"xvd{n}", "e" * 150, 1 << 50) for n in range(DISKS_MAX))
    hello = Hello(uuid=UUID, name="n" * 1024, generation=1, disks=disks)
    assert decode_opening(encode(1, hello)) == (1, hello)


# -- lines --------------------------------------------------------------------------------------


def framer(limit: int = 5) -> LineFramer:
    return LineFramer(limit, LinkProtocolError)


@pytest.mark.parametrize("size", range(1, 20))
def test_lines_come_in_any_pieces(size: int) -> None:
    data, cut, found = b"one\n\ntwo\r\nthree\nrest", framer(), []
    for start in range(0, len(data), size):
        found += cut.feed(data[start : start + size])
    assert found == [b"one", b"two\r", b"three"]


@pytest.mark.parametrize("data", [b"123456", b"123456\n", b"1\n123456\n2\n", b"1\n123456"])
def test_no_line_is_longer_than_the_limit_wherever_it_stands(data: bytes) -> None:
    with pytest.raises(LinkProtocolError, match="a line of over 5 bytes"):
        framer().feed(data)
    cut = framer()
    assert cut.feed(b"12345\n1234") == [b"12345"]
    with pytest.raises(LinkProtocolError):
        cut.feed(b"56")
