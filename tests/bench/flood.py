"""1,000,000 watch events about one guest's disk: what they cost, and what another guest's disk waits.

No guest can write where xencolod watches; the flood is that of a broken backend or toolstack, and as fast as
xenstored takes it.
"""

import socket
import statistics
import threading
from pathlib import Path
from typing import Self

import trio

from tests.bench.crowd import Committer, by_daemon
from tests.bench.daemon import Daemon
from tests.bench.store import prepare
from tests.bench.table import Row
from tests.rigs import Server, start_xenstored
from xencolo import requests
from xencolo.paths import DevicePaths
from xencolo.wire import encode
from xencolod.xenstore import open_client

EVENTS = 1_000_000
DELAY = 2.0
MEMORY = 16 << 20
#: Requests in one write, and so many answers may be under way.
_TOGETHER = 256


async def _fill(server: Server) -> None:
    async with open_client(server.socket) as client:
        await prepare(client, [7], colo=False)


class Flood:
    """A client that writes a node over and over."""

    def __init__(self, server: Server) -> None:
        self.left = EVENTS
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(server.socket))
        request = requests.write(f"{DevicePaths(7, 51712).backend}/hotplug-status", "connected")
        self._batch = encode(request.op, 0, 0, request.payload) * _TOGETHER
        self._answers = len(encode(request.op, 0, 0, b"OK\0")) * _TOGETHER
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while self.left > 0:
            self._socket.sendall(self._batch)
            missing = self._answers
            while missing:
                missing -= len(self._socket.recv(missing))
            self.left -= _TOGETHER


def run(directory: Path) -> list[Row]:
    """Compare a disk's way with and without the flood."""
    with start_xenstored(directory / "store") as server:
        trio.run(_fill, server)
        committer = Committer(server)
        with Daemon(directory / "daemon", server.socket) as daemon:
            quiet = statistics.median(committer.latencies(by_daemon))
            before, during = daemon.peak, []
            with Flood(server) as flood:
                while flood.left > 0:
                    during += committer.latencies(by_daemon, 10)
            grown = daemon.peak - before
    flooded = statistics.median(during)
    return [
        Row(
            f"commit to published, {EVENTS} events meanwhile",
            flooded,
            "without, twice",
            quiet * DELAY,
            1,
        ),
        Row(f"memory for {EVENTS} events", grown / 2**20, "allowed", MEMORY / 2**20, 1, unit="MiB"),
    ]
