"""A reconciler at work in this process, on an in-memory store, and its log."""

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from tests.rigs.disks import PLAIN
from tests.rigs.servers import DEADLINE
from xencolo import requests
from xencolo.requests import Request
from xencolo.store import Session, Store
from xencolo.wire import Packet
from xencolod import devices, domains
from xencolod.asks import demand, read
from xencolod.config import Config, load
from xencolod.embedded import serve_embedded
from xencolod.hub import Hub
from xencolod.log import configure
from xencolod.reconciler import Reconciler
from xencolod.supervisor import Settings
from xencolod.xenstore import Client, open_client


class Changing(Store):
    """A store in which all of a change is made right after a certain request."""

    after: Request | None = None
    change: tuple[Request, ...] = ()

    def handle(self, session: Session, packet: Packet) -> list[tuple[Session, Packet]]:
        told = super().handle(session, packet)
        if self.after == Request(packet.op, packet.payload):
            self.after = None
            own = self.connect()
            for request in self.change:
                *events, _ = super().handle(own, Packet(request.op, 0, 0, request.payload))
                told += events
            self.disconnect(own)
        return told


class Watched:
    """A reconciler at work, and its log."""

    def __init__(self, client: Client, out: io.StringIO) -> None:
        self.client = client
        self._out = out

    def events(self, name: str, *, after: str | None = None) -> list[dict[str, Any]]:
        """Return the events of a name, those after the first of another one if that is given."""
        found = list(map(json.loads, self._out.getvalue().splitlines()))
        names = [event["event"] for event in found]
        start = names.index(after) if after else 0
        return [event for event in found[start:] if event["event"] == name]

    async def until(self, check: Callable[[], object]) -> None:
        """Wait until it is so; in the end show the log."""
        with trio.move_on_after(DEADLINE):
            while not check():
                await trio.sleep(0.005)
            return
        raise AssertionError(self._out.getvalue())

    async def published(self, domid: int, state: bytes | None) -> None:
        """Wait until the state of a domain is this one."""
        path = f"/libxl/{domid}/colo/state"
        with trio.move_on_after(DEADLINE):
            await self.client.wait_connected()
            while await read(self.client, path) != state:
                await trio.sleep(0.005)
            return
        raise AssertionError(self._out.getvalue())


def config_in(directory: Path, *, xen: bool = False, qemu: str = "") -> Config:
    """Return a configuration with places of its own; ``qemu`` is the text of that table."""
    file = directory / "xencolod.toml"
    file.write_text(
        f"[daemon]\nruntime_directory = '{directory}/run'\nlog_directory = '{directory}/log'\n"
        f"state_directory = '{directory}/state'\n"
        f"settle = 0\n[qemu]\n{qemu}"
    )
    return load(file, xen=xen)


@asynccontextmanager
async def reconciling(
    directory: Path, store: Store, config: Config, *, xen: bool = False
) -> AsyncIterator[Watched]:
    """Run a reconciler on a store with dom0, and with a plain disk in the domains 5 and 6."""
    path, out = directory / "socket", io.StringIO()
    settings = Settings(config, xen=xen, log=configure("json", stream=out, level="debug"))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_embedded, path, store)
            async with open_client(path) as client:
                await demand(client, [requests.write("/local/domain/0/domid", "0")])
                for domid in (5, 6):
                    await domains.create(client, domid, f"guest{domid}", xen=False)
                    disk = msgspec.structs.replace(PLAIN, pdev_path=f"{directory}/{domid}.raw")
                    await devices.add(client, domid, disk)
                reconciler = Reconciler(client, settings, Hub(client, settings), nursery)
                async with client.watch(*reconciler.roots()) as watch:
                    nursery.start_soon(reconciler.follow, watch)
                    nursery.start_soon(reconciler.run)
                    yield Watched(client, out)
                    nursery.cancel_scope.cancel()
    finally:
        structlog.reset_defaults()
