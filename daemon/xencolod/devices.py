"""Devices in xenstore: find, read, add and remove them, as libxl does."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import trio

from xencolo import requests
from xencolo.device import (
    CLOSED,
    CLOSING,
    LISTINGS,
    Device,
    Listings,
    device_from_answers,
    listing_requests,
    listings,
    read_requests,
)
from xencolo.disk import Backend, Disk, Role
from xencolo.errors import DeviceError, PathError, XencoloError
from xencolo.nodes import add_requests
from xencolo.paths import (
    QDISK,
    DevicePaths,
    backend_root,
    domain_path,
    libxl_domain_path,
    numbers,
    parse_backend,
    parse_devid,
    parse_domid,
)
from xencolo.requests import Answer, absent_as_none
from xencolo.status import role_requests
from xencolo.wire import Op
from xencolod.asks import Asks, Reads, all_done, demand, directories, names_in, read
from xencolod.transaction import Transaction
from xencolod.xenstore import Client

#: Devices whose nodes are asked for together, and how many such parts may wait for their answers
#: before the first of them is needed.
_TOGETHER = 64
_AHEAD = 2
#: Domains that devices are added to at one time. All change the directory of the backends: more of them
#: meet more conflicts, and are slower.
_ADDING = 3


def trusted_domids(own_domid: int) -> frozenset[int]:
    """Return the domains whose nodes are believed: dom0, and the one that the daemon runs in."""
    return frozenset({0, own_domid})


async def domids(client: Client, own_domid: int) -> list[int]:
    """Return the domains that libxl knows or that have a qdisk backend here.

    :raises XenstoreError: xenstored failed.
    """
    roots = ["/libxl", f"{backend_root(own_domid)}/{QDISK}"]
    return numbers(chain.from_iterable(await directories(client, roots)), parse_domid)


def places_of(domid: int, own_domid: int) -> tuple[str, str]:
    """Return where a domain's block devices are listed: the toolstack's copies, and the backends here."""
    return (
        f"{libxl_domain_path(domid)}/device/vbd",
        f"{backend_root(own_domid)}/{QDISK}/{domid}",
    )


async def listed(to: Reads, own_domid: int, domids: Sequence[int]) -> list[DevicePaths]:
    """Return the block devices of domains, each as if it were a qdisk here: :func:`locate` tells.

    A device is in the toolstack's copy, or among the backends, or both.

    :raises XenstoreError: xenstored failed.
    """
    places = [places_of(domid, own_domid) for domid in domids]
    answers = iter(await to.spread([*map(requests.directory, chain.from_iterable(places))]))
    return [
        DevicePaths(domid, devid, own_domid)
        for domid, of_domain in zip(domids, places, strict=True)
        for devid in await _devids(to, of_domain, list(islice(answers, len(of_domain))))
    ]


async def _devids(to: Asks, places: Sequence[str], listings: Sequence[Answer]) -> list[int]:
    names: list[str] = []
    for path, answer in zip(places, listings, strict=True):
        names += await names_in(to, path, answer)
    return numbers(names, parse_devid)


async def find(client: Client, own_domid: int, domids: Sequence[int]) -> list[DevicePaths]:
    """Return all block devices of domains, whoever serves them: in two round trips, however many.

    :raises XenstoreError: xenstored failed.
    """
    return await locate(client, await listed(client, own_domid, domids))


async def locate(to: Reads, here: Sequence[DevicePaths]) -> list[DevicePaths]:
    """Return where devices are served: the toolstack says so, else they are qdisks here.

    :param here: as :func:`listed` gives them.
    :raises XenstoreError: xenstored failed.
    """
    backends = await to.spread([requests.read(f"{paths.libxl}/backend") for paths in here])
    return [_located(*pair) for pair in zip(here, map(absent_as_none, backends), strict=True)]


def _located(here: DevicePaths, backend: bytes | None) -> DevicePaths:
    try:
        paths = parse_backend((backend or b"").decode("ascii", "replace"))
    except PathError:
        return here
    return paths if (paths.domid, paths.devid) == (here.domid, here.devid) else here


async def read_devices(
    to: Reads, paths: Sequence[DevicePaths], trusted: frozenset[int]
) -> list[Device | None]:
    """Reconstruct devices from their nodes; None where there is none.

    Only nodes that are there are asked for: of a plain disk that is two in three. Xenstored is kept
    busy: while it answers for some devices, those before are made of their answers.

    :raises XenstoreError: xenstored failed; what is wrong with a node is in the device itself.
    """
    devices: list[Device | None] = []
    asked: deque[_Asked] = deque()
    names = await to.spread([r for device in paths for r in listing_requests(device)])
    found = [
        (device, listings(names[i * LISTINGS : (i + 1) * LISTINGS]))
        for i, device in enumerate(paths)
    ]
    for start in range(0, len(paths), _TOGETHER):
        asked.append(_ask(to, found[start : start + _TOGETHER]))
        if len(asked) > _AHEAD:
            devices += await _reconstructed(asked.popleft(), trusted)
    for part in asked:
        devices += await _reconstructed(part, trusted)
    return devices


class _Asked(NamedTuple):
    """Devices that were asked for: where each is, which nodes it has, and how many answers come for it."""

    devices: Sequence[tuple[DevicePaths, Listings, int]]
    answers: Callable[[], Awaitable[list[Answer]]]


def _ask(to: Reads, part: Sequence[tuple[DevicePaths, Listings]]) -> _Asked:
    batch: list[requests.Request] = []
    devices = []
    for paths, there in part:
        questions = read_requests(paths, there)
        devices.append((paths, there, len(questions)))
        batch += questions
    return _Asked(devices, to.post(batch))


async def _reconstructed(asked: _Asked, trusted: frozenset[int]) -> list[Device | None]:
    said = await asked.answers()
    devices, start = [], 0
    for paths, there, count in asked.devices:
        devices.append(device_from_answers(paths, said[start : start + count], trusted, there))
        start += count
    return devices


# -- adding -------------------------------------------------------------------------------------


async def add(client: Client, domid: int, disk: Disk, role: Role | None = None) -> DevicePaths:
    """Write the nodes of a new device in one transaction, as ``xl block-attach``; return its paths.

    :param role: also set the domain's role, in the same transaction.
    :raises DeviceError: the domain does not exist, the device does already, or it is no qdisk.
    :raises DiskError: the disk's fields don't go together.
    :raises XenstoreError: xenstored failed; nothing was written.
    """
    if disk.backend is not Backend.QDISK:
        raise DeviceError(
            f"{disk.vdev} would be a {disk.backend} device, which needs Xen's hotplug scripts: "
            f"use xl block-attach, or backendtype=qdisk"
        )
    paths = DevicePaths(domid, disk.devid, disk.backend_domid)
    batch = add_requests(disk, paths)
    if role is not None:
        batch += role_requests(domid, role)

    async def body(transaction: Transaction) -> None:
        # One round trip: if a check fails, the writes that came with it are thrown away.
        checks = [requests.read(domain_path(domid)), requests.read(paths.libxl)]
        answers = await transaction.batch(checks + batch)
        if absent_as_none(answers[0]) is None:
            raise DeviceError(f"domain {domid} does not exist: {domain_path(domid)} is absent")
        if absent_as_none(answers[1]) is not None:
            raise DeviceError(
                f"device {disk.vdev} of domain {domid} already exists: {paths.libxl} is there"
            )
        all_done(batch, answers[2:], absent_ok=[Op.RM])

    await client.transaction(body)
    return paths


async def add_all(
    client: Client, wanted: Sequence[tuple[int, Disk]]
) -> list[DevicePaths | XencoloError]:
    """Add devices, each as :func:`add` does, a few domains at a time.

    Devices of one domain change the same directories, so they are added one after the other.

    :param wanted: domid and disk of each.
    :return: in the same order, where each device is, or the error that it met; the others go on.
    """
    results: dict[int, DevicePaths | XencoloError] = {}
    by_domain: dict[int, list[tuple[int, Disk]]] = {}
    for place, (domid, disk) in enumerate(wanted):
        by_domain.setdefault(domid, []).append((place, disk))
    domains = iter(by_domain.items())

    async def add_by_domain() -> None:
        for domid, disks in domains:
            for place, disk in disks:
                results[place] = await _added_or_why_not(client, domid, disk)

    async with trio.open_nursery() as nursery:
        for _ in range(min(client.connections, _ADDING)):
            nursery.start_soon(add_by_domain)
    return [results[place] for place in range(len(wanted))]


async def _added_or_why_not(client: Client, domid: int, disk: Disk) -> DevicePaths | XencoloError:
    try:
        return await add(client, domid, disk)
    except XencoloError as error:
        return error


# -- removing -----------------------------------------------------------------------------------


class Removal(NamedTuple):
    """How a device was removed.

    :ivar forced: the backend did not close in time, or was not asked.
    """

    paths: DevicePaths
    forced: bool


async def remove(
    client: Client, paths: DevicePaths, *, force: bool = False, timeout: float = 10.0
) -> Removal:
    """Ask the backend to close, wait for it, and remove the device's nodes.

    :param force: don't ask, don't wait; any node of it is enough then.
    :param timeout: seconds to wait for the backend to close; libxl's 10.
    :raises DeviceError: there is no such device.
    :raises XenstoreError: xenstored failed.
    """
    forced = force
    if force:
        await _require(client, paths)
    elif await _ask_to_close(client, paths):
        forced = not await _closed(client, paths, timeout)
    await _clean_up(client, paths)
    return Removal(paths, forced)


def _state(number: int) -> bytes:
    return b"%d" % number


async def close(client: Client, paths: DevicePaths) -> bool:
    """Say, as its backend, that a device is closed; return False if nobody asks for that any more.

    :raises XenstoreError: xenstored failed; nothing was written.
    """
    state = f"{paths.backend}/state"

    async def body(transaction: Transaction) -> bool:
        asked = [requests.read(f"{paths.backend}/online"), requests.read(state)]
        answers = list(map(absent_as_none, await transaction.batch(asked)))
        if answers != [b"0", _state(CLOSING)]:
            return False
        await demand(transaction, [requests.write(state, str(CLOSED))])
        return True

    return await client.transaction(body)


def _no_device(paths: DevicePaths) -> DeviceError:
    return DeviceError(f"domain {paths.domid} has no device {paths.devid}: {paths.libxl} is absent")


async def _require(client: Client, paths: DevicePaths) -> None:
    """Raise DeviceError if nothing of the device is there."""
    places = (paths.libxl, paths.backend, paths.frontend)
    answers = await client.batch([requests.read(place) for place in places])
    if all(absent_as_none(answer) is None for answer in answers):
        raise _no_device(paths)


async def _ask_to_close(client: Client, paths: DevicePaths) -> bool:
    """Take the device offline; return whether its backend has something to close."""

    async def body(transaction: Transaction) -> bool:
        answers = await transaction.batch(
            [requests.read(paths.libxl), requests.read(f"{paths.backend}/state")]
        )
        known, state = map(absent_as_none, answers)
        if state is None:
            if known is None:
                raise _no_device(paths)
            return False
        batch = [requests.write(f"{paths.backend}/online", "0")]
        if state != _state(CLOSED):
            batch.append(requests.write(f"{paths.backend}/state", str(CLOSING)))
        await demand(transaction, batch)
        return state != _state(CLOSED)

    return await client.transaction(body)


async def _closed(client: Client, paths: DevicePaths, timeout: float) -> bool:
    state = f"{paths.backend}/state"
    with trio.move_on_after(timeout):
        async with client.watch(state) as watch:
            await watch.take()
            while await read(client, state) not in {None, _state(CLOSED)}:
                await watch.take()
            return True
    return False


async def _clean_up(client: Client, paths: DevicePaths) -> None:
    doomed = [(path, 2) for path in (paths.frontend, paths.libxl, paths.backend)]
    await client.transaction(partial(remove_with_empty_parents, doomed=doomed))


async def remove_with_empty_parents(to: Asks, doomed: Iterable[tuple[str, int]]) -> None:
    """Remove nodes, and parents of theirs that are empty then; a round trip for each level.

    :param doomed: each node, and how many of its parents may go with it.
    :raises StoreError: any error but ENOENT.
    """
    depths = dict(doomed)
    if not depths:
        return
    removals = [requests.rm(path) for path in depths]
    parents = {path.rpartition("/")[0]: depth - 1 for path, depth in depths.items() if depth}
    answers = await to.batch([*removals, *map(requests.directory, parents)])
    all_done(removals, answers[: len(removals)], absent_ok=[Op.RM])
    listed = zip(parents, answers[len(removals) :], strict=True)
    empty = [parent for parent, answer in listed if not await names_in(to, parent, answer)]
    await remove_with_empty_parents(to, [(parent, parents[parent]) for parent in empty])
