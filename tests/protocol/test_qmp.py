"""QMP without I/O: every kind of message, in any split, and what is no QMP."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.errors import QmpProtocolError
from xencolo.lines import LineFramer
from xencolo.qmp import LINE_MAX, Event, Greeting, Reply, Session

# As QEMU 7.2 sends them, line ends included.
GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, '
    b'"package": "Debian 1:7.2+dfsg-7+deb12u18"}, "capabilities": ["oob"]}}\r\n'
)
RETURN = b'{"return": {}, "id": 1}\r\n'
ERROR = (
    b'{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}'
    b"\r\n"
)
EVENT = (
    b'{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "SHUTDOWN", '
    b'"data": {"guest": false, "reason": "host-qmp-quit"}}\r\n'
)
BARE_EVENT = b'{"timestamp": {"seconds": -1, "microseconds": 0}, "event": "STOP"}\n'


def asked(*commands: str) -> Session:
    session = Session()
    for command in commands:
        session.command(command, {})
    return session


def comparable(message: Greeting | Reply | Event) -> object:
    if isinstance(message, Reply) and message.error:
        error = message.error
        return message.id, error.command, error.error_class, error.description
    return message


EXPECTED = [
    Greeting((7, 2, 22), oob=True),
    Reply(1, {}, None),
    (2, "x", "CommandNotFound", "The command x has not been found"),
    Event("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}, 1700000000.25),
    Event("STOP", {}, -1.0),
]
STREAM = GREETING + RETURN + ERROR + EVENT + BARE_EVENT


def test_each_kind_of_message_whole() -> None:
    assert [comparable(m) for m in asked("stop", "x").feed(STREAM)] == EXPECTED


def test_a_refusal_names_the_command() -> None:
    (_, _, refusal) = asked("stop", "x").feed(GREETING + RETURN + ERROR)
    assert isinstance(refusal, Reply)
    assert str(refusal.error) == "x: The command x has not been found"


def test_each_kind_of_message_byte_by_byte() -> None:
    session = asked("stop", "x")
    messages = [m for i in range(len(STREAM)) for m in session.feed(STREAM[i : i + 1])]
    assert [comparable(m) for m in messages] == EXPECTED


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_each_kind_of_message_in_any_split(cuts: list[int]) -> None:
    session = asked("stop", "x")
    edges = zip([0, *cuts], [*cuts, len(STREAM)], strict=True)
    messages = [m for start, end in edges for m in session.feed(STREAM[start:end])]
    assert [comparable(m) for m in messages] == EXPECTED


def test_what_trails_waits_for_its_end() -> None:
    session = asked("stop")
    assert session.feed(GREETING + RETURN[:-5]) == [Greeting((7, 2, 22), oob=True)]
    assert session.feed(RETURN[-5:]) == [Reply(1, {}, None)]


def test_empty_lines_are_nothing() -> None:
    assert Session().feed(b"\r\n\n  \n") == []


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, {"error": True, "desc": "x"}])
def test_a_success_may_return_anything(value: object) -> None:
    line = json.dumps({"return": value, "id": 1}).encode() + b"\n"
    assert asked("query-xen-replication-status").feed(line) == [Reply(1, value, None)]


MALFORMED = {
    "not JSON": b"hello",
    "half an object": b'{"return": {}, "id": 1',
    "two objects": b'{"return": {}, "id": 1}{}',
    "no object": b"[]",
    "null": b"null",
    "an empty object": b"{}",
    "not UTF-8": b'{"event": "\xff", "timestamp": {"seconds": 1, "microseconds": 1}}',
    "nested without end": b"[" * 100_000,
    "nested without end where anything goes": b'{"id": 1, "return": ' + b"[" * 100_000,
    "a greeting without a version": b'{"QMP": {}}',
    "a version of text": b'{"QMP": {"version": {"qemu": {"major":"7","minor":2,"micro":0}}}}',
    "a version of another shape": b'{"QMP": {"version": {"qemu": [7, 2, 0]}}}',
    "a reply without an id": b'{"return": {}}',
    "an id that was never sent": b'{"return": {}, "id": 2}',
    "an id of text": b'{"return": {}, "id": "1"}',
    "an id that is a truth value": b'{"return": {}, "id": true}',
    "an error without an id": b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}',
    "an error to an id that was never sent": b'{"error": {"class": "X", "desc": "y"}, "id": 9}',
    "an error without words": b'{"error": {"class": "GenericError"}, "id": 1}',
    "an event without a time": b'{"event": "STOP"}',
    "an event whose data is a list": b'{"event": "S", "data": [], "timestamp": {"seconds": 1, '
    b'"microseconds": 1}}',
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_qmp_is_a_protocol_error_that_shows_it(line: bytes) -> None:
    with pytest.raises(QmpProtocolError) as caught:
        asked("stop").feed(line + b"\n")
    assert repr(line[:120]) in str(caught.value)


_WORDS = ["QMP", "version", "qemu", "major", "event", "data", "timestamp", "return", "error", "id"]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4)
    ),
)


@given(st.binary() | _VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        messages = Session().feed(data + b"\n")
    except QmpProtocolError:
        return
    assert not any(isinstance(message, Reply) for message in messages), "nothing was asked"


def test_a_second_reply_to_one_command_is_a_protocol_error() -> None:
    session = asked("stop")
    session.feed(RETURN)
    with pytest.raises(QmpProtocolError, match="answers 1, which was not asked"):
        session.feed(RETURN)


def test_commands_are_one_line_each_with_ids_of_their_own() -> None:
    session = Session()
    first = session.command("stop", {})
    second = session.command("nbd-server-start", {"name": "a\nb", "path": "/srv/ü"})
    assert first == (1, b'{"execute": "stop", "arguments": {}, "id": 1}\n')
    assert second[0] == 2
    assert second[1].count(b"\n") == 1
    assert json.loads(second[1]) == {
        "execute": "nbd-server-start",
        "arguments": {"name": "a\nb", "path": "/srv/ü"},
        "id": 2,
    }
    third = session.command("query-yank", {}, oob=True)
    assert third == (3, b'{"exec-oob": "query-yank", "arguments": {}, "id": 3}\n')


def test_replies_out_of_order_are_known_by_their_ids() -> None:
    session = asked("first", "second")
    both = session.feed(b'{"return": "b", "id": 2}\n{"return": "a", "id": 1}\n')
    assert both == [Reply(2, "b", None), Reply(1, "a", None)]


def test_a_line_without_end_is_refused_and_a_large_one_is_not() -> None:
    framer = LineFramer(LINE_MAX, QmpProtocolError)
    large = b"x" * (LINE_MAX - 1)
    assert framer.feed(large) == []
    assert framer.feed(b"y\nz") == [large + b"y"]
    with pytest.raises(QmpProtocolError, match="a line of over 16777216 bytes"):
        framer.feed(b"x" * LINE_MAX)
