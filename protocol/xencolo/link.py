"""What two daemons say to each other about a replicated domain, without I/O.

One JSON object a line, either way: ``{"id": 1, "message": {"type": "hello", ...}}``. The primary's
daemon asks, the secondary's answers, each answer with the id of what was asked. Ids grow. A
connection is about one domain, which :class:`Hello`, its first message, names.

All versions agree on this much: the frame, that a hello has ``type`` and ``version``, and what a
refusal is.
"""

from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from xencolo.errors import LinkProtocolError
from xencolo.record import Uuid

VERSION = 2
LINE_MAX = 1 << 16
DISKS_MAX = 256

RefusalKind = Literal["version", "domain", "generation", "disks", "busy", "state", "failed"]

# The session becomes part of an id in QEMU, so nothing else may come in by it.
Session = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8,64}\Z")]
Name = Annotated[str, Meta(pattern=r"\A[^\0]+\Z", max_length=1024)]
Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Port = Annotated[int, Meta(ge=1, le=(1 << 16) - 1)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Message(_Struct, frozen=True, tag_field="type", tag=str.lower):
    pass


class DiskInfo(_Struct, frozen=True):
    """A COLO disk as the asking side has it.

    :ivar vdev: its virtual device, ``xvda``.
    :ivar export: its ``colo-export``.
    :ivar length: bytes.
    """

    vdev: Name
    export: Name
    length: Whole


class Hello(_Message, frozen=True, kw_only=True):
    """The first message: which domain, and how the asking side sees it.

    :ivar uuid: the domain's, in small letters; domids differ between hosts.
    :ivar generation: of the asking side's record.
    :ivar session: the replication session that its QEMU is in.
    :ivar diverged: its record says that it has replicated before, or took over.
    """

    version: int = VERSION
    uuid: Uuid
    name: Name
    generation: Whole
    session: Session | None = None
    diverged: bool = False
    disks: Annotated[tuple[DiskInfo, ...], Meta(max_length=DISKS_MAX)] = ()


class Prepare(_Message, frozen=True):
    """Serve the disks for this new session.

    :ivar assume_equal: an operator says that the disks are equal; nothing will be copied.
    """

    session: Session
    assume_equal: bool = False


class Start(_Message, frozen=True):
    """The disks are equal and the guest is paused: begin to replicate."""

    session: Session


class Checkpoint(_Message, frozen=True):
    """Look for errors, then take the checkpoint of this number, counted from 1 in the session."""

    session: Session
    number: Whole


class Detach(_Message, frozen=True):
    """The session is over; so is what a primary that never came back has left, where it is None."""

    session: Session | None


class Ping(_Message, frozen=True):
    """Are you there?"""


class Welcome(_Message, frozen=True, kw_only=True):
    """The answer to hello: how the answering side sees the domain.

    :ivar state: its state word, as in ``/libxl/<domid>/colo/state``.
    :ivar in_sync: its disks hold a checkpoint of the primary.
    :ivar host: where its NBD server is or will be.
    :ivar encrypted: the NBD server wants TLS.
    """

    generation: Whole
    state: str
    session: Session | None = None
    in_sync: bool = False
    host: Name
    port: Port
    encrypted: bool


class Done(_Message, frozen=True):
    """It is done."""


class Refusal(_Message, frozen=True):
    """It is not done; made by :func:`refusal`.

    :ivar reason: for people.
    :ivar generation: of the refusing side, where that is why.
    """

    kind: RefusalKind
    reason: str
    generation: Whole | None = None


Request = Hello | Prepare | Start | Checkpoint | Detach | Ping
Reply = Welcome | Done | Refusal
KINDS: tuple[str, ...] = get_args(RefusalKind)

_REASON_MAX = 2000


class _Opened(_Struct, frozen=True):
    id: Whole
    message: Hello


class _Requested(_Struct, frozen=True):
    id: Whole
    message: Request


class _Replied(_Struct, frozen=True):
    id: Whole
    message: Reply


class _AnyHello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    version: int


class _AnyOpening(msgspec.Struct, frozen=True):
    """What the first line is in every version."""

    id: Whole
    message: _AnyHello


_ENCODER = msgspec.json.Encoder()
_OPENING = msgspec.json.Decoder(_AnyOpening)
_HELLO = msgspec.json.Decoder(_Opened)
_REQUEST = msgspec.json.Decoder(_Requested)
_REPLY = msgspec.json.Decoder(_Replied)
_D = TypeVar("_D", _AnyOpening, _Opened, _Requested, _Replied)


def refusal(kind: RefusalKind, reason: str, generation: int | None = None) -> Refusal:
    """Return a refusal that can be sent, whatever the reason quotes and however long it is."""
    text = reason.encode(errors="backslashreplace").decode()
    return Refusal(kind, text[:_REASON_MAX], generation)


def encode(number: int, message: Request | Reply) -> bytes:
    """Return the line of a message.

    :raises LinkProtocolError: it is too long, or holds what no text can.
    """
    try:
        line = _ENCODER.encode({"id": number, "message": message})
    except UnicodeEncodeError as error:
        raise LinkProtocolError(f"{type(message).__name__} can't be sent: {error}") from None
    if len(line) > LINE_MAX:
        raise LinkProtocolError(
            f"{type(message).__name__} of {len(line)} bytes; a line has at most {LINE_MAX}"
        )
    return line + b"\n"


def decode_opening(line: bytes) -> tuple[int, Hello | Refusal]:
    """Return the id of the first line, and its hello or what to answer to another version's.

    :raises LinkProtocolError: it is no hello.
    """
    opening = _decode(_OPENING, line)
    if opening.message.version != VERSION:
        theirs = opening.message.version
        return opening.id, refusal(
            "version",
            f"this host speaks version {VERSION} of the link, not {theirs}: install the same "
            "xencolo on both hosts",
        )
    return opening.id, _decode(_HELLO, line).message


def decode_request(line: bytes) -> tuple[int, Request]:
    """Return a request's id and itself.

    :raises LinkProtocolError: it is none.
    """
    found = _decode(_REQUEST, line)
    return found.id, found.message


def decode_reply(line: bytes) -> tuple[int, Reply]:
    """Return the id of the request that is answered, and the answer.

    :raises LinkProtocolError: it is none.
    """
    found = _decode(_REPLY, line)
    return found.id, found.message


def _decode(decoder: msgspec.json.Decoder[_D], line: bytes) -> _D:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocolError(f"{line[:120]!r} is no message: {error}") from None
