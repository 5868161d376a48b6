"""The one door to pyxs: its exceptions, its numbers and its discovery of the socket, with types.

pyxs ships no annotations, so every name is given one here and nothing else imports pyxs.
"""

from typing import TYPE_CHECKING

from pyxs import _internal
from pyxs.connection import _get_unix_socket_path

if TYPE_CHECKING:

    class PyXSError(Exception):
        """Base class of everything pyxs raises."""

    class InvalidOperation(ValueError, PyXSError):
        """The operation is not one of xenstore's."""

    class InvalidPayload(ValueError, PyXSError):
        """The payload is longer than 4096 bytes."""

    class InvalidPath(ValueError, PyXSError):
        """The path has a character, a length or a form that xenstore refuses."""

    class InvalidPermission(ValueError, PyXSError):
        """The permission is not a letter of w, r, b, n and a domid."""

    # The name is pyxs's.
    class ConnectionError(PyXSError):  # noqa: A001
        """The socket failed."""

    class UnexpectedPacket(ConnectionError):
        """The answer does not fit what was asked."""

else:
    from pyxs.exceptions import (
        ConnectionError,  # noqa: A004
        InvalidOperation,
        InvalidPath,
        InvalidPayload,
        InvalidPermission,
        PyXSError,
        UnexpectedPacket,
    )

__all__ = [
    "OPERATIONS",
    "ConnectionError",
    "InvalidOperation",
    "InvalidPath",
    "InvalidPayload",
    "InvalidPermission",
    "PyXSError",
    "UnexpectedPacket",
    "default_socket",
]

#: pyxs's numbers of the operations by name; it stops at SET_TARGET (19) and still has RESTRICT.
OPERATIONS: dict[str, int] = dict(_internal.Op._asdict())


def default_socket() -> str:
    """Return xenstored's socket as libxenstore finds it: XENSTORED_PATH, XENSTORED_RUNDIR, /run."""
    path: str = _get_unix_socket_path()
    return path
