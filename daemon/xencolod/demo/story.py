"""The story: a disk is replicated, its host is lost, another one takes over, and once more."""

import socket
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from xencolo import requests
from xencolo.paths import DevicePaths
from xencolo.status import DomainState
from xencolod import domains, keys
from xencolod.asks import ask
from xencolod.demo.guest import Content, Run
from xencolod.demo.machine import DEVID, PATIENCE, VDEV, Machine
from xencolod.demo.telling import Bar, DemoError, check, step, tell

#: The replicated domain, and one that has nothing to do with it.
DOMID, PLAIN = 101, 102
#: MiB of the replicated disk: at the speed that it is copied with, some seconds.
SIZE = 48
_LOOK = 0.05


def _free_port(addresses: Sequence[str]) -> int:
    """Return a port that nobody listens on now at any of the addresses."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            if all(_is_free(address, port) for address in addresses[1:]):
                return port
    raise DemoError(f"no port is free at all of {', '.join(addresses)}")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


async def play(folder: Path, stores: Sequence[str]) -> None:
    """Play it all.

    :raises DemoError: something was not so.
    """
    addresses = [f"127.0.0.{number}" for number in (1, 2, 3)]
    ports = _free_port(addresses), _free_port(addresses)
    sockets: Sequence[str | None] = stores or [None] * 3
    a, b, c = (Machine(folder, number, ports, sockets[number]) for number in range(3))
    step("Two hosts, a and b: one key file for both, a store and an xencolod each")
    made = keys.make(folder / "keys.pem")
    tell(f"$ xencolo keys {made.path}     # copied to each host; it holds until {made.expires:%Y}")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(a.running())
        await stack.enter_async_context(b.running())
        await plain_domain(a)
        story = Story()
        await story.begin(a, b)
        await story.checkpoint_and_lose(a, b, 0x11)
        step("Failback: a third host, c, is the secondary now")
        await stack.enter_async_context(c.running())
        await story.fail_back(b, c)
        await story.checkpoint_and_lose(b, c, 0x33)
        await end(c)


async def plain_domain(host: Machine) -> None:
    """Add a disk that is not replicated, and remove it."""
    step(f"A domain with a plain disk on {host.name}: xencolod gives it a QEMU, and takes it away")
    image = host.folder / "plain.raw"
    Content.various(1).make(image)
    await domains.create(host.client, PLAIN, "plain", xen=False)
    spec = f"format=raw,vdev={VDEV},backendtype=qdisk,target={image}"
    await host.xencolo("disk", "add", str(PLAIN), spec, "--role", "none")
    await host.show_nodes(PLAIN)
    await host.until_state(PLAIN, DomainState.RUNNING)
    await host.show_qemu(PLAIN, image)
    check(await host.guest(PLAIN).reads(Run(0x80, 0, 1)), "its guest reads what is in the image")
    pid = await host.pid(PLAIN)
    await host.xencolo("disk", "remove", str(PLAIN), VDEV, "--force")
    await domains.destroy(host.client, PLAIN, xen=False)
    await _until_ended(host, pid)


async def _until_ended(host: Machine, pid: int) -> None:
    async def so() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await host.until(f"QEMU {pid} has ended", so)


async def break_and_mend(host: Machine) -> None:
    """Delete a mandatory node, see it said everywhere, and mend it."""
    step("A mandatory node is deleted, and mended")
    paths = DevicePaths(DOMID, DEVID)
    node, pid = f"{paths.backend}/colo-port", await host.pid(DOMID)
    value = await host.value(node)
    await ask(host.client, requests.rm(node))
    host.tell(f"deleted {node}")

    async def said() -> bool:
        return await host.value(paths.error) is not None

    await host.until(f"{paths.error} says so", said)
    tell(f"     {await host.value(paths.error)}")
    await host.xencolo("status", str(DOMID))
    events = host.events("device.error")
    check([e["path"] for e in events] == [node], "the log says it once, with the path")
    check(await host.pid(DOMID) == pid, f"QEMU {pid} was left alone")
    await ask(host.client, requests.write(node, value or ""))
    host.tell(f"wrote {node} = {value}")

    async def mended() -> bool:
        return not await said()

    await host.until("the error is gone", mended)
    await host.xencolo("disk", "list", str(DOMID))


async def end(host: Machine) -> None:
    """Destroy the domain and see its QEMU end."""
    step("The domain goes, and its QEMU with it")
    pid = await host.pid(DOMID)
    await domains.destroy(host.client, DOMID, xen=False)
    await _until_ended(host, pid)


def _but(wrong: Sequence[str]) -> str:
    return f", but not {', '.join(wrong)}" if wrong else ""


class Story:
    """The replicated domain: what its disk has to hold now."""

    def __init__(self) -> None:
        self._content = Content.various(SIZE)
        self._uuid = str(uuid.uuid4())

    async def begin(self, a: Machine, b: Machine) -> None:
        """Bring the pair up, and copy the disk."""
        await self.secondary(b)
        await b.show_nodes(DOMID)
        await b.show_qemu(DOMID, b.image)
        await break_and_mend(b)
        step(f"Domain {DOMID} on a, primary: its disk is copied to b while its guest goes on")
        self._content.make(a.image)
        await domains.create(a.client, DOMID, "web", xen=False, identity=self._uuid)
        await a.xencolo("disk", "add", str(DOMID), a.colo_spec(b))
        await self.follow_resync(a, b, Run(0x5A, 40, 2))
        await a.show_nodes(DOMID)
        await a.show_qemu(DOMID, a.image)

    async def secondary(self, host: Machine) -> None:
        """Have a secondary listen, its disk full of something else."""
        step(f"Domain {DOMID} on {host.name}, secondary: the same uuid, a disk of the same size")
        Content([0xEE] * SIZE).make(host.image)
        await domains.create(host.client, DOMID, "web", xen=False, identity=self._uuid)
        await host.xencolo("domain", "restore", str(DOMID), "--checkpointed-stream", "colo")
        await host.xencolo("disk", "add", str(DOMID), host.colo_spec(host))
        await host.until_state(DOMID, DomainState.LISTENING)

    async def fail_back(self, primary: Machine, secondary: Machine) -> None:
        """Give a primary that was a secondary another secondary."""
        await self._write(primary, Run(0x3C, 20, 4))
        await self.secondary(secondary)
        step(f"The disk is copied from {primary.name} to {secondary.name}")
        await primary.xencolo("resync", str(DOMID), "--to", secondary.address)
        await self.follow_resync(primary, secondary, Run(0xA5, 44, 2))

    async def follow_resync(self, primary: Machine, secondary: Machine, meanwhile: Run) -> None:
        """Show the progress of a resync to its end; the guest writes in the middle of it."""
        todo: list[Run] = [meanwhile]
        with (
            Bar(f"{primary.name} to {secondary.name}") as bar,
            trio.move_on_after(PATIENCE) as time,
        ):
            while (status := await primary.status(DOMID)).state != DomainState.REPLICATING:
                resync = status.replication and status.replication.resync
                if resync:
                    bar.show(resync)
                if bar.seen > 1 and todo:
                    await primary.guest(DOMID).write(todo[0])
                    self._content.write(todo.pop())
                await trio.sleep(_LOOK)
        if time.cancelled_caught:
            raise DemoError(f"not replicating within {PATIENCE:g} s; {primary.last_words()}")
        check(not todo, f"its guest wrote {meanwhile} meanwhile")
        await secondary.until_state(DOMID, DomainState.REPLICATING)
        done = primary.events("resync.done")[-1]
        tell(f"copied in {done['seconds']:.1f} s; the guest stood for {done['paused']:.3f} s of it")

    async def _write(self, host: Machine, *runs: Run) -> None:
        for run in runs:
            await host.guest(DOMID).write(run)
            self._content.write(run)
            host.tell(f"the guest writes {run}")

    async def checkpoint_and_lose(self, primary: Machine, secondary: Machine, fill: int) -> None:
        """Take a checkpoint, write on, lose the primary, fail over, and read."""
        step(f"The guest writes on {primary.name}, then a checkpoint: {secondary.name} is equal")
        await self._write(primary, Run(fill, 0, 3), Run(fill + 1, 30, 1))
        await primary.xencolo("checkpoint", str(DOMID), "--wait")
        checkpoint = self._content.copy()
        step(f"The guest writes on: {secondary.name} keeps what that overwrites, till the next one")
        after = Run(fill + 0x11, 1, 4), Run(fill + 0x12, 36, 1)
        await self._write(primary, *after)
        check(await primary.guest(DOMID).reads(after[0]), f"on {primary.name} it is there")
        for host in (primary, secondary):
            await host.xencolo("status", str(DOMID))
        step(f"Host {primary.name} dies")
        await primary.lose()
        await secondary.until_state(DOMID, DomainState.DEGRADED)
        tell("who is to be the primary is the operator's to say: xencolod never elects")
        step(f"Failover on {secondary.name}")
        await secondary.xencolo("failover", str(DOMID), "--wait")
        await secondary.until_state(DOMID, DomainState.PROMOTED)
        done = secondary.events("failover.done")[-1]
        await secondary.xencolo("status", str(DOMID))
        tell(
            f"from the command to promoted: {done['seconds']:.3f} s; generation {done['generation']}"
        )
        self._content = checkpoint
        await self.prove(secondary, after)

    async def prove(self, host: Machine, after: Sequence[Run]) -> None:
        """Read that a host holds the last checkpoint, all of it and nothing else."""
        step(f"Proof: {host.name} holds exactly the last checkpoint")
        guest, runs = host.guest(DOMID), list(self._content.runs())
        wrong = [str(run) for run in runs if not await guest.reads(run)]
        check(not wrong, f"in {len(runs)} reads its guest finds all {SIZE} MiB so{_but(wrong)}")
        for run in after:
            check(not await guest.reads(run), f"it does not read what came after: {run}")
        check(self._content.is_in(host.image), f"{host.image.name} is that, byte by byte")
