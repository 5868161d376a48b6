"""Commands by node and their answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.command import (
    ANSWER_MAX,
    COMMAND_MAX,
    COMMANDS,
    Answer,
    Command,
    Outcome,
    Word,
    parse,
    parse_answer,
    parse_peer,
    render,
    render_answer,
)
from xencolo.errors import CommandError, DiskError, WrongNode
from xencolo.reference import page

WRITTEN = {
    b"checkpoint": Command(Word.CHECKPOINT),
    b"resync": Command(Word.RESYNC),
    b"resync to=192.0.2.7": Command(Word.RESYNC, to="192.0.2.7"),
    b"resync to=[2001:db8::7]:99 assume-equal id=c0de": Command(
        Word.RESYNC, to="[2001:db8::7]:99", assume_equal=True, id="c0de"
    ),
    b"failover force id=1": Command(Word.FAILOVER, force=True, id="1"),
    b"detach id=" + b"f" * 32: Command(Word.DETACH, id="f" * 32),
}


@pytest.mark.parametrize(("value", "command"), WRITTEN.items(), ids=repr)
def test_a_command_is_written_as_it_is_read(value: bytes, command: Command) -> None:
    assert parse(value) == command
    assert render(command) == value


def test_order_and_number_of_spaces_are_no_matter() -> None:
    assert parse(b" resync  id=a assume-equal to=b ") == Command(Word.RESYNC, "b", True, id="a")


WRONG = {
    b"": ("unknown command ''; known: checkpoint, resync, failover, detach", "unknown", None),
    b"  ": ("unknown command ''", "unknown", None),
    b"Failover": ("unknown command 'Failover'", "unknown", None),
    b"\x1b[2J id=a1": ("unknown command '\\x1b[2J'", "unknown", "a1"),
    b"failover\n": ("unknown command 'failover\\n'", "unknown", None),
    b"detach\xff": ("byte 6 of the command is not UTF-8", "unknown", None),
    b"x" * (COMMAND_MAX + 1): ("1025 bytes, 1024 at most", "unknown", None),
    b"x" * COMMAND_MAX: ("unknown command 'xxx", "unknown", None),
    b"failover now id=1": (
        "unknown option 'now'; the command is: failover [force]",
        "failover",
        "1",
    ),
    b"detach force": ("unknown option 'force'", "detach", None),
    b"checkpoint to=a": ("unknown option 'to=a'", "checkpoint", None),
    b"failover force force": ("force is given twice", "failover", None),
    b"detach id=1 id=2": ("id is given twice", "detach", "1"),
    b"failover force=1 id=2": ("force takes no value", "failover", "2"),
    b"resync to": ("to needs a value", "resync", None),
    b"resync to=": ("is no HOST[:PORT]", "resync", None),
    b"resync to=a:0": ("port '0' is not a whole number from 1 to 65535", "resync", None),
    b"detach id=": ("id '': 1 to 32 of the digits", "detach", None),
    b"detach id=XY": ("id 'XY': 1 to 32 of the digits", "detach", None),
    b"detach id=" + b"1" * 33: ("1 to 32 of the digits", "detach", None),
}


@pytest.mark.parametrize(("value", "expected"), WRONG.items(), ids=lambda value: repr(value)[:40])
def test_what_is_no_command_is_named_with_what_is_known_of_it(
    value: bytes, expected: tuple[str, str, str | None]
) -> None:
    with pytest.raises(CommandError) as caught:
        parse(value)
    words, word, id_ = expected
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert (caught.value.word, caught.value.id) == (word, id_)
    # The daemon's answer to it is one that the command can read.
    answer = Answer(word, id_, Outcome.FAILED, str(caught.value))
    assert parse_answer(5, render_answer(answer)) == answer


@given(st.binary(max_size=80))
def test_anything_at_all_is_a_command_or_an_error(value: bytes) -> None:
    try:
        command = parse(value)
    except CommandError as error:
        assert str(error).isprintable()  # noqa: PT017 - most of what is drawn is no command
    else:
        assert parse(render(command)) == command


def test_an_option_of_another_command_is_not_written() -> None:
    with pytest.raises(CommandError, match="unknown option 'force'"):
        render(Command(Word.DETACH, force=True))


PEERS = {
    "web2": ("web2", None),
    "web2.example.net:9990": ("web2.example.net", 9990),
    "127.0.0.2:1": ("127.0.0.2", 1),
    "2001:db8::7": ("2001:db8::7", None),
    "[2001:db8::7]": ("2001:db8::7", None),
    "[fe80::1%eth0]:65535": ("fe80::1%eth0", 65535),
}


@pytest.mark.parametrize(("text", "peer"), PEERS.items(), ids=PEERS)
def test_a_peer(text: str, peer: tuple[str, int | None]) -> None:
    assert parse_peer(text) == peer


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:65536",
        "a:9x",
        "a b",
        "[a]:1",
        "[::1",
        "[::1]x",
        "::1]",
        "1:2:3",
        "a\n",
        "::1%a\n",
        "ä",
    ],
)
def test_what_is_no_peer(text: str) -> None:
    with pytest.raises(DiskError) as caught:
        parse_peer(text)
    assert "HOST[:PORT]" in str(caught.value) or "from 1 to 65535" in str(caught.value)


ANSWERS = {
    b"resync id=a running": Answer("resync", "a", Outcome.RUNNING),
    b"checkpoint done": Answer("checkpoint", None, Outcome.DONE),
    b"checkpoint id=1f done number 7": Answer("checkpoint", "1f", Outcome.DONE, "number 7"),
    b"unknown failed: no such: thing": Answer("unknown", None, Outcome.FAILED, "no such: thing"),
}


@pytest.mark.parametrize(("value", "answer"), ANSWERS.items(), ids=repr)
def test_an_answer_is_written_as_it_is_read(value: bytes, answer: Answer) -> None:
    assert parse_answer(5, value) == answer
    assert render_answer(answer) == value


def test_an_answer_is_one_line_that_xenstore_takes() -> None:
    lines = Answer("detach", "1", Outcome.FAILED, "first\n  second")
    assert parse_answer(5, render_answer(lines)).text == "first second"
    assert render_answer(lines._replace(text=" ")) == b"detach id=1 failed: no reason is known"
    for text in ("é" * ANSWER_MAX, "x" + "é" * ANSWER_MAX):
        value = render_answer(lines._replace(text=text))
        assert ANSWER_MAX - 2 <= len(value) <= ANSWER_MAX
        assert parse_answer(5, value).text.endswith("é…")


@pytest.mark.parametrize(
    "value",
    [b"", b"resync", b"resync running ", b"resync id=G running", b"resync failed", b"\xff done"],
)
def test_what_is_no_answer(value: bytes) -> None:
    with pytest.raises(WrongNode) as caught:
        parse_answer(5, value)
    assert caught.value.path == "/libxl/5/colo/answer"


def test_every_command_is_on_the_page() -> None:
    assert list(COMMANDS) == list(Word)
    for rule in COMMANDS.values():
        assert f"| `{rule.usage}` | {', '.join(rule.roles)} | {rule.meaning}" in page()
        assert parse(rule.word.encode()) == Command(rule.word)
