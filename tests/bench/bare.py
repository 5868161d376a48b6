"""A bare pyxs program that does what xencolod does for a disk: watch, make the same reads, say so.

``python -m tests.bench.bare SOCKET``; what it has read is told in ``/libxl/<domid>/bare``.
"""

import sys

import pyxs

from tests.bench.client import as_call, perform
from xencolo.device import Listings, listing_requests, read_requests
from xencolo.nodes import BACKEND_NODES, LIBXL_NODES
from xencolo.paths import DevicePaths, hint
from xencolo.wire import strings
from xencolod.views import domain_requests

#: What a COLO disk of the benchmark has.
_ABSENT = {"script", "direct-io-safe"}
_NAMES = [n.name for n in (*LIBXL_NODES, *BACKEND_NODES) if n.name not in _ABSENT]
_THERE = Listings(strings(*_NAMES), strings(*(n for n in _NAMES if n != "backend")))


def read(client: pyxs.Client, domid: int, devid: int) -> None:
    """Make the requests that xencolod makes."""
    paths = DevicePaths(domid, devid)
    batch = [*domain_requests(domid, 0), *listing_requests(paths), *read_requests(paths, _THERE)]
    perform(client, [as_call(request) for request in batch])


def main(path: str) -> None:
    seen = set()
    with pyxs.Client(unix_socket_path=path) as client, client.monitor() as monitor:
        monitor.watch(b"/local/domain/0/backend", b"bare")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for event in monitor.wait():
            about = hint(event.path.decode())
            if not about or about.domid is None or about.devid is None or about in seen:
                continue
            seen.add(about)
            read(client, about.domid, about.devid)
            client.write(f"/libxl/{about.domid}/bare".encode(), b"seen")


if __name__ == "__main__":
    main(sys.argv[1])
