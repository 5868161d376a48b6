"""What else goes on in a xenstore while something breaks: many small changes that mean nothing."""

import socket
import threading
import time
from itertools import count
from pathlib import Path
from typing import Self

from xencolo import wire


class Load:
    """Writes nodes that the daemon watches, in a thread, whatever becomes of xenstored.

    :param paths: the nodes, in turn.
    :param pause: seconds between two writes.
    :param value: what is written, by default another value each time.
    """

    def __init__(
        self, path: Path, paths: list[str], *, pause: float = 0.001, value: str | None = None
    ) -> None:
        self._path = path
        self._paths = paths
        self._pause = pause
        self._value = value
        self._ends = threading.Event()
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._thread = threading.Thread(target=self._run)
        self.written = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ends.set()
        self._goes_on.set()
        self._thread.join()

    def hold(self) -> None:
        """Write nothing for now: the store is being filled."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Write again."""
        self._goes_on.set()

    def _run(self) -> None:
        while not self._ends.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(1)
                    client.connect(str(self._path))
                    self._write(client)
            except OSError:  # xenstored has ended: that is what it is about
                time.sleep(0.01)

    def _write(self, client: socket.socket) -> None:
        for number in count():
            if self._ends.is_set():
                return
            if not self._goes_on.is_set():
                self._goes_on.wait()
                return  # over a new connection
            path = self._paths[number % len(self._paths)]
            payload = wire.strings(path) + (self._value or str(number)).encode()
            client.sendall(wire.encode(wire.Op.WRITE, number % 1000, 0, payload))
            if not client.recv(4096):
                return
            self.written += 1
            time.sleep(self._pause)
