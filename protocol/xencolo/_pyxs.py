"""The one door to pyxs: its exceptions and its discovery of the socket, with types.

pyxs ships no annotations, so every name is given one here and nothing else imports pyxs.
"""

from typing import TYPE_CHECKING

from pyxs.connection import _get_unix_socket_path

if TYPE_CHECKING:

    class PyXSError(Exception):
        """Base class of everything pyxs raises."""

    class InvalidPath(ValueError, PyXSError):
        """The path has a character, a length or a form that xenstore refuses."""

    # The name is pyxs's.
    class ConnectionError(PyXSError):  # noqa: A001
        """The socket failed."""

    class UnexpectedPacket(ConnectionError):
        """The answer does not fit what was asked."""

else:
    from pyxs.exceptions import (
        ConnectionError,  # noqa: A004
        InvalidPath,
        PyXSError,
        UnexpectedPacket,
    )

__all__ = [
    "ConnectionError",
    "InvalidPath",
    "PyXSError",
    "UnexpectedPacket",
    "default_socket",
]


def default_socket() -> str:
    """Return xenstored's socket as libxenstore finds it: XENSTORED_PATH, XENSTORED_RUNDIR, /run."""
    path: str = _get_unix_socket_path()
    return path
