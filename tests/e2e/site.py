"""Several hosts on one machine: each with its own xenstored, xencolod, address and domain."""

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.host import SDA, XVDA, Disk, Host, Images, end, free_ports, until
from tests.rigs import Server, start_xenstored
from tests.rigs.servers import DEADLINE

DOMID = 5
UUID = "5f1a9d3e-0b0c-4c1d-8e2f-3a4b5c6d7e8f"
COLO = f"/libxl/{DOMID}/colo"
MIB = 1 << 20
#: A daemon that hears nothing for so long takes its peer for lost, so that a test need not wait.
QUICK_LINK = {"timeout": 0.5, "ping_interval": 0.2}
#: What a test's domain has: vdev and devid, one of them behind IDE and one behind SCSI.
DISKS = (("xvda", XVDA), ("sda", SDA))


#: What a primary tells of them.
INFOS = [{"vdev": vdev, "export": f"web-{vdev}", "length": MIB} for vdev, _ in DISKS]


class Refused(AssertionError):
    """QEMU refuses a command."""


class Monitor:
    """A second QMP connection to a domain's QEMU, by which the test plays the guest."""

    def __init__(self, path: Path, output: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._output = output
        until(lambda: self._socket.connect_ex(str(path)) == 0, f"a monitor at {path}")
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Return what the command returns; raise :class:`Refused` where QEMU refuses it."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                if "error" in message:
                    raise Refused(message["error"])
                return message["return"]

    def io(self, devid: int, command: str) -> str:
        """Have the guest's device do something; return what qemu-io says that is amiss."""
        start = self._output.stat().st_size
        line = f'qemu-io -d disk-{devid} "{command}"'
        reply = self("human-monitor-command", **{"command-line": line})
        said = self._output.read_bytes()[start:].decode("utf-8", "replace")
        wrong = [row for row in said.splitlines() if "failed" in row or "error" in row.lower()]
        return " / ".join([*wrong, *([reply.strip()] if reply.strip() else [])])

    def write(self, devid: int, pattern: int, offset: str, length: str) -> None:
        """Write as the guest does, and flush."""
        wrong = self.io(devid, f"write -P {pattern:#x} {offset} {length}")
        assert not wrong, wrong

    def begin(self, devid: int, command: str) -> None:
        """Have the guest's device do something, and wait for no end of it."""
        line = f'qemu-io -d disk-{devid} "aio_{command}"'
        self("human-monitor-command", **{"command-line": line})

    def holds(self, devid: int, pattern: int, offset: str, length: str) -> bool:
        """Tell whether the guest reads nothing but the pattern there."""
        wrong = self.io(devid, f"read -P {pattern:#x} {offset} {length}")
        assert "erification failed" in wrong or not wrong, wrong
        return not wrong

    def close(self) -> None:
        """Let go of it."""
        self._lines.close()
        self._socket.close()


class Caller:
    """Somebody who speaks to a daemon as a primary's daemon does, in JSON written out by hand."""

    def __init__(self, member: "Member") -> None:
        self._socket = socket.create_connection(
            (member.address, member.link_port), timeout=DEADLINE
        )
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._number = 0

    def send(self, kind: str, **fields: Any) -> None:
        """Ask, and don't wait for the answer."""
        self._number += 1
        message = {"type": kind, **fields}
        self._lines.write(json.dumps({"id": self._number, "message": message}) + "\n")
        self._lines.flush()

    def __call__(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Ask, and return the answer."""
        self.send(kind, **fields)
        reply = json.loads(self._lines.readline())
        assert reply["id"] == self._number, reply
        message: dict[str, Any] = reply["message"]
        return message

    @staticmethod
    def fields(generation: int = 1, session: str | None = None, **changed: Any) -> dict[str, Any]:
        """Return what a hello says for the domain that all tests have."""
        fields = {"version": 2, "uuid": UUID, "name": "web", "generation": generation}
        return fields | {"session": session, "diverged": True, "disks": INFOS} | changed

    def hello(self, generation: int = 1, session: str | None = None, **changed: Any) -> Any:
        """Say hello for the domain that all tests have."""
        return self("hello", **self.fields(generation, session, **changed))

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


class Member(Host):
    """One of the hosts, with the domain that all of them know by one uuid.

    :ivar server: its xenstored.
    """

    def __init__(
        self, directory: Path, images: Images, server: Server, address: str, port: int
    ) -> None:
        self.server = server
        directory.mkdir(parents=True, exist_ok=True)
        self._monitor: tuple[int, Monitor] | None = None
        super().__init__(directory, images, server.socket)
        self.address, self.link_port = address, port
        self.options: dict[str, dict[str, Any]] = {}
        self.disks: list[Disk] = []
        self.arguments = ["--debug"]

    @property
    def nbd_port(self) -> int:
        """The port of the domain's NBD server, where it is a secondary."""
        return self.port_of(DOMID)

    def set(self, **sections: dict[str, Any]) -> None:
        """Configure it, with a second monitor for the test."""
        self.options |= sections
        monitor = [
            *("-chardev", f"socket,id=test,path={self._monitor_path},server=on,wait=off"),
            *("-mon", "chardev=test,mode=control"),
        ]
        sections = dict(self.options)
        sections["qemu"] = {"extra_arguments": monitor} | sections.get("qemu", {})
        sections["replication"] = {"poll": 0.1} | sections.get("replication", {})
        self.configure(**sections)

    @property
    def _monitor_path(self) -> Path:
        return self.directory / "monitor"

    def add(
        self,
        role: str | None = None,
        *,
        peer: "Member | None" = None,
        disks: Sequence[tuple[str, int]] = DISKS,
        mib: int = 1,
        **nodes: str,
    ) -> None:
        """Create the domain with its disks; their colo-host is the secondary's, which is ``peer``."""
        self.store.create(DOMID, identity=UUID)
        self.attach(role, peer=peer, disks=disks, mib=mib, **nodes)

    def attach(
        self,
        role: str | None = None,
        *,
        peer: "Member | None" = None,
        disks: Sequence[tuple[str, int]] = DISKS,
        mib: int = 1,
        **nodes: str,
    ) -> None:
        """Give the domain disks; as :meth:`add`."""
        target = peer or self
        made: list[Disk] = []
        for vdev, devid in disks:
            named: dict[str, Any] = {"colo_host": target.address, "colo_port": str(target.nbd_port)}
            named |= {"colo_export": f"web-{vdev}"} | nodes
            disk = self.disk(DOMID, vdev, devid, **named)
            if mib != 1:
                Path(disk.image).write_bytes(b"\x5a" * (mib * MIB))  # zeros copy in no time
                for node in ("active-disk", "hidden-disk"):
                    Path(disk.nodes[node]).unlink()  # too short: the daemon makes them
            made.append(disk)
        self.disks += made
        self.store.attach(*made, role=role)  # so that its QEMU has them all from the start

    def serve_here(self) -> None:
        """Let its disks' colo-host be its own address, where all addresses are one machine's."""

        def change() -> None:
            for disk in self.disks:
                for directory in (disk.backend, disk.libxl):
                    self.store.write(f"{directory}/colo-host", self.address)
                    self.store.write(f"{directory}/colo-port", str(self.nbd_port))

        self.store.together(change)

    @property
    def guest(self) -> Monitor:
        """The guest of the QEMU that runs now."""
        pid = self.qemu(DOMID)
        if self._monitor is None or self._monitor[0] != pid:
            self.forget_guest()
            self._monitor = pid, Monitor(self._monitor_path, self.logs / f"qemu-{DOMID}.log")
        return self._monitor[1]

    def forget_guest(self) -> None:
        """Let go of the monitor."""
        if self._monitor:
            self._monitor[1].close()
            self._monitor = None

    def is_(self, state: str) -> None:
        """Wait until the domain is published in this state."""
        self.state(DOMID, state)

    def command(self, text: str) -> str:
        """Give a command by its node, as any client can; return the answer."""
        self.order(text)
        return self.answer(text)

    def order(self, text: str) -> None:
        """Give a command and don't wait for its answer."""
        self.store.write(f"{COLO}/answer", "")
        self.store.write(f"{COLO}/command", text)

    def answer(self, text: str) -> str:
        """Wait for the answer to a command."""
        word = text.split(maxsplit=1)[0]

        def answered() -> str | None:
            said = self.store.read(f"{COLO}/answer") or ""
            return said if said.startswith(f"{word} ") and not said.endswith("running") else None

        return str(until(answered, f"{text} is answered"))

    def colo(self, node: str) -> str | None:
        """Return what is published of the domain's replication."""
        return self.store.read(f"{COLO}/{node}")

    def says(self, words: str) -> None:
        """Wait until the published error of the domain has these words in it."""
        try:
            until(lambda: words in (self.colo("error") or ""), f"{words!r} is said")
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.store.tree(COLO)}") from None

    def counts(self, number: int) -> None:
        """Wait until this is published as the last checkpoint."""
        until(lambda: self.colo("checkpoint") == str(number), f"checkpoint {number} is published")

    def walked(self, since: int = 0) -> list[str]:
        """Return the rows of the table that were walked: role, state and event of each."""
        found = self.events("replication.step", since=since)
        return [f"{e['role']} {e['state']} {e['cause']}" for e in found]

    def walks(self, row: str, since: int = 0) -> None:
        """Wait until a row of the table is walked."""
        role, state, cause = row.split()
        self.event("replication.step", since=since, role=role, state=state, cause=cause)

    @property
    def record(self) -> dict[str, Any]:
        """What is on disk of the domain."""
        found: dict[str, Any] = json.loads(self.record_path.read_bytes())
        return found

    @property
    def record_path(self) -> Path:
        """Where that is."""
        (path,) = (self.directory / "state").glob("*.json")
        return path

    @contextmanager
    def stuck_marker(self) -> Iterator[None]:
        """Have QEMU refuse to remove the marker of a paused guest, so that resuming fails."""
        guest = self.guest
        guest("object-add", **{"qom-type": "throttle-group", "id": "xencolo-paused"})
        null = {"driver": "null-co", "node-name": "stuck-file"}
        guest("blockdev-add", **null)
        node = {"node-name": "stuck", "throttle-group": "xencolo-paused", "file": "stuck-file"}
        guest("blockdev-add", driver="throttle", **node)
        yield
        guest("blockdev-del", **{"node-name": "stuck"})
        guest("blockdev-del", **{"node-name": "stuck-file"})

    def lose(self) -> None:
        """Have the host die: its daemon and its QEMU are killed."""
        self.kill()
        self.lose_qemu()

    def lose_qemu(self) -> None:
        """Have its QEMU die."""
        self.forget_guest()
        for pid in self.qemus():
            end(pid)

    def close(self) -> None:
        """End every process of the host."""
        self.forget_guest()
        super().close()


M = TypeVar("M", bound=Member)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process; it goes on after the block, if it is there then."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def listening(b: Member, **options: Any) -> None:
    """Bring a secondary up."""
    b.start()
    b.add("secondary", **options)
    b.is_("listening")


def replicating(a: Member, b: Member, **options: Any) -> None:
    """Bring a primary and its secondary up."""
    listening(b, **options)
    a.start()
    a.add(peer=b, **options)
    for member in (a, b):
        member.is_("replicating")


@contextmanager
def site(directory: Path, images: Images, count: int = 2) -> Iterator[list[Member]]:
    """Yield so many hosts, nothing started on them yet."""
    with site_of(Member, directory, images, count) as members:
        yield members


@contextmanager
def site_of(kind: type[M], directory: Path, images: Images, count: int) -> Iterator[list[M]]:
    """Yield so many hosts of a kind, nothing started on them yet."""
    with ExitStack() as stack:
        (port,) = free_ports(1)
        members: list[M] = []
        for number in range(count):
            own = directory / "abcdef"[number]
            server = stack.enter_context(start_xenstored(own / "xs"))
            member = kind(own, images, server, f"127.0.0.{number + 1}", port)
            stack.callback(member.close)
            member.set()
            members.append(member)
        yield members
