"""Devices added and removed at once: how long until xencolod has seen them all, and what it keeps of them.

The time is that from the first write to the last event in the log, so it holds what xenstored takes for
the writes; that grows with what the store holds (its free list), which no reader can help.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import trio

from tests.bench.daemon import Daemon
from tests.bench.store import DEVICES, DISKS_PER_DOMAIN, crowd_seen
from tests.bench.table import Row
from tests.rigs import Server, start_xenstored
from xencolo import requests
from xencolo.wire import Op
from xencolod.asks import demand
from xencolod.xenstore import Client, open_client

COUNTS = (DEVICES // 100, DEVICES // 10, DEVICES)
#: From one count to the next: linear growth of the time for each device.
GROWTH = 10.0
MEMORY = 4096


class Settled:
    """Seconds for each device, and bytes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.times: dict[str, float] = {}
        self.bytes = 0.0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = perf_counter()
        yield
        self.times[what] = (perf_counter() - began) / self.count


async def _remove(client: Client, domids: range) -> None:
    for domid in domids:
        doomed = (f"/local/domain/0/backend/qdisk/{domid}", f"/libxl/{domid}/device")
        batch = [requests.rm(path) for path in (*doomed, f"/local/domain/{domid}/device")]
        await client.transaction(partial(demand, batch=batch, absent_ok=[Op.RM]))


async def _settle(server: Server, daemon: Daemon, count: int) -> Settled:
    settled, domids = Settled(count), range(1, count // DISKS_PER_DOMAIN + 1)
    before = daemon.rss
    async with open_client(server.socket, connections=4, timeout=60) as client:
        for what, change, event in (
            ("added", crowd_seen, "device.found"),
            ("removed", _remove, "device.gone"),
        ):
            with settled.timed(what):
                await change(client, domids)
                await trio.to_thread.run_sync(daemon.wait_events, event, count)
            if what == "added":
                settled.bytes = (daemon.rss - before) / count
    return settled


def run(directory: Path) -> list[Row]:
    """Compare each count with the one before it."""
    results = []
    for count in COUNTS:
        with (
            start_xenstored(directory / f"store{count}") as server,
            Daemon(directory / f"daemon{count}", server.socket) as daemon,
        ):
            results.append(trio.run(_settle, server, daemon, count))
    rows = []
    for few, many in itertools.pairwise(results):
        for what, seconds in many.times.items():
            name = f"{many.count} devices {what}, each"
            rows.append(
                Row(
                    name,
                    seconds,
                    f"{few.count}, each, times {GROWTH:g}",
                    few.times[what] * GROWTH,
                    1,
                )
            )
    last = results[-1]
    return [
        *rows,
        Row(f"kept of each of {last.count}", last.bytes, "allowed", MEMORY, 1, unit="bytes"),
    ]
