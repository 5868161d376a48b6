"""A host of the demo: a store, an xencolod, its QEMUs, and the operator's command."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from xencolo.paths import DevicePaths, colo_path
from xencolod.argv import launch_in
from xencolod.asks import directory, read
from xencolod.commands.status import Status, read_status
from xencolod.demo.guest import Guest
from xencolod.demo.telling import DemoError, check, columns, tell
from xencolod.process import Files, adopt, domains_with_qemu
from xencolod.xenstore import Client, open_client

PATIENCE = 20.0
_POLL = 0.02
#: How much slower than it could a resync is, so that it can be watched: MiB/s.
SPEED = 16
VDEV, DEVID = "xvda", 51712


class Machine:
    """One of the hosts.

    :ivar address: on loopback, for its part of all of them.
    :ivar image: of the replicated disk.
    """

    def __init__(
        self, folder: Path, number: int, ports: tuple[int, int], store: str | None
    ) -> None:
        self.name = "abc"[number]
        self.address = f"127.0.0.{number + 1}"
        self.folder = folder / self.name
        self.image = self.folder / "disk.raw"
        self._link_port, self._nbd_port = ports
        self._keys = folder / "keys.pem"
        self._socket = store or f"{self.folder}/xenstored.socket"
        self._where = store or f"embedded:{self._socket}"
        self._runtime = self.folder / "run"
        self._log = self.folder / "xencolod.log"
        self._process: trio.Process | None = None
        self._client: Client | None = None
        self.folder.mkdir()

    @property
    def client(self) -> Client:
        """Its xenstore.

        :raises DemoError: the host does not run.
        """
        if self._client is None:
            raise DemoError(f"host {self.name} does not run")
        return self._client

    def tell(self, text: str) -> None:
        """Say what is done or seen on this host."""
        tell(f"{self.name}: {text}")

    # -- the daemon ------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run xencolod; at the end it and its QEMUs are ended."""
        await self._start()
        try:
            with trio.fail_after(PATIENCE):
                while not Path(self._socket).exists():
                    await trio.sleep(_POLL)
            async with open_client(self._socket, patient=True) as self._client:
                with trio.fail_after(PATIENCE):
                    await self._client.wait_connected()
                yield
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _start(self) -> None:
        program = Path(sys.executable).with_name("xencolod")
        config = self.folder / "xencolod.toml"
        config.write_text(self._config())
        command = [str(program), "--config", str(config), "--xenstore", self._where]
        self.tell(f"$ xencolod {shlex.join(command[1:])} &")
        with self._log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [*command, "--log", "json"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _config(self) -> str:
        monitor = f"socket,id=guest,path={self._monitor},server=on,wait=off"
        sections: dict[str, dict[str, object]] = {
            "daemon": {
                "runtime_directory": str(self._runtime),
                "log_directory": str(self.folder / "log"),
                "state_directory": str(self.folder / "state"),
                "settle": 0.05,
            },
            "link": {"listen": self.address, "port": self._link_port, "keys": str(self._keys)},
            "qemu": {
                "extra_arguments": ["-chardev", monitor, "-mon", "chardev=guest,mode=control"]
            },
            "replication": {"resync_speed": SPEED, "poll": 0.1, "retry_max": 0.5},
        }
        lines = []
        for name, keys in sections.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        return "\n".join(lines) + "\n"

    async def _end(self) -> None:
        """End xencolod, then its QEMUs, which it leaves running."""
        if self._process and self._process.returncode is None:
            self._process.terminate()
            with trio.move_on_after(PATIENCE) as patience:
                await self._process.wait()
            if patience.cancelled_caught:
                self._process.kill()
        if len(self.events("qemu.starting")) > len(self.events("qemu.running")):
            await trio.sleep(0.5)  # one that was just starting can be found only then
        self._kill_qemus()

    def _kill_qemus(self) -> list[int]:
        pids = []
        for domid in domains_with_qemu(self._runtime):
            if process := adopt(Files(self._runtime, self._runtime, domid)):
                process.send_signal(signal.SIGKILL)
                pids.append(process.pid)
                process.release()
        return pids

    async def lose(self) -> None:
        """Have the host die: xencolod and QEMU are killed, by their pids."""
        if self._process:
            self._process.kill()
            self.tell(f"$ kill -KILL {self._process.pid}     # xencolod")
            with trio.fail_after(PATIENCE):
                await self._process.wait()
        for pid in self._kill_qemus():
            self.tell(f"$ kill -KILL {pid}     # QEMU")

        async def gone() -> bool:
            return not domains_with_qemu(self._runtime)

        await self.until("nothing of it runs any more", gone)

    # -- asking ----------------------------------------------------------------------------------

    async def xencolo(self, *arguments: str, quiet: bool = False) -> str:
        """Run the operator's command, show it, and return what it printed.

        :raises DemoError: it failed, or did not end in time.
        """
        program = Path(sys.executable).with_name("xencolo")
        self.tell(f"$ xencolo {shlex.join(arguments)}")
        command = [str(program), "--xenstore", self._socket, *arguments]
        with trio.move_on_after(PATIENCE):
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode:
                said = done.stderr.decode().strip()
                raise DemoError(f"exit status {done.returncode}: {said}\n{self.last_words()}")
            output = done.stdout.decode()
            for line in columns([] if quiet else output.splitlines()):
                tell(f"   {line}")
            return output
        raise DemoError(f"xencolo {arguments[0]} did not end within {PATIENCE:g} s")

    async def value(self, path: str) -> str | None:
        """Return a node's value."""
        found = await read(self.client, path)
        return None if found is None else found.decode()

    async def until(self, what: str, so: Callable[[], Awaitable[bool]]) -> None:
        """Wait until what ``so`` asks is true.

        :raises DemoError: it was not in time.
        """
        with trio.move_on_after(PATIENCE):
            while not await so():
                await trio.sleep(_POLL)
            check(True, what)
            return
        raise DemoError(f"not so within {PATIENCE:g} s: {what}; {self.last_words()}")

    async def until_state(self, domid: int, state: str) -> None:
        """Wait until the daemon publishes this state."""

        async def so() -> bool:
            return await self.value(f"{colo_path(domid)}/state") == state

        await self.until(f"xencolod on {self.name} says {state}", so)

    async def status(self, domid: int) -> Status:
        """Return what ``xencolo status`` shows of a domain."""
        (status,) = await read_status(self.client, domid)
        return status

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the events in the daemon's log, or those of one name."""
        whole = self._log.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if name in {None, line["event"]}]

    def last_words(self) -> str:
        """Return the end of the daemon's log."""
        return f"the log of {self.name} ends with\n" + "\n".join(
            map(json.dumps, self.events()[-12:])
        )

    async def pid(self, domid: int) -> int:
        """Return the pid of a domain's QEMU, as published."""
        return int(await self.value(f"{colo_path(domid)}/qemu-pid") or 0)

    # -- a domain --------------------------------------------------------------------------------

    @property
    def _monitor(self) -> Path:
        return self.folder / "monitor"

    def guest(self, domid: int) -> Guest:
        """Return the guest of a domain; there is one at a time on a host."""
        return Guest(self._monitor, self.folder / "log" / f"qemu-{domid}.log", DEVID)

    def colo_spec(self, secondary: "Machine") -> str:
        """Return the disk specification of the replicated disk: where the secondary is, says each."""
        return (
            f"format=raw,vdev={VDEV},access=rw,colo,colo-host={secondary.address},"
            f"colo-port={self._nbd_port},colo-export=disk0,"
            f"active-disk={self.folder}/active.qcow2,hidden-disk={self.folder}/hidden.qcow2,"
            f"target={self.image}"
        )

    async def show_nodes(self, domid: int) -> None:
        """Show the nodes of the domain's disk."""
        path = DevicePaths(domid, DEVID).backend
        self.tell(f"{path}:")
        for name in await directory(self.client, path):
            tell(f"     {name} = {await self.value(f'{path}/{name}')}")

    async def show_qemu(self, domid: int, image: Path) -> None:
        """Show the drives of the domain's QEMU, and that they are those of its role."""
        pid = await self.pid(domid)
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        self.tell(f"QEMU {pid} runs with:")
        drives = launch_in(domid, argv).drives
        for flag, value in zip(drives[::2], drives[1::2], strict=True):
            tell(f"     {flag} {value}")
        printed = await self.xencolo("drives", str(domid), "--json", quiet=True)
        check(json.loads(printed) == list(drives), "these are the drives of its role")
        opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        check(str(image) in opened, f"and it has opened {image.name}")
