"""More domains than one answer of the real xenstored can list."""

import errno
from pathlib import Path

import pytest
import trio

from tests.e2e.host import Host
from tests.rigs import Server, start_xenstored
from xencolo import requests
from xencolo.errors import StoreError
from xencolod import devices
from xencolod.asks import ask, demand
from xencolod.xenstore import open_client

DOMAINS = range(1, 10_001)
ROOTS = ("/libxl", "/local/domain/0/backend/qdisk")


async def look(server: Server) -> None:
    async with open_client(server.socket, connections=4, timeout=30) as client:
        for root in ROOTS:
            await demand(client, [requests.mkdir(f"{root}/{domid}") for domid in DOMAINS])
        with pytest.raises(StoreError) as caught:
            await ask(client, requests.directory("/libxl"))
        assert caught.value.errno == errno.E2BIG
        assert await devices.domids(client, 0) == list(DOMAINS)
        await demand(client, [requests.rm(f"{root}/{DOMAINS[-1]}") for root in ROOTS])
        assert await devices.domids(client, 0) == list(DOMAINS[:-1])


def test_ten_thousand_domains_are_listed(tmp_path: Path) -> None:
    with start_xenstored(tmp_path) as server:
        trio.run(look, server)


def test_the_devices_of_all_domains_are_counted(host: Host) -> None:
    domids = range(1, 131)
    for domid in domids:
        host.domain(domid, colo=False, make=False)
    host.start()
    ready = host.event("daemon.ready")
    assert (ready["domains"], ready["devices"]) == (len(domids), len(domids))


def test_a_new_disk_does_not_wait_for_those_that_miss_their_images(host: Host) -> None:
    host.arguments = ["--debug"]  # which tells of each look
    host.start()
    for domid in range(1, 6):
        host.domain(domid, make=False)
        host.state(domid, "waiting")
    mark = host.mark()
    host.domain(6, make=False)
    host.state(6, "waiting")
    host.event("reconcile.done", since=mark, domains=1)
