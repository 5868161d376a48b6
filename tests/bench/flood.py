"""1,000,000 watch events about one guest's disk: what they cost, and what another guest's disk waits.

No guest can write where xencolod watches; the flood is that of a broken backend or toolstack, and as fast as
xenstored takes it. It is stopped for every other few disks, which are what the rest is compared with: a store
gets slower with each disk that came and went, flood or none.
"""

import multiprocessing
import os
import signal
import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import trio

from tests.bench.crowd import Committer, by_daemon
from tests.bench.daemon import Daemon
from tests.bench.store import prepare
from tests.bench.table import Row
from tests.rigs import Server, start_xenstored
from tests.rigs.servers import RigError
from xencolo import requests
from xencolo.paths import DevicePaths
from xencolo.wire import encode
from xencolod.xenstore import open_client

#: BENCH_EVENTS lowers it, where the whole takes too long.
EVENTS = int(os.environ.get("BENCH_EVENTS", "1_000_000"))
DELAY = 2.0
MEMORY = 16 << 20
#: Requests in one write, and so many answers may be under way.
_TOGETHER = 256
#: Disks while the flood comes, and while it is stopped, in turns.
_DURING, _WITHOUT = 10, 2
#: Seconds after which a flood is given up.
_LONGEST = 900


async def _fill(server: Server) -> None:
    async with open_client(server.socket) as client:
        await prepare(client, [7], colo=False)


class Flood:
    """A client, in a process of its own, that writes a node over and over."""

    def __init__(self, server: Server) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_flood, args=(str(server.socket),), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type:
            self._process.kill()
        self._process.join(_LONGEST)
        if not exc_type and self._process.exitcode != 0:
            raise RigError(f"the flood ended with {self._process.exitcode}")

    @property
    def lasts(self) -> bool:
        """Whether there is more to come."""
        return self._process.is_alive()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the flood; what it has sent is served before anything else comes."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)


def _flood(path: str) -> None:
    request = requests.write(f"{DevicePaths(7, 51712).backend}/hotplug-status", "connected")
    batch = encode(request.op, 0, 0, request.payload) * _TOGETHER
    answers = len(encode(request.op, 0, 0, b"OK\0")) * _TOGETHER
    signal.alarm(_LONGEST)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for _ in range(0, EVENTS, _TOGETHER):
            sock.sendall(batch)
            sock.recv(answers, socket.MSG_WAITALL)


def run(directory: Path) -> list[Row]:
    """Compare a disk's way with and without the flood."""
    with start_xenstored(directory / "store") as server:
        trio.run(_fill, server)
        committer = Committer(server)
        with Daemon(directory / "daemon", server.socket) as daemon:
            committer.latencies(by_daemon)
            before, without, during = daemon.peak, list[float](), list[float]()
            with Flood(server) as flood:
                while flood.lasts:
                    during += committer.latencies(by_daemon, _DURING)
                    with flood.stopped():
                        without += committer.latencies(by_daemon, _WITHOUT)
            grown = daemon.peak - before
    quiet, flooded = map(statistics.median, (without, during))
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
