"""The xenstore wire format: encode, an incremental decoder, limits, the operations.

Source: Xen's ``xen/include/public/io/xs_wire.h`` and ``docs/misc/xenstore.txt``. A message is a
header of four 32-bit numbers in the machine's byte order (type, request id, transaction id, length)
and a payload.
"""

import errno
import re
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from xencolo.errors import PathError, WireError

PAYLOAD_MAX = 4096
#: What a client had better take: oxenstored answers DIRECTORY on a socket in one message, however
#: long, and knows no DIRECTORY_PART.
REPLY_MAX = 1 << 22
ABS_PATH_MAX = 3072
REL_PATH_MAX = 2048
#: Request and transaction ids are 32 bits wide.
ID_MASK = 0xFFFF_FFFF

HEADER = struct.Struct("=IIII")
_HEADER_SIZE = HEADER.size


class Op(IntEnum):
    """The operations of today's xenstore (xs_wire.h); pyxs has those up to SET_TARGET."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


_OPS = frozenset(Op)

#: The errors that xenstored names in an ERROR message, in the order of xs_wire.h.
ERRNOS: dict[bytes, int] = {
    name.encode(): getattr(errno, name)
    for name in (
        *("EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO"),
        *("ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM"),
    )
}
ERROR_NAMES: dict[int, bytes] = {number: name for name, number in ERRNOS.items()}
# Oxenstored has a name of its own, which xs_wire.h has not, for what is ENOSPC in the C xenstored.
ERRNOS[b"EQUOTA"] = errno.ENOSPC


class Packet(NamedTuple):
    """One message; ``op`` is a plain int because making an enum costs more than all the rest."""

    op: int
    rq_id: int
    tx_id: int
    payload: bytes


def encode(op: int, rq_id: int, tx_id: int, payload: bytes) -> bytes:
    """Return the bytes of one message.

    :raises WireError: the payload is longer than 4096 bytes, or the operation is none.
    """
    if op not in _OPS:
        raise WireError(f"operation {op} is none of xenstore's")
    if len(payload) > PAYLOAD_MAX:
        raise WireError(f"{Op(op).name}: payload of {len(payload)} bytes, {PAYLOAD_MAX} at most")
    return HEADER.pack(op, rq_id, tx_id, len(payload)) + payload


class Decoder:
    """Turns bytes, however they are split, into messages.

    After a :exc:`WireError` the stream has no more message boundaries: close the connection.

    :param any_op: let unknown operations through; a server answers them with ENOSYS.
    :param payload_max: bytes; a client of oxenstored needs ``REPLY_MAX``.
    """

    __slots__ = ("_any_op", "_buffer", "_payload_max")

    def __init__(self, *, any_op: bool = False, payload_max: int = PAYLOAD_MAX) -> None:
        self._any_op = any_op
        self._payload_max = payload_max
        self._buffer = b""

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished message are held (at most 16 and the limit)."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Packet]:
        """Take bytes, return the messages that they complete, in order.

        :raises WireError: an unknown operation or a length over the limit (4096); nothing after it
            can be read.
        """
        buffer = self._buffer + data if self._buffer else data
        packets = []
        start, end = 0, len(buffer)
        while end - start >= _HEADER_SIZE:
            op, rq_id, tx_id, length = HEADER.unpack_from(buffer, start)
            if length > self._payload_max or (op not in _OPS and not self._any_op):
                raise WireError(
                    f"header {buffer[start : start + _HEADER_SIZE].hex()} is no xenstore message: "
                    f"type {op}, {length} bytes"
                )
            stop = start + _HEADER_SIZE + length
            if stop > end:
                break
            packets.append(Packet(op, rq_id, tx_id, buffer[start + _HEADER_SIZE : stop]))
            start = stop
        self._buffer = buffer[start:]
        return packets


_PATH = re.compile(r"[A-Za-z0-9\-/_@]+", re.ASCII)


def check_path(path: str) -> str:
    """Return the path if xenstored would take it.

    Rules of ``docs/misc/xenstore.txt``: letters, digits and ``-/_@``; no empty component and no
    ``/`` at the end; 3072 bytes at most, 2048 if it does not begin with ``/``.

    :raises PathError: with the rule that is broken.
    """
    limit = ABS_PATH_MAX if path.startswith("/") else REL_PATH_MAX
    if not _PATH.fullmatch(path):
        raise PathError(f"xenstore path {path[:80]!r}: only letters, digits and -/_@ are allowed")
    if len(path) > limit:
        raise PathError(f"xenstore path {path[:80]!r}…: {len(path)} bytes, {limit} at most")
    if "//" in path or (path != "/" and path.endswith("/")):
        raise PathError(f"xenstore path {path[:80]!r}: an empty component")
    return path


_SPECIAL_WATCHES = ("@introduceDomain", "@releaseDomain")


def check_watch_path(path: str) -> str:
    """Return the path if it can be watched: a path, or ``@introduceDomain``, ``@releaseDomain``.

    :raises PathError: with the rule that is broken.
    """
    if path.startswith("@") and path not in _SPECIAL_WATCHES:
        raise PathError(f"watch {path!r}: the special ones are {' and '.join(_SPECIAL_WATCHES)}")
    return check_path(path)


def strings(*parts: str | bytes) -> bytes:
    """Return the parts as NUL-terminated strings, one after the other."""
    return b"".join((p.encode() if isinstance(p, str) else p) + b"\0" for p in parts)


def split(payload: bytes) -> list[bytes]:
    """Return the NUL-terminated strings of a payload; a last one without its NUL counts too."""
    parts = payload.split(b"\0")
    if parts and not parts[-1]:
        parts.pop()
    return parts


class Permission(NamedTuple):
    """One entry of a node's permissions: the first names the owner and what all others may do.

    :ivar access: ``n`` none, ``r`` read, ``w`` write, ``b`` both.
    """

    access: str
    domid: int

    def __str__(self) -> str:
        return f"{self.access}{self.domid}"

    @property
    def writes(self) -> bool:
        """Whether the entry lets somebody write."""
        return self.access in "wb"


_PERMISSION = re.compile(r"([nrwb])(\d{1,5})", re.ASCII)


def parse_permissions(payload: bytes) -> tuple[Permission, ...]:
    """Return the permissions of a GET_PERMS answer.

    :raises WireError: it is not a list of permissions.
    """
    matches = [_PERMISSION.fullmatch(part.decode("ascii", "replace")) for part in split(payload)]
    permissions = tuple(Permission(m[1], int(m[2])) for m in matches if m)
    if not permissions or len(permissions) != len(matches):
        raise WireError(f"permissions {payload[:80]!r}: not a list like n0, r5")
    return permissions


def writers(permissions: Iterable[Permission]) -> tuple[set[int], bool]:
    """Return the domains that may write (domid 0 always may), and whether any domain may.

    The owner always may; the first entry's letter is for every domain that has no entry of its own.
    """
    owner, *others = permissions
    return {owner.domid, *(p.domid for p in others if p.writes)}, owner.writes
