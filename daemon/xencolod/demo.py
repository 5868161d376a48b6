"""``xencolo demo``: the main job on real parts, told step by step, and checked at each of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from xencolo import requests
from xencolo.errors import XencoloError
from xencolo.paths import DevicePaths, colo_path
from xencolod import domains
from xencolod.argv import launch_in
from xencolod.process import Files, adopt, domains_with_qemu
from xencolod.xenstore import Client, ask, directory, open_client, read

_PATIENCE = 20.0
_POLL = 0.02
PRIMARY, SECONDARY, PLAIN = 101, 102, 103
_VDEV, _DEVID = "xvda", 51712


class DemoError(XencoloError):
    """Something was not as it must be."""


def _step(text: str) -> None:
    print(f"\n== {text}", flush=True)  # noqa: T201 - the demo talks to a person


def _tell(text: str) -> None:
    print(f"   {text}", flush=True)  # noqa: T201 - the demo talks to a person


def _check(so: bool, what: str) -> None:
    if not so:
        raise DemoError(f"not so: {what}")
    _tell(f"ok: {what}")


class Demo:
    """One run: its folder, its store, its daemon."""

    def __init__(self, folder: Path, socket: str, client: Client) -> None:
        self.folder = folder
        self.client = client
        self._socket = socket
        self._log = folder / "xencolod.log"

    # -- the parts -------------------------------------------------------------------------------

    def images(self) -> None:
        """Make the images with qemu-img."""
        for name in ("primary.raw", "secondary.raw", "plain.raw"):
            self._run("qemu-img", "create", "-q", "-f", "raw", str(self.folder / name), "16M")
        for name in ("active.qcow2", "hidden.qcow2"):
            self._run("qemu-img", "create", "-q", "-f", "qcow2", str(self.folder / name), "16M")

    def spec(self, image: str) -> str:
        """Return the disk specification of a COLO disk."""
        folder = self.folder
        return (
            f"format=raw,vdev={_VDEV},access=rw,colo,colo-host=127.0.0.1,colo-port=9000,"
            f"colo-export=disk0,active-disk={folder}/active.qcow2,hidden-disk={folder}/hidden.qcow2,"
            f"target={folder}/{image}"
        )

    def xencolo(self, *arguments: str, quiet: bool = False) -> str:
        """Run the operator's command, show it, and return what it printed."""
        program = Path(sys.executable).with_name("xencolo")
        _tell(f"$ xencolo {shlex.join(arguments)}")
        output = self._run(str(program), "--xenstore", self._socket, *arguments)
        for line in [] if quiet else output.splitlines():
            _tell(line)
        return output

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
        if done.returncode:
            raise DemoError(f"{command[0]} exited with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    async def value(self, path: str) -> str | None:
        """Return a node's value."""
        found = await read(self.client, path)
        return None if found is None else found.decode()

    async def until(self, what: str, so: Callable[[], Awaitable[bool]]) -> None:
        """Wait until what ``so`` asks is true."""
        with trio.move_on_after(_PATIENCE):
            while not await so():
                await trio.sleep(_POLL)
            _tell(f"ok: {what}")
            return
        raise DemoError(
            f"not so within {_PATIENCE:g} s: {what}; the log is {self._log.read_text()}"
        )

    async def state_is(self, domid: int, state: str) -> bool:
        """Tell whether the daemon published this state."""
        return await self.value(f"{colo_path(domid)}/state") == state

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the daemon's log events of one name."""
        lines = map(json.loads, self._log.read_text().splitlines())
        return [line for line in lines if line["event"] == name]

    # -- the story -------------------------------------------------------------------------------

    async def add(self, domid: int, role: str, image: str, spec: str) -> None:
        """Add a disk and see its nodes, its QEMU and QEMU's argv."""
        _step(f"Domain {domid}, {role}: add a disk")
        await domains.create(self.client, domid, f"demo-{role}", xen=False)
        if role == "secondary":
            self.xencolo("domain", "restore", str(domid), "--checkpointed-stream", "colo")
        extra = ["--role", "none"] if role == "plain" else []
        self.xencolo("disk", "add", str(domid), spec, *extra)
        await self._show_nodes(DevicePaths(domid, _DEVID).backend)
        await self.until("xencolod says running", lambda: self.state_is(domid, "running"))
        pid = await self.pid(domid)
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        _tell(f"QEMU {pid} runs with:")
        drives = launch_in(domid, argv).drives
        for flag, value in zip(drives[::2], drives[1::2], strict=True):
            _tell(f"  {flag} {value}")
        printed = self.xencolo("drives", str(domid), "--json", quiet=True)
        _check(json.loads(printed) == list(drives), "these are the drives of its role")
        opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        images = {name for name in opened if name.startswith(str(self.folder))}
        _check(str(self.folder / image) in images, f"and it has opened {image}")

    async def _show_nodes(self, path: str) -> None:
        _tell(f"{path}:")
        for name in await directory(self.client, path):
            _tell(f"  {name} = {await self.value(f'{path}/{name}')}")

    async def pid(self, domid: int) -> int:
        """Return the pid of a domain's QEMU, as published."""
        return int(await self.value(f"{colo_path(domid)}/qemu-pid") or 0)

    async def break_and_mend(self) -> None:
        """Delete a mandatory node, see it said everywhere, and mend it."""
        _step("A mandatory node is deleted, and mended")
        paths = DevicePaths(PRIMARY, _DEVID)
        node, pid = f"{paths.backend}/colo-port", await self.pid(PRIMARY)
        await ask(self.client, requests.rm(node))
        _tell(f"deleted {node}")

        async def said() -> bool:
            return await self.value(paths.error) is not None

        await self.until(f"{paths.error} says so", said)
        _tell(f"  {await self.value(paths.error)}")
        self.xencolo("status", str(PRIMARY))
        events = self.events("device.error")
        _check([e["path"] for e in events] == [node], "the log says it once, with the path")
        _check(await self.pid(PRIMARY) == pid, f"QEMU {pid} was left alone")
        await ask(self.client, requests.write(node, "9000"))
        _tell(f"wrote {node} = 9000")

        async def mended() -> bool:
            return not await said()

        await self.until("the error is gone", mended)
        self.xencolo("disk", "list", str(PRIMARY))

    async def end(self) -> None:
        """Destroy the domains and see their QEMUs end."""
        _step("The domains go, and their QEMUs with them")
        pids = [await self.pid(domid) for domid in (PRIMARY, SECONDARY, PLAIN)]
        self.xencolo("disk", "remove", str(PLAIN), _VDEV, "--force")
        for domid in (PRIMARY, SECONDARY, PLAIN):
            await domains.destroy(self.client, domid, xen=False)

        async def none_left() -> bool:
            return not any(_alive(pid) for pid in pids)

        await self.until(f"QEMUs {', '.join(map(str, pids))} have ended", none_left)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def _daemon(folder: Path, where: str) -> AsyncIterator[None]:
    """Run xencolod as a process of its own; SIGTERM at the end."""
    program = Path(sys.executable).with_name("xencolod")
    config = folder / "xencolod.toml"
    config.write_text(
        f"[daemon]\nruntime_directory = {json.dumps(str(folder / 'run'))}\n"
        f"log_directory = {json.dumps(str(folder / 'log'))}\n"
        f"state_directory = {json.dumps(str(folder / 'state'))}\nsettle = 0.05\n"
    )
    command: Sequence[str] = [
        str(program),
        "--config",
        str(config),
        "--xenstore",
        where,
        "--log",
        "json",
    ]
    _tell(f"$ xencolod {shlex.join(command[1:])}")
    with (folder / "xencolod.log").open("ab") as log:
        process = await trio.lowlevel.open_process(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(_PATIENCE):
            process.terminate()
            await process.wait()
        _end_qemus(folder / "run")


def _end_qemus(runtime: Path) -> None:
    """End what a demo that failed has left: xencolod leaves QEMUs running when it ends."""
    for domid in domains_with_qemu(runtime):
        if process := adopt(Files(runtime, runtime, domid)):
            process.send_signal(signal.SIGKILL)
            process.release()


async def _play(folder: Path, socket: str, where: str) -> None:
    _step("xencolod starts")
    async with _daemon(folder, where):
        with trio.fail_after(_PATIENCE):
            while not Path(socket).exists():
                await trio.sleep(_POLL)
        async with open_client(socket, patient=True) as client:
            with trio.fail_after(_PATIENCE):
                await client.wait_connected()
            demo = Demo(folder, socket, client)
            demo.images()
            await demo.add(PRIMARY, "primary", "primary.raw", demo.spec("primary.raw"))
            await demo.add(SECONDARY, "secondary", "secondary.raw", demo.spec("secondary.raw"))
            plain = f"format=raw,vdev={_VDEV},backendtype=qdisk,target={folder}/plain.raw"
            await demo.add(PLAIN, "plain", "plain.raw", plain)
            _step("What the operator sees")
            demo.xencolo("status")
            await demo.break_and_mend()
            await demo.end()


def run(xenstore: str | None) -> None:
    """Play the demo.

    :param xenstore: the socket of a running xenstored; None serves the in-memory store.
    :raises DemoError: something was not so.
    """
    with tempfile.TemporaryDirectory(prefix="xencolo-demo-") as name:
        folder = Path(name)
        socket = xenstore or f"{folder}/xenstored.socket"
        where = xenstore or f"embedded:{socket}"
        trio.run(_play, folder, socket, where)
    _step("All of it was so.")
