"""Requests to xenstored as values: built and checked here, numbered and sent by a client.

Source: Xen's ``docs/misc/xenstore.txt``. Every builder raises :exc:`~xencolo.errors.PathError` for
a path that xenstored would refuse.
"""

import errno
from collections.abc import Iterable
from typing import NamedTuple

from xencolo.errors import StoreError, WireError
from xencolo.wire import PAYLOAD_MAX, Op, Permission, check_path, check_watch_path, strings


class Request(NamedTuple):
    """One request without its ids."""

    op: int
    payload: bytes

    @property
    def path(self) -> str:
        """The path that is asked for, or the first word of what is."""
        return self.payload.split(b"\0", 1)[0].decode("ascii", "replace")


#: An answer's payload, or the error that xenstored gave instead of it.
Answer = bytes | StoreError


def absent_as_none(answer: Answer) -> bytes | None:
    """Return an answer, with None for ENOENT.

    :raises StoreError: any other error.
    """
    if isinstance(answer, bytes):
        return answer
    if answer.errno == errno.ENOENT:
        return None
    raise answer


def _of_path(op: Op, path: str) -> Request:
    return Request(op, check_path(path).encode() + b"\0")


def read(path: str) -> Request:
    """Ask for a node's value."""
    return _of_path(Op.READ, path)


def directory(path: str) -> Request:
    """Ask for the names below a node; xenstored says E2BIG when they need over 4096 bytes."""
    return _of_path(Op.DIRECTORY, path)


def directory_part(path: str, offset: int) -> Request:
    """Ask for the names below a node from a byte offset on."""
    return Request(Op.DIRECTORY_PART, strings(check_path(path), str(offset)))


def get_permissions(path: str) -> Request:
    """Ask for a node's permissions."""
    return _of_path(Op.GET_PERMS, path)


def below(directory: str, questions: Iterable[tuple[int, str]]) -> list[Request]:
    """Ask for nodes of one directory, whose path is checked once for all of them.

    :param questions: (``Op.READ`` or ``Op.GET_PERMS``, name), an empty name being the directory itself.
        The names are not checked: they come from a table.
    """
    base = check_path(directory)
    return [
        Request(op, f"{base}/{name}\0".encode() if name else f"{base}\0".encode())
        for op, name in questions
    ]


def write(path: str, value: str | bytes) -> Request:
    """Write a node, making it and its parents where they are absent.

    :raises WireError: path and value together are over 4096 bytes.
    """
    data = value.encode() if isinstance(value, str) else value
    payload = check_path(path).encode() + b"\0" + data
    if len(payload) > PAYLOAD_MAX:
        raise WireError(_too_long(path, len(payload)))
    return Request(Op.WRITE, payload)


def writes_below(directory: str, values: Iterable[tuple[str, str]]) -> list[Request]:
    """Write nodes of one directory, whose path is checked once for all of them.

    :param values: (name, value); the names are not checked: they come from a table.
    :raises WireError: path and value of one together are over 4096 bytes.
    """
    base = check_path(directory)
    batch = [Request(Op.WRITE, f"{base}/{name}\0{value}".encode()) for name, value in values]
    for request in batch:
        if len(request.payload) > PAYLOAD_MAX:
            raise WireError(_too_long(request.path, len(request.payload)))
    return batch


def _too_long(path: str, size: int) -> str:
    return f"WRITE {path}: {size} bytes with the path, {PAYLOAD_MAX} at most"


def mkdir(path: str) -> Request:
    """Make an empty node and its parents, unless it is there."""
    return _of_path(Op.MKDIR, path)


def rm(path: str) -> Request:
    """Remove a node and all below it."""
    return _of_path(Op.RM, path)


def set_permissions(path: str, permissions: Iterable[Permission]) -> Request:
    """Set a node's permissions; the first names the owner and what all others may do."""
    return Request(Op.SET_PERMS, strings(check_path(path), *map(str, permissions)))


def watch(path: str, token: str) -> Request:
    """Ask for events of a path and all below it; one comes at once."""
    return Request(Op.WATCH, strings(check_watch_path(path), token))


def unwatch(path: str, token: str) -> Request:
    """Take a watch back."""
    return Request(Op.UNWATCH, strings(check_watch_path(path), token))


TRANSACTION_START = Request(Op.TRANSACTION_START, b"\0")
COMMIT = Request(Op.TRANSACTION_END, b"T\0")
ABORT = Request(Op.TRANSACTION_END, b"F\0")
