"""Real QEMUs with COLO disks, one IDE and one SCSI, and their blocks over ever new QMP connections."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import trio

from tests.rigs.servers import DEADLINE
from xencolo.disk import Disk, Role
from xencolo.diskspec import parse
from xencolo.drives import Form, domain_drives
from xencolo.graph import device_id
from xencolo.observed import Attachment, Service
from xencolod.blocks import Mark
from xencolod.primary_blocks import PrimaryBlocks
from xencolod.qmp import Qmp, open_qmp
from xencolod.secondary_blocks import SecondaryBlocks

KIB = 1 << 10
SIZE = 1 << 20
LOOPBACK = "127.0.0.1"
VDEVS = ("hda", "sda")
QEMU = [
    "qemu-system-x86_64",
    *("-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-m", "64"),
]

#: Starts a machine: its name, role, form and vdevs.
Start = Callable[..., "Machine"]


class Killed(Exception):
    """The daemon was killed here."""


class Mortal:
    """A QMP connection of a daemon that is killed instead of giving command number ``life``.

    A question that is asked again counts once: how often depends on the machine, and changes nothing.
    """

    def __init__(self, qmp: Qmp, life: int) -> None:
        self._qmp = qmp
        self._asked: set[str] = set()
        self.life = life

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, **how: Any
    ) -> Any:
        if command not in self._asked:
            if self.life == 0:
                raise Killed(command)
            self.life -= 1
        if command.startswith("query-"):
            self._asked.add(command)
        else:
            self._asked.clear()
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


def disks_in(directory: Path, vdevs: tuple[str, ...]) -> list[Disk]:
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


# -- steps: each twice, each over a connection of its own -----------------------------------------


async def on_primary(machine: Machine, step: Callable[[PrimaryBlocks], Awaitable[object]]) -> None:
    for _ in range(2):
        async with machine.primary() as blocks:
            await step(blocks)


async def on_secondary(
    machine: Machine, step: Callable[[SecondaryBlocks], Awaitable[object]]
) -> None:
    for _ in range(2):
        async with machine.secondary() as blocks:
            await step(blocks)


async def attachment(machine: Machine) -> Attachment:
    async with machine.primary() as blocks:
        return await blocks.observe()


async def service(machine: Machine) -> Service:
    async with machine.secondary() as blocks:
        return await blocks.observe()


async def ready(machine: Machine) -> None:
    """Wait until the mirrors are."""
    async with machine.primary() as blocks:
        with trio.fail_after(DEADLINE):
            while not (now := await blocks.progress()).ready:
                assert now.failed is None
                await trio.sleep(0.01)
        assert now.done == now.total >= SIZE


async def serve(machine: Machine) -> int:
    port = free_port()
    await on_secondary(machine, lambda blocks: blocks.serve(LOOPBACK, port))
    assert await service(machine) is Service.SERVING
    return port


async def copy(primary: Machine, port: int) -> None:
    """Make the secondary's disks equal; leave the guest paused."""
    await on_primary(primary, lambda blocks: blocks.connect(LOOPBACK, port))
    await on_primary(primary, lambda blocks: blocks.mirror(0))
    assert await attachment(primary) is Attachment.PARTIAL
    await ready(primary)
    await on_primary(primary, lambda blocks: blocks.pause())
    async with primary.primary() as blocks:
        await blocks.finish_mirror()


async def replicate(
    primary: Machine, secondary: Machine, session: str, port: int | None = None
) -> None:
    """Go the whole way from two QEMUs to replication."""
    await copy(primary, port or await serve(secondary))
    await on_secondary(secondary, lambda blocks: blocks.start())
    assert await service(secondary) is Service.REPLICATING
    await on_primary(primary, lambda blocks: blocks.attach())
    assert await attachment(primary) is Attachment.PARTIAL
    await on_secondary(secondary, lambda blocks: blocks.mark(Mark(session)))
    await on_primary(primary, lambda blocks: blocks.mark(Mark(session)))
    await on_primary(primary, lambda blocks: blocks.resume())
    assert await attachment(primary) is Attachment.ATTACHED
    await checkpoint(primary, secondary)


async def checkpoint(primary: Machine, secondary: Machine) -> None:
    async with primary.primary() as one, secondary.secondary() as other:
        assert (await one.fault(), await other.fault()) == (None, None)
        await other.checkpoint()
        await one.checkpoint()


async def fail_over(secondary: Machine) -> None:
    await on_secondary(secondary, lambda blocks: blocks.failover())
    async with secondary.secondary() as blocks:
        with trio.fail_after(DEADLINE):
            while not await blocks.committed():
                await trio.sleep(0.01)
        assert await blocks.fault() is None
    assert await service(secondary) is Service.SPENT


async def runs(machine: Machine) -> bool:
    async with machine.qmp() as qmp:
        return bool((await qmp.execute("query-status"))["running"])


async def go(machine: Machine) -> None:
    async with machine.qmp() as qmp:
        await qmp.execute("cont")
