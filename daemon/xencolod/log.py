"""The log: structlog set up once, and the one way to write to it."""

import logging
import os
import sys
import time
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from xencolod.events import CATALOGUE

Logger = FilteringBoundLogger

# sd-daemon(3): systemd takes the priority of a line from this prefix.
_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>"}
#: Seconds between two lines about connections that can't be accepted; trio tries ten times a second.
_QUIET = 10.0
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
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger()
    accepting = logging.getLogger("trio.serve_listeners")
    accepting.handlers, accepting.propagate = [_Accepting(logger)], False
    return logger
