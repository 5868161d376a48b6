"""The log: structlog set up once, and the one way to write to it."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from xencolod.events import CATALOGUE

Logger = FilteringBoundLogger

# sd-daemon(3): systemd takes the priority of a line from this prefix.
_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>"}
#: Seconds between two lines about connections that can't be accepted; trio tries ten times a second.
_QUIET = 10.0
#: A full disk, a pipe that is full and may not be waited for, a reader or a terminal that is gone.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EPIPE, errno.EIO}
_BOUND = frozenset({"domid", "devid", "vdev"})


def emit(logger: Logger, name: str, /, **fields: object) -> None:
    """Log an event of the catalogue, at the level that the catalogue gives it.

    :raises KeyError: there is no such event.
    :raises TypeError: its fields are others.
    """
    event = CATALOGUE[name]
    if unknown := fields.keys() - _BOUND - set(event.fields):
        raise TypeError(f"event {name} has no field {', '.join(sorted(unknown))}")
    getattr(logger, event.level)(name, **fields)


def is_journal(stream: TextIO, environment: dict[str, str]) -> bool:
    """Tell whether the stream goes to the journal: JOURNAL_STREAM holds its device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _has_descriptor(out: TextIO) -> bool:
    try:
        return out.fileno() >= 0
    except OSError:
        return False


def _printable(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Keep control characters of a guest's making from the terminal and from forging lines."""
    for key, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            fields[key] = repr(value)
    return fields


def _prefix_priority(_logger: WrappedLogger, method: str, line: EventDict | str) -> str:
    return f"{_PRIORITIES.get(method, '')}{line}"


class _Accepting(logging.Handler):
    """Logs as an event what trio says of connections that can't be accepted: not each, and no traceback."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger
        self._again_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take what trio says."""
        if time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + _QUIET
            emit(self._logger, "daemon.exhausted", error=record.getMessage())


class _Lines:
    """Writes the lines unbuffered and each whole; what can't be written is lost, and ends nothing."""

    def __init__(self, out: TextIO, on_room: Callable[[int], None]) -> None:
        self._out = out
        self._on_room = on_room
        self._rest = b""  # of a line that there was not room enough for
        self._lost = 0

    def msg(self, line: str) -> None:
        """Write a line, or lose it.

        :raises OSError: it can't be written for another reason.
        """
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        self._rest = self._write(self._rest)
        if self._rest:
            self._lost += 1
            return
        self._rest = self._write(data)
        if self._rest == data:
            self._rest = b""
            self._lost += 1
        elif self._lost:
            lost, self._lost = self._lost, 0
            self._on_room(lost)

    def _write(self, data: bytes) -> bytes:
        """Write what there is room for; return the rest."""
        while data:
            try:
                data = data[os.write(self._out.fileno(), data) :]
            except OSError as error:
                if error.errno not in _UNWRITABLE:
                    raise
                return data
        return data

    debug = info = warning = error = msg


def configure(
    form: str | None = None, *, stream: TextIO | None = None, level: str = "info"
) -> Logger:
    """Set structlog up and return the logger.

    :param form: ``json`` (one object a line) or ``console`` (human); by default console on a terminal.
    :param stream: stdout by default.
    :param level: the lowest that is written.
    """
    out = stream or sys.stdout
    console = form == "console" or (form is None and out.isatty())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        processors += [_printable, structlog.dev.ConsoleRenderer(colors=out.isatty())]
    else:
        # JSON escapes control characters, and json.dumps all that is not ASCII.
        processors.append(structlog.processors.JSONRenderer(default=str))
    if is_journal(out, dict(os.environ)):
        processors.append(_prefix_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda: writer,
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger()
    writer: Any = structlog.PrintLogger(out)
    if _has_descriptor(out):
        writer = _Lines(out, lambda lost: emit(logger, "log.full", lines=lost))
    accepting = logging.getLogger("trio.serve_listeners")
    accepting.handlers, accepting.propagate = [_Accepting(logger)], False
    return logger
