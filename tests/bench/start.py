"""How long xencolod takes to be ready, as systemd sees it."""

import statistics
from pathlib import Path

import trio

from tests.bench.daemon import Daemon
from tests.bench.store import DISKS_PER_DOMAIN, prepare
from tests.bench.table import Row
from tests.rigs import Server, start_xenstored
from xencolod.xenstore import open_client

DOMAINS = 250
ROUNDS = 5
EMPTY, FULL = 0.5, 1.0


def _ready(directory: Path, server: Server) -> float:
    times = []
    for number in range(ROUNDS):
        with Daemon(directory / f"daemon{number}", server.socket) as daemon:
            times.append(daemon.ready)
    return statistics.median(times)


async def _fill(server: Server, colo: bool) -> None:
    async with open_client(server.socket, connections=4, timeout=60) as client:
        await prepare(client, range(1, DOMAINS + 1), colo=colo)


def run(directory: Path) -> list[Row]:
    """Compare with what is allowed."""
    with start_xenstored(directory / "empty") as server:
        rows = [Row("ready, empty store", _ready(directory / "e", server), "allowed", EMPTY, 1)]
    for name, colo, target in (("plain", False, 1.0), ("COLO", True, None)):
        with start_xenstored(directory / name) as server:
            trio.run(_fill, server, colo)
            what = f"ready, {DOMAINS * DISKS_PER_DOMAIN} {name} disks"
            seconds = _ready(directory / f"{name}-daemon", server)
            rows.append(Row(what, seconds, "allowed", FULL, target))
    return rows
