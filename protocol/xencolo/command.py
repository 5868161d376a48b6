"""Commands by node: what the operator asks of xencolod, and what it answers.

Both stand under ``/libxl/<domid>/colo``: ``command`` is written by who asks and emptied by xencolod when it
takes it, in one transaction with ``answer``. Precedent: ``control/shutdown``.
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from xencolo.disk import Role, is_host, is_ipv6, parse_port
from xencolo.errors import CommandError, DiskError, WrongNode
from xencolo.paths import colo_path
from xencolo.status import ANSWER, COMMAND, DomainState

#: Longer ones are refused unread: the longest that means something has a quarter of this.
COMMAND_MAX = 1024
#: Half of what a value may have by the quotas of either xenstored.
ANSWER_MAX = 1024


class Word(StrEnum):
    """What can be asked."""

    CHECKPOINT = "checkpoint"
    RESYNC = "resync"
    FAILOVER = "failover"
    DETACH = "detach"


class Option(NamedTuple):
    """What may follow a word.

    :ivar value: what stands behind ``=`` in words; empty for one that stands alone.
    """

    name: str
    value: str
    meaning: str


class Rule(NamedTuple):
    """A row of the table of commands.

    :ivar roles: the roles in force of the domains that it can be asked of. A promoted domain is primary.
    :ivar effect: the domain's state once it is done, None where it stays as it is.
    """

    word: Word
    options: tuple[Option, ...]
    roles: tuple[Role, ...]
    effect: DomainState | None
    meaning: str

    @property
    def usage(self) -> str:
        """The grammar of the command, without its id."""
        shown = (f"{o.name}={o.value}" if o.value else o.name for o in self.options)
        return " ".join([self.word, *(f"[{option}]" for option in shown)])


_RULES = (
    Rule(
        Word.CHECKPOINT,
        (),
        (Role.PRIMARY,),
        None,
        "Make the secondary's disks what the primary's are now; what its own guest wrote since the "
        "last checkpoint is thrown away.",
    ),
    Rule(
        Word.RESYNC,
        (
            Option(
                "to", "HOST[:PORT]", "Another secondary than the one in `colo-host`, from now on."
            ),
            Option(
                "assume-equal",
                "",
                "Copy nothing: the operator knows that the disks of both hosts are the same. It is no "
                "more believed once the secondary could not be reached.",
            ),
        ),
        (Role.PRIMARY,),
        DomainState.REPLICATING,
        "Copy the disks to the secondary and begin to replicate; after `detach`, a failover or an "
        "error too.",
    ),
    Rule(
        Word.FAILOVER,
        (
            Option(
                "force",
                "",
                "Even though the disks hold no checkpoint of the primary.",
            ),
        ),
        (Role.SECONDARY,),
        DomainState.PROMOTED,
        "Take over from a primary that is dead: what the guest wrote here is kept.",
    ),
    Rule(
        Word.DETACH,
        (),
        (Role.PRIMARY,),
        DomainState.STANDALONE,
        "Stop replicating and go on alone, until `resync`.",
    ),
)
COMMANDS: Mapping[Word, Rule] = {rule.word: rule for rule in _RULES}


class Command(msgspec.Struct, frozen=True):
    """A command.

    :ivar to: ``HOST`` or ``HOST:PORT``, an IPv6 address in brackets where a port follows;
        :func:`parse_peer` takes it apart.
    :ivar id: by which the answer is known, up to 32 hexadecimal digits.
    """

    word: Word
    to: str | None = None
    assume_equal: bool = False
    force: bool = False
    id: str | None = None


class Outcome(StrEnum):
    """How a command that was taken goes."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Answer(NamedTuple):
    """What is said of the command that was taken last.

    :ivar word: the command's word, ``unknown`` where it had none.
    :ivar text: why it failed; with ``done`` what there is to add; with ``running`` empty.
    """

    word: str
    id: str | None
    outcome: Outcome
    text: str = ""


def command_path(domid: int) -> str:
    """Return the node in which a command is asked."""
    return f"{colo_path(domid)}/{COMMAND}"


def answer_path(domid: int) -> str:
    """Return the node in which it is answered."""
    return f"{colo_path(domid)}/{ANSWER}"


# -- the other host ---------------------------------------------------------------------------------


def parse_peer(text: str) -> tuple[str, int | None]:
    """Return host and port of ``HOST[:PORT]``; an IPv6 address in brackets where a port follows.

    :raises DiskError: it is none.
    """
    if bracketed := re.fullmatch(r"\[(.*)\](?::(.*))?", text, re.DOTALL):
        host, port = bracketed[1], bracketed[2]
        known = is_ipv6(host)
    else:
        host, colon, rest = text.partition(":")
        if ":" in rest:
            host, colon, rest = text, "", ""
        port = rest if colon else None
        known = is_host(host)
    if not known:
        raise DiskError(
            f"{text[:80]!r} is no HOST[:PORT]; an IPv6 address goes in brackets: [::1]:9990"
        )
    return host, None if port is None else _peer_port(port)


def _peer_port(text: str) -> int:
    try:
        return parse_port(text)
    except DiskError:
        raise DiskError(f"port {text[:20]!r} is not a whole number from 1 to 65535") from None


# -- commands ---------------------------------------------------------------------------------------

_ID = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


def parse(value: bytes) -> Command:
    """Return the command that the node holds; an empty one asks nothing and is not to be parsed.

    :raises CommandError: it is none. Its ``word`` and ``id``, where they could be read, are the answer's.
    """
    if len(value) > COMMAND_MAX:
        raise CommandError(f"the command has {len(value)} bytes, {COMMAND_MAX} at most")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"byte {error.start} of the command is not UTF-8") from None
    first, *rest = [word for word in text.split(" ") if word] or [""]
    ids = [word[3:] for word in rest if word.startswith("id=") and _ID.fullmatch(word[3:])]
    id_ = ids[0] if ids else None
    if first not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise CommandError(f"unknown command {first[:40]!r}; known: {known}", id=id_)
    rule = COMMANDS[Word(first)]
    try:
        return msgspec.convert({"word": rule.word, **_fields(rule, rest)}, Command)
    except (CommandError, DiskError) as error:
        reason = f"{error}; the command is: {rule.usage} [id=HEX]"
        raise CommandError(reason, rule.word, id_) from None


_ID_OPTION = Option("id", "HEX", "By which the answer is known; 1 to 32 of the digits 0-9 a-f.")


def _fields(rule: Rule, words: list[str]) -> dict[str, str | bool]:
    """Return the fields of :class:`Command` that the words set.

    :raises CommandError: a word is no option of this command, or given twice.
    :raises DiskError: a host or port can't be.
    """
    known = {option.name: option for option in (*rule.options, _ID_OPTION)}
    fields: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in known:
            raise CommandError(f"unknown option {word[:40]!r}")
        if name.replace("-", "_") in fields:
            raise CommandError(f"{name} is given twice")
        if bool(known[name].value) != bool(equals):
            raise CommandError(f"{name} {'takes no value' if equals else 'needs a value'}")
        if equals:
            _CHECKS[name](value)
        fields[name.replace("-", "_")] = value if equals else True
    return fields


def _check_id(value: str) -> None:
    if not _ID.fullmatch(value):
        raise CommandError(f"id {value[:40]!r}: 1 to 32 of the digits 0-9 a-f are needed")


_CHECKS: Mapping[str, Callable[[str], object]] = {"to": parse_peer, "id": _check_id}


def render(command: Command) -> bytes:
    """Return what the node is to hold.

    :raises CommandError: there is no such command.
    """
    words = [
        command.to and f"to={command.to}",
        command.assume_equal and "assume-equal",
        command.force and "force",
        command.id and f"id={command.id}",
    ]
    value = " ".join([command.word, *(word for word in words if word)]).encode()
    parse(value)
    return value


# -- answers ----------------------------------------------------------------------------------------

_ANSWER = re.compile(
    rf"({'|'.join((*Word, CommandError.UNKNOWN))})(?: id=([0-9a-f]{{1,32}}))? "
    r"(?:(running)|(done)(?: (.+))?|(failed): (.+))",
    re.ASCII,
)


def render_answer(answer: Answer) -> bytes:
    """Return what the answer's node is to hold: one line, its text cut where xenstore might refuse it."""
    head = f"{answer.word} id={answer.id}" if answer.id else answer.word
    text = " ".join(answer.text.split())
    match answer.outcome:
        case Outcome.FAILED:
            said = f"failed: {text or 'no reason is known'}"
        case Outcome.DONE if text:
            said = f"done {text}"
        case _:
            said = answer.outcome.value
    value = f"{head} {said}".encode()
    if len(value) <= ANSWER_MAX:
        return value
    return value[: ANSWER_MAX - 3].decode("utf-8", "ignore").encode() + "…".encode()


def parse_answer(domid: int, value: bytes) -> Answer:
    """Return the answer that the node holds.

    :raises WrongNode: it holds none.
    """
    text = value.decode("utf-8", "backslashreplace")
    found = _ANSWER.fullmatch(text)
    if not found:
        reason = f"{text[:80]!r} is no answer of xencolod's"
        raise WrongNode(colo_path(domid), ANSWER, reason)
    word, id_, running, done, more, failed, why = found.groups()
    return Answer(word, id_, Outcome(running or done or failed), more or why or "")
