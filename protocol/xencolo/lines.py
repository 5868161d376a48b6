"""Lines out of a stream of bytes: the frames of QMP and of the link between two daemons."""

from xencolo.errors import XencoloError


class LineFramer:
    """Splits a stream into lines, however it comes.

    :param limit: bytes that a line may have, its end not counted.
    :param error: what is raised past the limit.
    """

    __slots__ = ("_buffer", "_error", "_limit")

    def __init__(self, limit: int, error: type[XencoloError]) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._error = error

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the lines that they complete; empty ones are left out.

        :raises XencoloError: a line over the limit, as the class that was given.
        """
        first, *lines = data.split(b"\n")
        self._buffer += first
        if max(map(len, lines), default=0) > self._limit or len(self._buffer) > self._limit:
            raise self._error(f"a line of over {self._limit} bytes")
        if not lines:
            return []
        complete = [bytes(self._buffer), *lines[:-1]]
        self._buffer = bytearray(lines[-1])
        return [line for line in complete if line.strip()]
