"""From a device's commit to its published state, alone and among 10,000 others; and those at rest.

Another client, pyxs, commits a COLO disk whose image is missing, and sees that published, without a QEMU.
A bare pyxs Monitor (``bare.py``) is measured in the same store: it makes the same reads, says the same in the
same way, and withdraws it. What one that writes a single node takes is told too: a new node costs xenstored a
walk through the free pieces of its memory, of which there are more the more its store holds.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyxs
import trio

from tests.bench.client import Call, as_call, perform
from tests.bench.daemon import Daemon, deadline
from tests.bench.store import DEVICES, DISKS_PER_DOMAIN, colo_disk, crowd, homes
from tests.bench.table import Row, percentile
from tests.rigs import Server, start_xenstored
from xencolo import requests
from xencolo.nodes import add_requests
from xencolo.paths import DevicePaths
from xencolod.xenstore import open_client

OTHERS = DEVICES
#: Devices that are committed, one after the other, for each figure.
COMMITS = 100
#: Domains whose disks are committed come after the others.
FIRST = 20_000
#: Seconds until a daemon is at rest (trio's threads wait ten for work before they end), then to look at it,
#: and what it may take in a minute of them.
CALM, REST, IDLE = 12.0, 30.0, 0.1
_SAME = "a bare Monitor"


@contextmanager
def bare(server: Server, what: str) -> Iterator[None]:
    """Run the bare Monitor, which writes all nodes or one."""
    command = [sys.executable, "-m", "tests.bench.bare", str(server.socket), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


class Committer:
    """Another client, which commits disks and waits to see that they were seen."""

    def __init__(self, server: Server) -> None:
        self._path = str(server.socket)
        self._next = FIRST

    def latencies(self, told: Callable[[DevicePaths], str], count: int = COMMITS) -> list[float]:
        """Return how long each takes until its node is there; ``told`` says which that is."""
        domids = range(self._next, self._next + count)
        self._next += count
        with deadline(), pyxs.Client(unix_socket_path=self._path) as client:
            perform(client, [as_call(request) for request in homes(domids)])
            return [self._latency(client, domid, told) for domid in domids]

    def _latency(
        self, client: pyxs.Client, domid: int, told: Callable[[DevicePaths], str]
    ) -> float:
        disk = colo_disk(domid, 0)
        paths = DevicePaths(domid, disk.devid)
        node = told(paths).encode()
        calls = [as_call(request) for request in add_requests(disk, paths)]
        # A monitor for each: pyxs's loops for ever over an event about what it does not watch any more.
        with client.monitor() as monitor:
            monitor.watch(node, b"%d" % domid)
            events = monitor.wait()
            next(events)
            self._commit(client, calls)
            began = time.perf_counter()
            while not client.exists(node):
                next(events)
            took = time.perf_counter() - began
        gone = (paths.backend, paths.frontend, paths.libxl)
        perform(client, [as_call(requests.rm(path)) for path in gone])
        return took

    def _commit(self, client: pyxs.Client, calls: Sequence[Call]) -> None:
        """Write a disk, from the start again after a conflict with what is withdrawn of the one before."""
        while True:
            client.transaction()
            perform(client, calls)
            if client.commit():
                return


def by_daemon(paths: DevicePaths) -> str:
    """Return the node that xencolod publishes a disk's state in."""
    return f"/libxl/{paths.domid}/colo/device/{paths.devid}/state"


def by_bare(paths: DevicePaths) -> str:
    """Return the node that the bare Monitor writes."""
    return f"/libxl/{paths.domid}/bare"


async def _crowd(server: Server) -> None:
    async with open_client(server.socket, connections=4, timeout=60) as client:
        await crowd(client, range(1, OTHERS // DISKS_PER_DOMAIN + 1))


def _latency(server: Server, committer: Committer, name: str) -> list[Row]:
    with bare(server, "node"):
        least = committer.latencies(by_bare)
    with bare(server, "nodes"):
        theirs = committer.latencies(by_daemon)
    with Daemon(server.directory / f"daemon-{len(name)}", server.socket) as daemon:
        ours = committer.latencies(by_daemon)
        del daemon
    what = f"commit to published, {{}}{name}"
    median, most = what.format("median"), what.format("99 %")
    return [
        Row(median, statistics.median(ours), _SAME, statistics.median(theirs), 1),
        Row(most, percentile(ours, 99), _SAME, percentile(theirs, 99), 1),
        Row(median, statistics.median(ours), "one that writes one node", statistics.median(least)),
    ]


def _idle(server: Server) -> list[Row]:
    with Daemon(server.directory / "idle", server.socket, linked=True) as daemon:
        daemon.wait_events("device.found", OTHERS)
        time.sleep(CALM)
        cpu, wakeups = daemon.cpu, daemon.wakeups
        time.sleep(REST)
        cpu, wakeups = daemon.cpu - cpu, daemon.wakeups - wakeups
    per_minute = cpu * 60 / REST
    return [
        Row(f"at rest with {OTHERS}, CPU in a minute", per_minute, "allowed", IDLE, 1),
        Row(
            f"at rest with {OTHERS}, wake-ups in {REST:g} s",
            wakeups,
            "none but rescans",
            1,
            1,
            unit="",
        ),
    ]


def run(directory: Path) -> list[Row]:
    """Compare with a bare Monitor, and 10,000 devices with none."""
    with start_xenstored(directory / "store") as server:
        committer = Committer(server)
        alone = _latency(server, committer, ", alone")
        trio.run(_crowd, server)
        among = _latency(server, committer, f", {OTHERS} others")
        not_worse = [
            Row(row.what, row.ours, "alone, twice", few.ours * 2, 1)
            for few, row in zip(alone[:2], among, strict=False)
        ]
        return [*alone, *among, *not_worse, *_idle(server)]
