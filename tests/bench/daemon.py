"""xencolod as a process of its own, and what it takes of the machine."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Self

from tests.rigs.servers import RigError
from xencolod import keys

_PROGRAM = [sys.executable, "-c", "from xencolod.cli import daemon_main; daemon_main()"]
#: An installed xencolod has its bytecode; one of the clone makes it at the first start, if it may.
_INSTALLED = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
#: Seconds for anything to come about.
DEADLINE = 240.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def deadline(seconds: int = ceil(DEADLINE)) -> Iterator[None]:
    """Break off what takes longer, in the main thread, even if it loops.

    :raises RigError: it took longer.
    """

    def late(*_: object) -> None:
        raise RigError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Daemon:
    """A running xencolod.

    :ivar ready: seconds from its start to READY=1.
    :ivar log: where its events are.
    """

    def __init__(self, directory: Path, xenstored: Path, *, linked: bool = False) -> None:
        """Start it and wait until it is ready; ``linked``: with keys, so that it does not look for them."""
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "events"
        config = directory / "xencolod.toml"
        places = {name: directory / name for name in ("runtime", "log", "state")}
        config.write_text(
            "[daemon]\n"
            + "".join(f'{name}_directory = "{path}"\n' for name, path in places.items())
            + f'[link]\nlisten = "127.0.0.1"\nport = {free_port()}\nkeys = "{directory}/keys.pem"\n'
        )
        if linked:
            keys.make(directory / "keys.pem")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            notify = directory / "notify"
            notify.unlink(missing_ok=True)
            manager.bind(str(notify))
            began = time.perf_counter()
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*_PROGRAM, "--config", str(config), "--xenstore", str(xenstored)],
                    stdout=log,
                    env=_INSTALLED | {"NOTIFY_SOCKET": str(notify)},
                )
            while b"READY=1" not in self._told(manager):
                pass
            self.ready = time.perf_counter() - began

    def _told(self, manager: socket.socket) -> bytes:
        if not select.select([manager], [], [], DEADLINE)[0]:
            raise RigError(f"xencolod is not ready after {DEADLINE:g} s:\n{self.log.read_text()}")
        return manager.recv(4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)

    def wait_events(self, name: str, count: int) -> None:
        """Wait for so many events of a name."""
        needle, rest, seen = f'"event": "{name}"'.encode(), b"", 0
        end = time.monotonic() + DEADLINE
        with self.log.open("rb") as log:
            while seen < count:
                if time.monotonic() > end:
                    raise RigError(f"{seen} of {count} events {name} after {DEADLINE:g} s")
                whole, _, rest = (rest + log.read()).rpartition(b"\n")
                seen += whole.count(needle)
                time.sleep(0.005)

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        return self._status("VmRSS:") * 1024

    @property
    def peak(self) -> int:
        """The most resident memory so far, in bytes."""
        return self._status("VmHWM:") * 1024

    def _status(self, key: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))

    def _tasks(self, name: str) -> list[str]:
        tasks = Path(f"/proc/{self._process.pid}/task")
        return [(task / name).read_text() for task in tasks.iterdir()]

    @property
    def cpu(self) -> float:
        """Seconds of processor time that its threads took."""
        return sum(int(line.split()[0]) for line in self._tasks("schedstat")) / 1e9

    @property
    def wakeups(self) -> int:
        """How often its threads were put to a processor."""
        return sum(int(line.split()[2]) for line in self._tasks("schedstat"))
