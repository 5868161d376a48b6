"""A host in miniature: xencolod as a process of its own, a real xenstored, real QEMUs, real images.

What is written and read in xenstore here goes through pyxs, and the nodes of a disk are spelled out
from libxl's sources and not taken from xencolo's table: so both sides can't be wrong together.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyxs
from pyxs._internal import Op, Packet, next_rq_id

from tests.rigs.servers import DEADLINE

T = TypeVar("T")


#: Devids, from Xen's xen-vbd-interface(7).
XVDA, XVDB, SDA, SDB, HDC = 51712, 51728, 2048, 2064, 5632
_XENCOLO = [sys.executable, "-c", "from xencolod.cli import main; main()"]
#: What is said of a domain whose QEMU runs and that has no peer: without a COLO disk, primary, secondary.
RUNS = {"running", "standalone", "listening"}
_DAEMON = ("-c", "from xencolod.cli import daemon_main; daemon_main()")


def until(check: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Return the first true result of ``check``; fail with ``what`` when none comes in time."""
    end = time.monotonic() + deadline
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not so after {deadline:g} s: {what}")
        time.sleep(0.005)


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((address, 0))
        return [one.getsockname()[1] for one in sockets]


class Images:
    """Image files, each made once by qemu-img and copied after that."""

    def __init__(self, templates: Path) -> None:
        self._templates = templates
        self._templates.mkdir(parents=True, exist_ok=True)

    def make(self, path: Path, fmt: str) -> str:
        """Make an empty image of 1 MiB; return its path."""
        template = self._templates / fmt
        if not template.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", fmt, template, "1M"], check=True)
        shutil.copyfile(template, path)
        return str(path)


class Disk(NamedTuple):
    """A disk as the toolstack describes it."""

    domid: int
    devid: int
    params: str
    nodes: Mapping[str, str]

    @property
    def backend(self) -> str:
        """The backend's directory."""
        return f"/local/domain/0/backend/qdisk/{self.domid}/{self.devid}"

    @property
    def libxl(self) -> str:
        """The toolstack's copy."""
        return f"/libxl/{self.domid}/device/vbd/{self.devid}"

    @property
    def frontend(self) -> str:
        """The guest's directory."""
        return f"/local/domain/{self.domid}/device/vbd/{self.devid}"

    @property
    def error(self) -> str:
        """Where Xen's tools look for its error."""
        return f"/local/domain/0/error/backend/qdisk/{self.domid}/{self.devid}/error"

    @property
    def image(self) -> str:
        """The path of its image."""
        return self.params.partition(":")[2]


class Store:
    """Xenstore through pyxs, as any other program on the host uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.client = pyxs.Client(str(path))
        self.client.connect()
        self._together = False

    def close(self) -> None:
        """End the connection."""
        self.client.close()

    def read(self, path: str) -> str | None:
        """Return a node's value, None where it is absent."""
        try:
            value: bytes = self.client.read(path.encode())
        except pyxs.PyXSError as error:
            if error.args[0] == 2:
                return None
            raise
        return value.decode()

    def write(self, path: str, value: str | bytes) -> None:
        """Write a node; its parents are made. Past pyxs's own check, which refuses empty values."""
        data = value if isinstance(value, bytes) else value.encode()
        packet = Packet(
            Op.WRITE, path.encode() + b"\0" + data, rq_id=next_rq_id(), tx_id=self.client.tx_id
        )
        answer = self.client.router.send(packet).get()
        if answer.op == Op.ERROR:
            raise pyxs.PyXSError(answer.payload[:-1].decode(), path)

    def delete(self, path: str) -> None:
        """Remove a node and all below it; nothing happens where it is absent."""
        try:
            self.client.delete(path.encode())
        except pyxs.PyXSError as error:
            if error.args[0] != 2:
                raise

    def exists(self, path: str) -> bool:
        """Tell whether a node is there."""
        return self.read(path) is not None

    def list(self, path: str) -> list[str]:
        """Return the names below a node, none where it is absent."""
        if not self.client.exists(path.encode()):
            return []
        return sorted(name.decode() for name in self.client.list(path.encode()))

    def permit(self, path: str, *permissions: str) -> None:
        """Set a node's permissions."""
        self.client.set_perms(path.encode(), [word.encode() for word in permissions])

    def tree(self, path: str) -> dict[str, str]:
        """Return every node below a path with its value."""
        found = {}
        for name in self.list(path):
            below = f"{path}/{name}"
            found[below] = self.read(below) or ""
            found |= self.tree(below)
        return found

    def together(self, change: Callable[[], None]) -> None:
        """Make a change in one transaction, which may be under way, from the start again after a conflict."""
        if self._together:
            change()
            return
        for _ in range(100):
            self.client.transaction()
            self._together = True
            try:
                change()
            finally:
                self._together = False
            if self.client.commit():
                return
        raise AssertionError("a hundred conflicts on end")

    # -- what a toolstack does ------------------------------------------------------------------

    def create(self, domid: int, name: str = "web", identity: str | None = None) -> None:
        """Create a domain."""
        identity = identity or str(uuid.uuid4())
        home = f"/local/domain/{domid}"

        def change() -> None:
            self.write(home, "")
            self.permit(home, "n0", f"r{domid}")
            self.write(f"{home}/vm", f"/vm/{identity}")
            self.write(f"{home}/name", name)
            self.write(f"/libxl/{domid}", "")
            self.permit(f"/libxl/{domid}", "n0")

        self.together(change)

    def destroy(self, domid: int, *others: str) -> None:
        """Destroy a domain and all of its devices, and delete other paths with it, all at once."""

        def change() -> None:
            for path in (
                f"/local/domain/{domid}",
                f"/local/domain/0/backend/qdisk/{domid}",
                f"/local/domain/0/error/backend/qdisk/{domid}",
                f"/libxl/{domid}",
                *others,
            ):
                if self.exists(path):
                    self.delete(path)

        self.together(change)

    def attach(self, *disks: Disk, role: str | None = None) -> None:
        """Write the nodes of disks as libxl 4.17 does, but all at once."""

        def change() -> None:
            for disk in disks:
                self._describe(disk)
                if role:
                    self.write(f"/libxl/{disk.domid}/colo/role", role)

        self.together(change)

    def _describe(self, disk: Disk) -> None:
        self.write(f"{disk.libxl}/frontend", disk.frontend)
        self.write(f"{disk.libxl}/backend", disk.backend)
        self.write(disk.frontend, "")
        self.permit(disk.frontend, f"n{disk.domid}", "r0")
        self.write(f"{disk.frontend}/backend", disk.backend)
        self.write(f"{disk.frontend}/state", "1")
        self.write(disk.backend, "")
        self.permit(disk.backend, "n0", f"r{disk.domid}")
        for directory in (disk.backend, disk.libxl):
            for name, value in disk.nodes.items():
                self.write(f"{directory}/{name}", value)
        self.write(f"{disk.backend}/frontend", disk.frontend)

    def detach(self, disk: Disk) -> None:
        """Remove the nodes of a disk."""

        def change() -> None:
            for path in (disk.frontend, disk.backend, disk.libxl):
                self.delete(path)

        self.together(change)


class Foreign:
    """A process that somebody else runs; it waits on its standard input."""

    def __init__(self, *argv: str, program: str | None = None) -> None:
        self._process = subprocess.Popen(
            argv, executable=shutil.which(program or argv[0]), stdin=subprocess.PIPE
        )
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Host:
    """xencolod and all around it; :meth:`close` ends every process.

    :ivar store: xenstore through pyxs; for the embedded store from :meth:`start` on.
    :ivar xencolod: Python's arguments that make it xencolod.
    :ivar within: what starts it, where it is to run in other namespaces.
    """

    def __init__(self, directory: Path, images: Images, xenstore: Path | str) -> None:
        self.directory = directory
        self.runtime = directory / "run"
        self.logs = directory / "log"
        self.log = directory / "events"
        self.config = directory / "xencolod.toml"
        self._images = images
        self._xenstore = xenstore
        self._store: Store | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[Foreign] = []
        self.address = "127.0.0.1"
        (self.link_port,) = free_ports(1, self.address)
        self._nbd_ports: dict[int, int] = {}
        self._gate: FileIO | None = None
        self.environment: dict[str, str] = {}
        self.xencolod: tuple[str, ...] = _DAEMON
        self.within: tuple[str, ...] = ()
        self.arguments: list[str] = []
        self.configure()

    # -- the daemon -----------------------------------------------------------------------------

    def configure(
        self,
        *,
        daemon: Mapping[str, Any] | None = None,
        qemu: Mapping[str, Any] | None = None,
        link: Mapping[str, Any] | None = None,
        replication: Mapping[str, Any] | None = None,
        failover: Mapping[str, Any] | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the configuration: quick, with places of its own, and a link in the plain mode."""
        sections: dict[str, dict[str, Any]] = {
            "xenstore": {"reconnect_max": 0.1},
            "daemon": {
                "runtime_directory": str(self.runtime),
                "log_directory": str(self.logs),
                "state_directory": str(self.directory / "state"),
                "settle": 0.03,
                **(daemon or {}),
            },
            "qemu": {"backoff": 0.05, "backoff_max": 0.2, "start_attempts": 3, **(qemu or {})},
            "link": {
                "listen": self.address,
                "port": self.link_port,
                "unencrypted_and_unauthenticated": True,
                **(link or {}),
            },
            "replication": {"retry_max": 0.3, **(replication or {})},
            "failover": dict(failover or {}),
            "images": dict(images or {}),
        }
        lines = []
        for name, keys in sections.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in keys.items())]
        self.config.write_text("\n".join(lines))

    def start(self, *, ready: bool = True) -> int:
        """Start xencolod; return its pid, once its first pass is done."""
        mark = self.mark()
        self._process = self._spawn()
        if ready:
            self.event("daemon.ready", since=mark)
        return self._process.pid

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log, (self.directory / "stderr").open("ab") as errors:
            return subprocess.Popen(
                [
                    *(*self.within, sys.executable, *self.xencolod),
                    *("--config", str(self.config), "--xenstore", str(self._xenstore)),
                    *self.arguments,
                ],
                stdout=log,
                stderr=errors,
                env=os.environ | {"XENSTORED_PATH": "/nonexistent"} | self.environment,
            )

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._process
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send the daemon a signal."""
        assert self._process
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ask the daemon to end; return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def kill(self) -> None:
        """Kill the daemon."""
        self.signal(signal.SIGKILL)
        self.wait_exit()

    def wait_exit(self) -> int:
        """Wait until the daemon has ended; return its exit status."""
        assert self._process
        return self._process.wait(DEADLINE)

    def stderr(self) -> str:
        """Return what the daemon wrote beside its log."""
        path = self.directory / "stderr"
        return path.read_text() if path.exists() else ""

    # -- its log --------------------------------------------------------------------------------

    def events(
        self, name: str | None = None, /, *, since: int = 0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Return the events so far, or those of a name and with these fields."""
        if not self.log.exists():
            return []
        whole = self.log.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()[since:]]
        return [
            event
            for event in found
            if (name is None or event["event"] == name)
            and all(event.get(key) == value for key, value in fields.items())
        ]

    def mark(self) -> int:
        """Return a place in the log, to look only behind it."""
        return len(self.events())

    def event(self, name: str, /, *, since: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for an event and return it."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, since=since, **fields)
            if not found and not self.alive:
                found = self.events(name, since=since, **fields)
                assert found, f"xencolod ended before {name} {fields}:\n{self.stderr()}"
            return found

        try:
            return until(look, f"event {name} {fields}")[0]
        except AssertionError as error:
            tail = "\n".join(map(str, self.events()[-12:]))
            raise AssertionError(f"{error}\n{tail}\n{self.stderr()}") from None

    def state(self, domid: int, state: str) -> None:
        """Wait until the published state of a domain is this one."""
        path = f"/libxl/{domid}/colo/state"
        try:
            wanted = RUNS if state == "running" else {state}
            until(lambda: self.store.read(path) in wanted, f"{path} = {state}")
        except AssertionError as error:
            tail = "\n".join(map(str, self.events()[-12:]))
            now = self.store.tree(f"/libxl/{domid}/colo")
            raise AssertionError(f"{error}\n{now}\n{tail}\n{self.stderr()}") from None

    def barrier(self) -> None:
        """Wait until the daemon has looked at everything that was written before.

        A domain with a role that is none comes after it in the order of watch events; that it is
        complained of tells that the pass which took all of them has made its decisions.
        """
        number = len(self.events("domain.role_error")) + 20000
        home, node = f"/local/domain/{number}", f"/libxl/{number}/colo/role"
        self.store.write(home, "")
        self.store.write(node, "a barrier")
        self.event("domain.role_error", domid=number)
        self.store.delete(home)
        self.store.delete(f"/libxl/{number}")

    # -- the store ------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """Xenstore through pyxs."""
        if self._store is None:
            self._store = Store(Path(str(self._xenstore).removeprefix("embedded:")))
        return self._store

    # -- disks ----------------------------------------------------------------------------------

    def port_of(self, domid: int) -> int:
        """Return the port of the domain's NBD server, were it a secondary: no two may share one."""
        if domid not in self._nbd_ports:
            (self._nbd_ports[domid],) = free_ports(1, self.address)
        return self._nbd_ports[domid]

    def disk(
        self,
        domid: int,
        vdev: str = "xvda",
        devid: int = XVDA,
        *,
        colo: bool = True,
        make: bool = True,
        **changed: str,
    ) -> Disk:
        """Return a disk with images of its own; ``changed`` overrides nodes (``_`` for ``-``)."""
        stem = f"d{domid}-{vdev}"
        target = self.directory / f"{stem}.raw"
        if make:
            self._images.make(target, "raw")
        nodes = {"params": f"aio:{target}"}
        if colo:
            nodes |= {
                "colo-host": self.address,
                "colo-port": str(self.port_of(domid)),
                "colo-export": stem,
                "active-disk": self._image(f"{stem}-active", make=make),
                "hidden-disk": self._image(f"{stem}-hidden", make=make),
            }
        nodes |= {
            "frontend-id": str(domid),
            "online": "1",
            "removable": "0",
            "bootable": "1",
            "state": "1",
            "dev": vdev,
            "type": "qdisk",
            "mode": "w",
            "device-type": "disk",
            "discard-enable": "1",
            "specification": "xen",
        }
        nodes |= {name.replace("_", "-"): value for name, value in changed.items()}
        return Disk(domid, devid, nodes["params"], nodes)

    def _image(self, name: str, *, make: bool) -> str:
        path = self.directory / f"{name}.qcow2"
        return self._images.make(path, "qcow2") if make else str(path)

    def image(self, path: str, fmt: str) -> None:
        """Make an image where a disk said that there is one."""
        self._images.make(Path(path), fmt)

    def domain(self, domid: int, *, role: str | None = None, **disk: Any) -> Disk:
        """Create a domain with one COLO disk."""
        self.store.create(domid)
        made = self.disk(domid, **disk)
        self.store.attach(made, role=role)
        return made

    def running(self, domid: int, *, role: str | None = None, **disk: Any) -> tuple[Disk, int]:
        """Create a domain with one COLO disk and wait for its QEMU; return disk and pid."""
        made = self.domain(domid, role=role, **disk)
        self.state(domid, "running")
        return made, self.qemu(domid)

    # -- QEMUs ----------------------------------------------------------------------------------

    def qemus(self, domid: int | None = None) -> list[int]:
        """Return the pids of this host's living QEMUs, found by their command lines in /proc."""
        pidfile = f"{self.runtime}/{'' if domid is None else f'{domid}.pid'}"
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                words = argv_of(int(entry.name))
                if "-pidfile" in words and words[words.index("-pidfile") + 1].startswith(pidfile):
                    found.append(int(entry.name))
        return sorted(found)

    def qemu(self, domid: int) -> int:
        """Return the pid of the domain's only QEMU."""
        (pid,) = self.qemus(domid)
        return pid

    def starting(self, domid: int) -> int:
        """Wait until a QEMU of the domain is a process; return its pid."""
        until(lambda: self.qemus(domid), f"a QEMU of domain {domid} is started")
        return self.qemu(domid)

    def has_open(self, domid: int, *paths: str) -> bool:
        """Tell whether a QEMU of the domain has these files open."""
        return any(open_files(pid).issuperset(paths) for pid in self.qemus(domid))

    def qmp_socket(self, domid: int) -> Path:
        """Return the QMP socket of the domain's QEMU."""
        words = argv_of(self.qemu(domid))
        chardev = words[words.index("-mon") - 1]
        nonce = chardev.split(",")[1].removeprefix("id=xencolo-")
        return self.runtime / f"{domid}-{nonce}.qmp"

    def foreign(self, name: str) -> Foreign:
        """Start a process with this argv[0], a name of one's own choosing: cat, in truth."""
        return self._theirs(Foreign(name, program="cat"))

    def foreign_qemu(self, domid: int) -> Foreign:
        """Start a QEMU that is not xencolod's, and say that it is the domain's device model."""
        options = ("-machine", "none", "-nodefaults", "-display", "none", "-S")
        theirs = self._theirs(Foreign("qemu-system-x86_64", *options))
        self.store.write(f"/local/domain/{domid}/image/device-model-pid", str(theirs.pid))
        self.store.write(f"/local/domain/0/device-model/{domid}/state", "running")
        return theirs

    def _theirs(self, process: Foreign) -> Foreign:
        self._ended.append(process)
        return process

    def program(self, *lines: str) -> str:
        """Write a shell script to be taken for QEMU; return its path."""
        path = self.directory / "qemu"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    def gated_qemu(self) -> str:
        """Return a QEMU that does not get as far as its pid file before :meth:`open_gate`."""
        os.mkfifo(self.directory / "gate")
        wait = f"read -r _ < {self.directory}/gate"  # the shell's own: no child looks like a QEMU
        return self.program(wait, 'exec qemu-system-x86_64 "$@"')

    def old_qemu(self, version: str) -> str:
        """Return a QEMU that says that it is of this version."""
        script = Path(__file__).with_name("old_qemu.py")
        return self.program(f'exec {sys.executable} -P {script} {version} "$@"')

    def open_gate(self) -> None:
        """Let every :meth:`gated_qemu` go on, a line for each; those to come too."""
        self._gate = (self.directory / "gate").open("r+b", buffering=0)
        self._gate.write(b"\n" * 100)

    def published(self, domid: int) -> int:
        """Wait until the domain has one QEMU and all nodes say that it runs; return its pid."""

        def look() -> int | None:
            read, pids = self.store.read, self.qemus(domid)
            said = {
                read(f"/libxl/{domid}/colo/qemu-pid"),
                read(f"/local/domain/{domid}/image/device-model-pid"),
            }
            states = {
                read(f"/libxl/{domid}/colo/state"),
                read(f"/local/domain/0/device-model/{domid}/state"),
            }
            right = said == {str(pid) for pid in pids} and states <= RUNS
            return pids[0] if right else None

        try:
            return until(look, f"domain {domid} has one QEMU and says so") or 0
        except AssertionError as error:
            tail = "\n".join(map(str, self.events()[-12:]))
            raise AssertionError(f"{error}\n{self.qemus(domid)}\n{tail}") from None

    def calm(self, *domids: int) -> bool:
        """Tell whether all these domains are said to run."""
        return all(self.store.read(f"/libxl/{domid}/colo/state") in RUNS for domid in domids)

    def xencolo(self, *words: str) -> str:
        """Run the operator's command; return what it printed."""
        done = subprocess.run(
            [*_XENCOLO, *words],
            env=os.environ | {"XENSTORED_PATH": str(self.store.path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # -- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process that was started, by its pid."""
        # First: pyxs's thread does not survive the end of an embedded store.
        self.leave_store()
        if self.alive:
            self.kill()
        for pid in self.qemus():
            end(pid)
        for process in self._ended:
            process.end()
        if self._gate:
            self._gate.close()

    def leave_store(self) -> None:
        """End the connection to xenstore; the next use opens another."""
        if self._store:
            self._store.close()
            self._store = None


def argv_of(pid: int) -> list[str]:
    """Return the command line of a process, nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def end(pid: int) -> None:
    """Kill a process and wait until it is gone with the locks of its files, which outlive its argv."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: _ended(pid), f"process {pid} gone")


def _ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    fields = stat.rpartition(")")[2].split()
    state, threads = fields[0], int(fields[17])
    return (
        state in "ZX" and threads <= 1
    )  # its other threads hold its files open until they end too


def open_files(pid: int) -> set[str]:
    """Return the files that a process has open."""
    found = set()
    with suppress(FileNotFoundError, PermissionError):  # it has ended
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                found.add(os.readlink(entry.path))
    return found


def qmp(path: Path, command: str, **arguments: Any) -> Any:
    """Put one command to a QEMU, over a connection of its own."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rw") as lines:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        replies = _replies(lines)
        assert "QMP" in next(replies)
        for name, values in (("qmp_capabilities", {}), (command, arguments)):
            lines.write(json.dumps({"execute": name, "arguments": values}))
            lines.flush()
            reply = next(replies)
        return reply["return"]


def _replies(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        message = json.loads(line)
        if "event" not in message:
            yield message
