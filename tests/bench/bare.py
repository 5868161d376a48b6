"""A bare pyxs program that does what xencolod does for a disk: watch, make the same reads, say so.

``python -m tests.bench.bare SOCKET nodes`` says it as xencolod does, in the same nodes and a transaction, in
which it sees that the guest is still there; with ``node`` it writes ``/libxl/<domid>/bare``, and no more.
"""

import sys
from collections.abc import Sequence
from itertools import starmap

import pyxs

from tests.bench.client import as_call, perform
from xencolo import requests
from xencolo.device import Listings, listing_requests, read_requests
from xencolo.nodes import BACKEND_NODES, LIBXL_NODES
from xencolo.paths import DevicePaths, colo_path, domain_path, hint
from xencolo.requests import Request
from xencolo.status import STATE, DeviceState, DomainState, DomainStatus, ReplicationStatus
from xencolo.wire import strings
from xencolod.devices import places_of
from xencolod.publish import published
from xencolod.views import domain_requests

#: What a COLO disk of the benchmark has.
_ABSENT = {"script", "direct-io-safe"}
_NAMES = [n.name for n in (*LIBXL_NODES, *BACKEND_NODES) if n.name not in _ABSENT]
_THERE = Listings(strings(*_NAMES), strings(*(n for n in _NAMES if n != "backend")))


def read(client: pyxs.Client, domid: int, devid: int) -> None:
    """Make the requests that xencolod makes."""
    paths = DevicePaths(domid, devid)
    batch = [
        *map(requests.directory, places_of(domid, 0)),
        *domain_requests(domid),
        *listing_requests(paths),
        *read_requests(paths, _THERE),
    ]
    perform(client, [as_call(request) for request in batch])


def say_one(client: pyxs.Client, domid: int, _devid: int) -> None:
    """Write one node, which makes a domain that is gone one again."""
    client.write(f"/libxl/{domid}/bare".encode(), b"seen")


def say_all(client: pyxs.Client, domid: int, devid: int) -> None:
    """Say what xencolod says."""
    error = f"the image /var/lib/xen/images/guest-{domid}-0.raw does not exist"
    status = DomainStatus(
        DomainState.WAITING,
        None,
        f"no disk can be given to QEMU: {error}",
        None,
        {devid: (DeviceState.ERROR, error)},
        ReplicationStatus(peer="secondary.example.org:9990"),
    )
    paths = (f"{domain_path(domid)}/vm", f"{colo_path(domid)}/{STATE}")
    batch = [
        *map(requests.read, paths),
        *starmap(requests.write, published(domid, 0, status).items()),
    ]
    together(client, batch)


def unsay(client: pyxs.Client, domid: int) -> None:
    """Withdraw what was said."""
    paths = (colo_path(domid), f"/local/domain/0/error/backend/qdisk/{domid}")
    together(client, [requests.read(domain_path(domid)), *map(requests.rm, paths)])


def together(client: pyxs.Client, batch: Sequence[Request]) -> None:
    """Make the requests in a transaction."""
    calls = [as_call(request) for request in batch]
    while True:
        client.transaction()
        perform(client, calls)
        if client.commit():
            return


def main(path: str, what: str) -> None:
    say = {"node": say_one, "nodes": say_all}[what]
    seen = set()
    with pyxs.Client(unix_socket_path=path) as client, client.monitor() as monitor:
        monitor.watch(b"/local/domain/0/backend", b"bare")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for event in monitor.wait():
            about = hint(event.path.decode())
            if not about or about.domid is None or about.devid is None:
                continue
            if about not in seen:
                seen.add(about)
                read(client, about.domid, about.devid)
                say(client, about.domid, about.devid)
            elif not client.exists(DevicePaths(about.domid, about.devid).backend.encode()):
                unsay(client, about.domid)


if __name__ == "__main__":
    main(*sys.argv[1:])
