"""QMP without I/O: greeting, ids, replies, errors, events, in frames of one JSON object a line.

Source: QEMU's ``docs/interop/qmp-spec.rst``.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from xencolo.errors import QmpCommandError, QmpProtocolError
from xencolo.lines import LineFramer

#: QEMU's largest regular reply, ``query-qmp-schema``, is under 1 MiB.
LINE_MAX = 16 << 20

Json = Any


class Greeting(NamedTuple):
    """QEMU's first words.

    :ivar version: (major, minor, micro).
    :ivar oob: whether QEMU can take commands out of band.
    """

    version: tuple[int, int, int]
    oob: bool = False


class Reply(NamedTuple):
    """The answer to the command with this id: a value, or QEMU's refusal."""

    id: int
    value: Json
    error: QmpCommandError | None


class Event(NamedTuple):
    """Something that happened in QEMU.

    :ivar seconds: QEMU's clock, since the epoch.
    """

    name: str
    data: dict[str, Json]
    seconds: float


# -- messages as they come ---------------------------------------------------------------------


class _Version(msgspec.Struct):
    major: int
    minor: int
    micro: int


class _Versions(msgspec.Struct):
    qemu: _Version


class _Greeting(msgspec.Struct):
    version: _Versions
    capabilities: list[str] = []


class _Time(msgspec.Struct):
    seconds: int
    microseconds: int


class _Refusal(msgspec.Struct):
    kind: str = msgspec.field(name="class")
    text: str = msgspec.field(name="desc")


class _Message(msgspec.Struct):
    greeting: _Greeting | None = msgspec.field(name="QMP", default=None)
    event: str | None = None
    data: dict[str, Json] = {}
    timestamp: _Time | None = None
    value: Json = msgspec.field(name="return", default=msgspec.UNSET)
    error: _Refusal | None = None
    id: int | None = None


_DECODER = msgspec.json.Decoder(_Message)


class Session:
    """One QMP dialogue as values: :meth:`command` gives bytes to send, :meth:`feed` takes what comes."""

    def __init__(self) -> None:
        self._framer = LineFramer(LINE_MAX, QmpProtocolError)
        self._commands: dict[int, str] = {}
        self._last_id = 0

    def command(
        self, name: str, arguments: Mapping[str, Json], *, oob: bool = False
    ) -> tuple[int, bytes]:
        """Return the command's id, by which its reply will be known, and its line.

        :param oob: out of band, which the greeting must have offered and ``qmp_capabilities`` enabled.
        """
        self._last_id += 1
        self._commands[self._last_id] = name
        execute = "exec-oob" if oob else "execute"
        message = {execute: name, "arguments": dict(arguments), "id": self._last_id}
        return self._last_id, json.dumps(message).encode() + b"\n"

    def feed(self, data: bytes) -> list[Greeting | Reply | Event]:
        """Take bytes, return the messages that they complete, in order.

        :raises QmpProtocolError: not QMP; the dialogue is over.
        """
        return [self._message(line) for line in self._framer.feed(data)]

    def _message(self, line: bytes) -> Greeting | Reply | Event:
        try:
            message = _DECODER.decode(line)
            match message:
                case _Message(greeting=_Greeting(_Versions(version), capabilities)):
                    numbers = (version.major, version.minor, version.micro)
                    return Greeting(numbers, "oob" in capabilities)
                case _Message(event=str(name), timestamp=_Time(seconds=s, microseconds=us)):
                    return Event(name, message.data, s + us / 1e6)
                case _Message(error=_Refusal(kind=kind, text=text), id=int(number)):
                    refusal = QmpCommandError(self._commands.pop(number), kind, text)
                    return Reply(number, None, refusal)
                case _Message(id=int(number)) if message.value is not msgspec.UNSET:
                    self._commands.pop(number)
                    return Reply(number, message.value, None)
        except KeyError as error:
            raise QmpProtocolError(f"{line[:120]!r} answers {error}, which was not asked") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise QmpProtocolError(f"{line[:120]!r} is no QMP message: {error}") from None
        raise QmpProtocolError(f"{line[:120]!r} is no QMP message")
