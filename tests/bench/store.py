"""What the benchmarks fill a store with."""

import os
from collections.abc import Iterable, Sequence
from functools import partial

from xencolo import requests
from xencolo.disk import Backend, Disk, Format
from xencolo.nodes import BACKEND_NODES, FRONTEND_NODES, LIBXL_NODES, Need, add_requests
from xencolo.paths import DevicePaths
from xencolo.requests import Request
from xencolo.wire import Op
from xencolod.asks import demand
from xencolod.xenstore import Client

DISKS_PER_DOMAIN = 4
#: Devices of a big host. BENCH_DEVICES lowers it: xenstored needs minutes to be filled with them.
DEVICES = int(os.environ.get("BENCH_DEVICES", "10_000"))


def plain_disk(domid: int, number: int) -> Disk:
    """Return a disk of a domain that is not replicated."""
    return Disk(
        vdev=f"xvd{chr(ord('a') + number)}",
        pdev_path=f"/var/lib/xen/images/guest-{domid}-{number}.raw",
        backend=Backend.QDISK,
        format=Format.RAW,
    )


def colo_disk(domid: int, number: int) -> Disk:
    """Return a replicated disk of a domain."""
    image = f"/var/lib/xen/images/guest-{domid}-{number}"
    return Disk(
        vdev=f"xvd{chr(ord('a') + number)}",
        pdev_path=f"{image}.raw",
        backend=Backend.QDISK,
        format=Format.RAW,
        colo_enable=True,
        colo_host="secondary.example.org",
        colo_port=9000,
        colo_export=f"guest-disk{number}",
        active_disk=f"{image}.active.qcow2",
        hidden_disk=f"{image}.hidden.qcow2",
    )


def disks_of(domids: Sequence[int], *, colo: bool = True) -> list[tuple[DevicePaths, Disk]]:
    """Return four disks of each domain, and where they are."""
    make = colo_disk if colo else plain_disk
    disks = [(d, make(d, n)) for d in domids for n in range(DISKS_PER_DOMAIN)]
    return [(DevicePaths(domid, disk.devid), disk) for domid, disk in disks]


def homes(domids: Iterable[int]) -> list[Request]:
    """Return what makes domains."""
    batch = []
    for domid in domids:
        home = f"/local/domain/{domid}"
        batch.append(requests.write(f"{home}/name", f"guest-{domid}"))
        batch.append(requests.write(f"{home}/vm", f"/vm/00000000-0000-4000-8000-{domid:012x}"))
        batch.append(requests.mkdir(f"/libxl/{domid}"))
    return batch


async def prepare(client: Client, domids: Sequence[int], *, colo: bool = True) -> None:
    """Make domains with disks, without transactions: nobody is looking yet."""
    await demand(client, homes(domids))
    for paths, disk in disks_of(domids, colo=colo):
        await demand(client, add_requests(disk, paths), absent_ok=[Op.RM])


_NEEDED = {
    *("state", "online", "params"),
    *(n.name for n in (*LIBXL_NODES, *FRONTEND_NODES, *BACKEND_NODES) if n.need is Need.ALWAYS),
}
#: A directory that is long from its first child on leaves pieces that xenstored can use again: without it
#: the free list of its memory grows with each child of each directory, and every write walks it.
_LONG = "x" * 300


def few_requests(paths: DevicePaths, disk: Disk) -> list[Request]:
    """Return what makes a disk of only those nodes without which it would be none."""
    frontend = f"{paths.frontend}/backend"
    padded = [f"{directory}/{_LONG}" for directory in (paths.libxl, paths.backend)]
    return [
        *map(requests.mkdir, padded),
        *(
            request
            for request in add_requests(disk, paths)
            if request.op in {Op.MKDIR, Op.SET_PERMS}
            or request.path == frontend
            or (
                request.op == Op.WRITE
                and not request.path.startswith(f"{paths.frontend}/")
                and request.path.rpartition("/")[2] in _NEEDED
            )
        ),
        *map(requests.rm, padded),
    ]


def _few_of(domid: int) -> list[Request]:
    return [r for pair in disks_of([domid], colo=False) for r in few_requests(*pair)]


async def crowd(client: Client, domids: Sequence[int]) -> None:
    """Make domains with four plain disks each, of few nodes; nobody is looking yet."""
    await demand(client, homes(domids))
    for domid in domids:
        await demand(client, _few_of(domid))


async def crowd_seen(client: Client, domids: Sequence[int]) -> None:
    """Make the same, the disks of each domain in one transaction: somebody looks."""
    await demand(client, homes(domids))
    for domid in domids:
        await client.transaction(partial(demand, batch=_few_of(domid)))
