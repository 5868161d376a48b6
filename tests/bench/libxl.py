"""Reconstructing disks against libxl's ``libxl_device_disk_list``: the same disks of the same store.

libxl reads 15 nodes of a COLO disk, one after the other; we read both places where a disk is described,
and who may write them. What bounds us is xenstored's own time for a request, so libxl's very requests
are also made as fast as xenstored takes them: nobody can be faster than that with its reads.
"""

import os
import socket
import statistics
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.bench.client import CONNECTIONS, DOMAINS, TRUSTED, Recorder, reconstruct
from tests.bench.store import DISKS_PER_DOMAIN, prepare
from tests.bench.table import Row, stopwatch
from tests.rigs import Server, start_xenstored
from tests.rigs.servers import RigError, build, standin
from xencolo.device import Device
from xencolo.requests import Request
from xencolo.wire import Decoder
from xencolod import devices
from xencolod.xenstore import Client, open_client

ROUNDS = 7
TARGET = 5.0
_SOURCE = Path(__file__).parent / "libxl_list.c"


def program(directory: Path) -> Path:
    """Return the C program, built.

    :raises RigError: the compiler refused; libxen-dev and gcc are needed.
    """
    built = directory / "libxl_list"
    build(_SOURCE, built, "-lxenlight", "-lxentoollog")
    return built


def list_disks(built: Path, path: Path, rounds: int) -> tuple[list[float], list[str]]:
    """Return the seconds of each round, and the disks that libxl sees."""
    environment = os.environ | {"XENSTORED_PATH": str(path), "LD_PRELOAD": str(standin())}
    done = subprocess.run(
        [str(built), str(rounds), "1", str(DOMAINS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RigError(f"{built} ended with {done.returncode}: {done.stderr}")
    return [float(line) for line in done.stderr.splitlines()], done.stdout.splitlines()


def as_libxl_shows(device: Device) -> str:
    """Return our disk as the C program prints libxl's."""
    disk = device.disk
    assert disk is not None
    fields = (
        *(device.paths.domid, disk.backend_domid, disk.vdev, disk.pdev_path, disk.backend.value),
        *(int(flag) for flag in (disk.removable, disk.readwrite, disk.is_cdrom, disk.colo_enable)),
        *(disk.colo_host, disk.colo_port, disk.colo_export, disk.active_disk, disk.hidden_disk),
    )
    return "\t".join(map(str, fields))


class Tap:
    """A socket in front of the server that notes each request."""

    def __init__(self, server: Server) -> None:
        self.path = server.directory / "tap"
        self.seen: list[Request] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._server = str(server.socket)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listening.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        threading.Thread(target=self._back, args=(server, client), daemon=True).start()
        decoder = Decoder()
        while data := client.recv(1 << 16):
            self.seen += [Request(p.op, p.payload) for p in decoder.feed(data)]
            server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(1 << 16):
            client.sendall(data)


async def ours(client: Client) -> list[str]:
    """Return our disks, as the C program prints libxl's."""
    found = await devices.find(client, 0, await devices.domids(client, 0))
    read = await devices.read_devices(client, found, TRUSTED)
    return [as_libxl_shows(device) for device in read if device]


async def measure(server: Server, built: Path) -> list[Row]:
    async with open_client(server.socket, connections=CONNECTIONS, timeout=60) as client:
        await prepare(client, range(1, DOMAINS + 1))
        tap = Tap(server)
        _, shown = await trio.to_thread.run_sync(list_disks, built, tap.path, 1)
        if sorted(shown) != sorted(await ours(client)):
            raise SystemExit("libxl sees other disks than we do")
        recorder = Recorder(client)
        await reconstruct(recorder)
        mine: list[float] = []
        bare: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            with stopwatch(mine):
                await reconstruct(client)
            with stopwatch(bare):
                await client.spread(tap.seen)
            times, _ = await trio.to_thread.run_sync(list_disks, built, server.socket, 1)
            theirs += times
    return rows(mine, len(recorder.seen), bare, theirs, len(tap.seen))


def rows(
    mine: Sequence[float],
    asked: int,
    bare: Sequence[float],
    theirs: Sequence[float],
    their_asked: int,
) -> list[Row]:
    count = DOMAINS * DISKS_PER_DOMAIN
    median, libxl = statistics.median(mine), statistics.median(theirs)
    return [
        Row(f"read {count} COLO disks, {asked} requests", median, "libxl", libxl, TARGET),
        Row("the same, a request", median / asked, "libxl", libxl / their_asked),
        Row(f"libxl's {their_asked} requests, made by us", statistics.median(bare), "libxl", libxl),
    ]


def run(directory: Path) -> list[Row]:
    """Compare with libxl."""
    built = program(directory)
    with start_xenstored(directory / "store") as server:
        return trio.run(measure, server, built)
