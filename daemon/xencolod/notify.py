"""What systemd is told: readiness, status, reloads and the watchdog (sd_notify(3))."""

import os
import socket
import time
from collections.abc import Mapping

from xencolo.errors import ConfigError

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""The environment of this service alone: leave it out of what QEMU inherits."""

_STATES = ("READY", "RELOADING", "STOPPING")


class Notifier:
    """The service manager's socket; without one, nothing is done.

    No method blocks or raises. Each returns whether systemd has it all: what could not be sent,
    because the socket is full or systemd is just being replaced, goes out with the next message,
    the pings of the watchdog at the latest.

    :ivar watchdog_interval: seconds between two calls of `watchdog`, half of what systemd allows;
        None where no watchdog waits for this process.
    """

    def __init__(self, address: bytes | None, watchdog_interval: float | None = None) -> None:
        self.watchdog_interval = watchdog_interval
        self._address = address
        self._unsent: dict[str, str] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Notifier":
        """Take `VARIABLES` from the environment.

        :raises ConfigError: one of them holds what systemd never writes.
        """
        name = environ.get("NOTIFY_SOCKET")
        if not name:
            return cls(None)
        if name[0] not in "/@":
            raise ConfigError(f"NOTIFY_SOCKET={name}: neither a path nor an abstract socket")
        # "@" stands for the NUL that begins an abstract name (systemd.exec(5), unix(7)).
        address = os.fsencode(name if name[0] == "/" else f"\0{name[1:]}")
        return cls(address, _watchdog_interval(environ))

    def ready(self, status: str) -> bool:
        """The start or the reload is done; ``status`` is a sentence for ``systemctl status``."""
        return self._send(READY="1", STATUS=status)

    def status(self, text: str) -> bool:
        """What the daemon is doing, in a sentence."""
        return self._send(STATUS=text)

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it. ``Type=notify-reload`` (systemd 253) wants the time."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send(RELOADING="1", MONOTONIC_USEC=str(now))

    def stopping(self) -> bool:
        """The daemon ends."""
        return self._send(STOPPING="1")

    def watchdog(self) -> bool:
        """The daemon is alive: to be called each `watchdog_interval`."""
        return self._send(WATCHDOG="1")

    def _send(self, **fields: str) -> bool:
        if self._address is None:
            return True
        if any(state in fields for state in _STATES):
            # The states exclude each other; only the newest is still true.
            for state in _STATES:
                self._unsent.pop(state, None)
        self._unsent |= fields
        lines = (f"{key}={' '.join(value.splitlines())}" for key, value in self._unsent.items())
        message = "\n".join(lines).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(message, self._address)
            except OSError:
                return False
        self._unsent.clear()
        return True


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    usec, pid = environ.get("WATCHDOG_USEC"), environ.get("WATCHDOG_PID")
    if not usec or (pid and pid != str(os.getpid())):
        return None
    if not (usec.isascii() and usec.isdigit() and int(usec)):
        raise ConfigError(f"WATCHDOG_USEC={usec}: no positive number of microseconds")
    return int(usec) / 2 / 1_000_000
