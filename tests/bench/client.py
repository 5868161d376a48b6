"""Our client against pyxs's, the same requests to the same real server in one run.

Reading: 1,000 COLO disks of 250 domains are found and reconstructed; pyxs then makes the very requests
that we made, one after the other, as its Client does. Adding: 200 disks of 50 domains, each in one
transaction, several domains at a time where pyxs takes one disk after the other. It is done in a store
that holds nothing else, in the one that holds the 1,000 disks, and there once more one by one.
Targets are for the C xenstored; oxenstored is for information.
"""

import statistics
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyxs
import trio

from tests.bench.store import DISKS_PER_DOMAIN, disks_of, prepare
from tests.bench.table import Row, stopwatch
from tests.rigs import Server, start_oxenstored, start_xenstored
from xencolo import requests
from xencolo.disk import Disk
from xencolo.nodes import add_requests
from xencolo.paths import DevicePaths
from xencolo.requests import Answer, Request
from xencolo.wire import Op, split
from xencolod import devices
from xencolod.asks import demand
from xencolod.xenstore import Client, open_client

DOMAINS = 250
ADDED = 200
CONNECTIONS = 8
READ_TARGET, ADD_TARGET = 6.0, 4.0
ROUNDS = 5
#: The domains whose disks are added come after those that are only read.
FIRST_ADDED = 1000
TRUSTED = devices.trusted_domids(0)


# -- ours ------------------------------------------------------------------------------------------


async def reconstruct(client: Client) -> None:
    found = await devices.find(client, 0, await devices.domids(client, 0))
    read = await devices.read_devices(client, found, TRUSTED)
    good = sum(1 for device in read if device and device.disk and device.is_colo)
    if good != DOMAINS * DISKS_PER_DOMAIN:
        raise SystemExit(f"{good} disks were read, {DOMAINS * DISKS_PER_DOMAIN} are there")


async def add_together(client: Client, wanted: Sequence[tuple[DevicePaths, Disk]]) -> None:
    added = await devices.add_all(client, [(paths.domid, disk) for paths, disk in wanted])
    if added != [paths for paths, _ in wanted]:
        raise SystemExit(f"not all disks were added: {added}")


async def add_one_by_one(client: Client, wanted: Sequence[tuple[DevicePaths, Disk]]) -> None:
    for paths, disk in wanted:
        await devices.add(client, paths.domid, disk)


class Recorder(Client):
    """Our client, noting what it is asked."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.seen: list[Request] = []

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        self.seen += batch
        return await self._client.batch(batch)

    def post(self, batch: Sequence[Request]) -> Callable[[], Awaitable[list[Answer]]]:
        self.seen += batch
        return self._client.post(batch)


# -- pyxs's ----------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A method of pyxs's Client with its arguments, made before the clock starts."""

    method: str
    arguments: tuple[object, ...]


_METHODS = {
    Op.READ: "read",
    Op.DIRECTORY: "list",
    Op.GET_PERMS: "get_perms",
    Op.RM: "delete",
    Op.MKDIR: "mkdir",
}


def as_call(request: Request) -> Call:
    path, _, rest = request.payload.partition(b"\0")
    if request.op == Op.WRITE:
        return Call("write", (path, rest))
    if request.op == Op.SET_PERMS:
        return Call("set_perms", (path, split(rest)))
    return Call(_METHODS[Op(request.op)], (path,))


def perform(client: pyxs.Client, calls: Sequence[Call]) -> None:
    for method, arguments in calls:
        try:
            getattr(client, method)(*arguments)
        except pyxs.PyXSError:
            continue  # absent nodes are part of the work


def add_pyxs(client: pyxs.Client, transactions: Sequence[Sequence[Call]]) -> None:
    for calls in transactions:
        client.transaction()
        perform(client, calls)
        if not client.commit():
            raise SystemExit("pyxs's transaction met a conflict that nobody made")


def calls_to_add(paths: DevicePaths, disk: Disk) -> list[Call]:
    checks = [requests.read(f"/local/domain/{paths.domid}"), requests.read(paths.libxl)]
    return [as_call(request) for request in checks + add_requests(disk, paths)]


# -- measuring -------------------------------------------------------------------------------------


Add = Callable[[Client, Sequence[tuple[DevicePaths, Disk]]], Awaitable[None]]


class Targets(NamedTuple):
    """Ratios to reach; None where it is for information."""

    add_new: float | None = None
    add_full: float | None = None
    read: float | None = None


async def measure_reading(
    client: Client, foreign: pyxs.Client, name: str, target: float | None, rounds: int
) -> Row:
    recorder = Recorder(client)
    await reconstruct(recorder)
    calls = [as_call(request) for request in recorder.seen]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        for _ in range(2):
            with stopwatch(ours):
                await reconstruct(client)
        with stopwatch(theirs):
            perform(foreign, calls)
    disks = DOMAINS * DISKS_PER_DOMAIN
    what = f"read {disks} disks, {len(calls)} requests, {name}"
    return Row(what, statistics.median(ours), "pyxs", statistics.median(theirs), target)


async def measure_adding(
    client: Client, foreign: pyxs.Client, name: str, target: float | None, rounds: int, add: Add
) -> Row:
    domids = range(FIRST_ADDED, FIRST_ADDED + ADDED // DISKS_PER_DOMAIN)
    await demand(client, [requests.mkdir(f"/local/domain/{d}") for d in domids])
    await demand(client, [requests.mkdir(f"/libxl/{d}") for d in domids])
    wanted = disks_of(domids)
    transactions = [calls_to_add(*pair) for pair in wanted]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        with stopwatch(ours):
            await add(client, wanted)
        await forget(client, domids)
        with stopwatch(theirs):
            add_pyxs(foreign, transactions)
        await forget(client, domids)
    return Row(name, statistics.median(ours), "pyxs", statistics.median(theirs), target)


async def forget(client: Client, domids: Sequence[int]) -> None:
    """Remove what was added with the directories made for it, so that each round does the same work."""
    kinds = ("/local/domain/0/backend/qdisk/{}", "/local/domain/{}/device", "/libxl/{}/device")
    await demand(client, [requests.rm(kind.format(d)) for d in domids for kind in kinds])


async def measure(server: Server, name: str, targets: Targets, rounds: int) -> list[Row]:
    async with open_client(server.socket, connections=CONNECTIONS, timeout=60) as client:
        with pyxs.Client(unix_socket_path=str(server.socket)) as foreign:
            adding = partial(measure_adding, client, foreign, rounds=rounds)
            what = f"add {ADDED} disks, {name}"
            results = [await adding(f"{what}, new store", targets.add_new, add=add_together)]
            await prepare(client, range(1, DOMAINS + 1))
            results += [
                await adding(f"{what}, full store", targets.add_full, add=add_together),
                await adding(f"{what}, one by one", None, add=add_one_by_one),
                await measure_reading(client, foreign, name, targets.read, rounds),
            ]
            return results


def run(directory: Path) -> list[Row]:
    """Compare with pyxs."""
    with start_xenstored(directory / "c") as server:
        targets = Targets(ADD_TARGET, ADD_TARGET, READ_TARGET)
        rows = trio.run(measure, server, "xenstored", targets, ROUNDS)
    with start_oxenstored(directory / "o") as server:
        return rows + trio.run(measure, server, "oxenstored", Targets(), 1)
