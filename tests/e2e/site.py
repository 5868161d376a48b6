"""Several hosts on one machine: each with its own xenstored, xencolod, address and domain."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.host import SDA, XVDA, Disk, Host, Images, end, free_ports, until
from tests.rigs import start_xenstored

DOMID = 5
UUID = "5f1a9d3e-0b0c-4c1d-8e2f-3a4b5c6d7e8f"
MIB = 1 << 20
#: What a test's domain has: vdev and devid, one of them behind IDE and one behind SCSI.
DISKS = (("xvda", XVDA), ("sda", SDA))


class Monitor:
    """A second QMP connection to a domain's QEMU, by which the test plays the guest."""

    def __init__(self, path: Path, output: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._output = output
        until(lambda: self._socket.connect_ex(str(path)) == 0, f"a monitor at {path}")
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Return what the command returns; fail where QEMU refuses it."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                assert "error" not in message, message
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

    def holds(self, devid: int, pattern: int, offset: str, length: str) -> bool:
        """Tell whether the guest reads nothing but the pattern there."""
        wrong = self.io(devid, f"read -P {pattern:#x} {offset} {length}")
        assert "erification failed" in wrong or not wrong, wrong
        return not wrong

    def close(self) -> None:
        """Let go of it."""
        self._lines.close()
        self._socket.close()


class Member(Host):
    """One of the hosts, with the domain that all of them know by one uuid."""

    def __init__(
        self, directory: Path, images: Images, xenstore: Path, address: str, port: int
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._monitor: tuple[int, Monitor] | None = None
        super().__init__(directory, images, xenstore)
        self.address, self.link_port = address, port
        (self.nbd_port,) = free_ports(1, address)
        self.options: dict[str, dict[str, Any]] = {}
        self.disks: list[Disk] = []

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
    ) -> None:
        """Create the domain with its disks; their colo-host is the secondary's, which is ``peer``."""
        self.store.create(DOMID, identity=UUID)
        target = peer or self
        for vdev, devid in disks:
            disk = self.disk(
                DOMID,
                vdev,
                devid,
                colo_host=target.address,
                colo_port=str(target.nbd_port),
                colo_export=f"web-{vdev}",
            )
            self.disks.append(disk)
            self.store.attach(disk, role=role)

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
        base = f"/libxl/{DOMID}/colo"
        self.store.write(f"{base}/answer", "")
        self.store.write(f"{base}/command", text)
        word = text.split(maxsplit=1)[0]

        def answered() -> str | None:
            said = self.store.read(f"{base}/answer") or ""
            return said if said.startswith(f"{word} ") and not said.endswith("running") else None

        return str(until(answered, f"{text} is answered"))

    def lose(self) -> None:
        """Have the host die: its daemon and its QEMU are killed."""
        self.forget_guest()
        self.kill()
        for pid in self.qemus():
            end(pid)

    def close(self) -> None:
        """End every process of the host."""
        self.forget_guest()
        super().close()


M = TypeVar("M", bound=Member)


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
            member = kind(own, images, server.socket, f"127.0.0.{number + 1}", port)
            stack.callback(member.close)
            member.set()
            members.append(member)
        yield members
