"""Real QEMUs with COLO disks, one IDE and one SCSI, and their blocks over ever new QMP connections."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from xencolo.disk import Disk, Role
from xencolo.diskspec import parse
from xencolo.drives import Form, domain_drives
from xencolo.graph import device_id
from xencolod.primary_blocks import PrimaryBlocks
from xencolod.qmp import Qmp, open_qmp
from xencolod.secondary_blocks import SecondaryBlocks

SIZE = 1 << 20
LOOPBACK = "127.0.0.1"
#: A real QEMU answers long before; only a fault comes near it.
DEADLINE = 20.0
VDEVS = ("hda", "sda")
QEMU = [
    "qemu-system-x86_64",
    *("-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-m", "64"),
]


class Killed(Exception):
    """The daemon was killed here."""


class Mortal:
    """A QMP connection of a daemon that is killed instead of giving command number ``life``."""

    def __init__(self, qmp: Qmp, life: int) -> None:
        self._qmp = qmp
        self.life = life

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, **how: Any
    ) -> Any:
        if self.life == 0:
            raise Killed(command)
        self.life -= 1
        return await self._qmp.execute(command, arguments, **how)


class Machine:
    """A QEMU under way.

    :ivar timeout: of the blocks that are made from now on, in seconds.
    """

    def __init__(self, directory: Path, disks: list[Disk], form: Form) -> None:
        self.directory = directory
        self.disks = disks
        self.timeout = DEADLINE
        self.credentials: str | None = None
        self._form = form
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, role: Role) -> None:
        """Start QEMU; its socket listens already."""
        drives = domain_drives(self.disks, role, self._form)
        assert not drives.errors
        path = self.directory / "qmp"
        path.unlink(missing_ok=True)
        output = self.directory / "output"
        with socket.socket(socket.AF_UNIX) as listener, output.open("wb") as written:
            listener.bind(str(path))
            listener.listen()
            chardev = f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"
            monitor = ["-chardev", chardev, "-mon", "chardev=qmp,mode=control"]
            self._process = subprocess.Popen(
                ["stdbuf", "-o0", *QEMU, *monitor, *drives.arguments],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Kill QEMU and wait for its end."""
        if self._process:
            self._process.kill()
            self._process.wait(DEADLINE)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Keep QEMU from doing anything."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    # -- its blocks -------------------------------------------------------------------------------

    @asynccontextmanager
    async def qmp(self) -> AsyncIterator[Qmp]:
        """Open a new connection."""
        async with open_qmp(str(self.directory / "qmp"), timeout=DEADLINE) as qmp:
            yield qmp

    @asynccontextmanager
    async def primary(self, life: int = -1) -> AsyncIterator[PrimaryBlocks]:
        """Take it for a primary, over a new connection."""
        async with self.qmp() as qmp:
            yield PrimaryBlocks(cast(Qmp, Mortal(qmp, life)), *self._given, **self._how)

    @asynccontextmanager
    async def secondary(self, life: int = -1) -> AsyncIterator[SecondaryBlocks]:
        """Take it for a secondary, over a new connection."""
        async with self.qmp() as qmp:
            yield SecondaryBlocks(cast(Qmp, Mortal(qmp, life)), *self._given, **self._how)

    @property
    def _given(self) -> tuple[list[Disk], Form]:
        return self.disks, self._form

    @property
    def _how(self) -> dict[str, Any]:
        return {"timeout": self.timeout, "credentials": self.credentials}

    # -- its guest --------------------------------------------------------------------------------

    async def write(self, pattern: int, offset: int, length: int) -> None:
        """Write this to every disk, as the guest does."""
        await self._io(f"write -P {pattern} {offset} {length}", f"wrote {length}/{length} bytes")

    async def read(self, pattern: int, offset: int, length: int) -> None:
        """Read every disk, as the guest does; it holds this."""
        await self._io(f"read -P {pattern} {offset} {length}", f"read {length}/{length} bytes")

    async def _io(self, command: str, expected: str) -> None:
        for disk in self.disks:
            before = len(self.output())
            line = f'qemu-io -d {device_id(disk.devid)} "{command}"'
            async with self.qmp() as qmp:
                await qmp.execute("human-monitor-command", {"command-line": line})
            said = self.output()[before:]
            assert expected in said, said
            assert "Pattern" not in said, said

    def output(self) -> str:
        """Return what QEMU wrote, qemu-io's findings in it."""
        return (self.directory / "output").read_text()

    def image_reads(self, pattern: int, offset: int, length: int) -> None:
        """Read every disk's image itself, with QEMU gone or not; it holds this."""
        for disk in self.disks:
            with Path(disk.pdev_path or "").open("rb") as image:
                image.seek(offset)
                assert image.read(length) == bytes([pattern]) * length, disk.vdev


def disks_in(directory: Path, vdevs: tuple[str, ...] = VDEVS) -> list[Disk]:
    """Make disks and their images, all empty."""
    directory.mkdir(exist_ok=True)
    return [_disk(directory / vdev, vdev) for vdev in vdevs]


def _disk(stem: Path, vdev: str) -> Disk:
    with stem.with_suffix(".raw").open("wb") as target:
        target.truncate(SIZE)
    empty = stem.with_name("empty.qcow2")
    if not empty.exists():
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(empty), str(SIZE)]
        subprocess.run(argv, check=True, timeout=DEADLINE)
    images = [stem.with_suffix(f".{name}") for name in ("active", "hidden")]
    for path in images:
        shutil.copyfile(empty, path)
    return parse(
        f"vdev={vdev},colo,colo-host={LOOPBACK},colo-port=9000,colo-export=export-{vdev},"
        f"active-disk={images[0]},hidden-disk={images[1]},target={stem.with_suffix('.raw')}"
    )


def free_port() -> int:
    """Return a TCP port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
