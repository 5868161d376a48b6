"""Guests and driver domains that write what they may, through the real xenstored's rings."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.attack.guest import Flood, Guest, copies, guest
from tests.e2e.host import XVDA, XVDB, Disk, Host, Images, until
from tests.rigs import Server
from xencolo.wire import Op


class Hostile:
    """A host with the domains 5, which is hostile, and 6, which is not; both with a COLO disk."""

    def __init__(self, host: Host, attacker: Guest, disks: tuple[Disk, Disk]) -> None:
        self.host = host
        self.guest = attacker
        self.own, self.other = disks
        self._pids = self._now()

    def _now(self) -> tuple[int, int]:
        return self.host.qemu(5), self.host.qemu(6)

    def look(self) -> None:
        """Have the daemon look at both domains; what it reads of guests it reads then."""
        for disk in (self.own, self.other):
            self.host.store.write(f"{disk.libxl}/state", "1")
        self.host.barrier()

    def unharmed(self) -> None:
        """Fail if anything came of it for either domain."""
        assert self._now() == self._pids
        for disk in (self.own, self.other):
            assert not self.host.events("device.error", domid=disk.domid)
            assert self.host.store.read(f"/libxl/{disk.domid}/colo/device/{XVDA}/state") == "ready"
            assert self.host.has_open(disk.domid, disk.image)
        assert not self.host.has_open(5, self.other.image)


@pytest.fixture
def hostile(host: Host, xenstored: Server) -> Iterator[Hostile]:
    host.start()
    own, _ = host.running(5)
    other, _ = host.running(6)
    with guest(host.store, xenstored, 5) as attacker:
        yield Hostile(host, attacker, (own, other))


# -- what a guest may not write -----------------------------------------------------------------


def test_a_guest_can_write_nothing_that_is_believed(hostile: Hostile) -> None:
    own, attacker = hostile.own, hostile.guest
    believed = [
        *copies(own),
        *copies(hostile.other),
        *(f"/libxl/5/colo/{name}" for name in ("role", "command", "answer", "state", "generation")),
        *(f"/local/domain/5/{name}" for name in ("name", "vm", "image/device-model-pid")),
        *("/local/domain/5/memory/static-max", "/libxl/5/type", "/libxl/5/dm-version"),
        *("/local/domain/0/xencolod", "/local/domain/0/device-model/5/state", own.error),
        f"/local/domain/0/backend/qdisk/5/{XVDB}/params",
        f"/libxl/5/device/vbd/{XVDB}/params",
    ]
    for path in believed:
        assert attacker.write(path, "aio:/etc/shadow") == "EACCES", path
        assert attacker.remove(path) != "OK", path
        assert attacker.permit(path, "n5") != "OK", path
    hostile.look()
    hostile.unharmed()


# -- what it may --------------------------------------------------------------------------------


def test_a_frontend_that_points_to_another_guests_disk(hostile: Hostile) -> None:
    node = f"{hostile.own.frontend}/backend"
    assert hostile.guest.write(node, hostile.other.backend) == "OK"
    hostile.look()
    said = hostile.host.event("device.suspicious", domid=5, devid=XVDA)
    assert said["reason"] == (f"{node} is {hostile.other.backend!r}, not {hostile.own.backend}")
    hostile.unharmed()
    assert not hostile.host.events("device.suspicious", domid=6)


@pytest.mark.parametrize("node", ["/backend", ""])
def test_a_frontend_that_the_guest_removes(node: str, hostile: Hostile) -> None:
    assert hostile.guest.remove(f"{hostile.own.frontend}{node}") == "OK"
    hostile.look()
    said = hostile.host.event("device.suspicious", domid=5, devid=XVDA)
    assert "is gone; the guest may have removed its frontend" in said["reason"]
    hostile.unharmed()


def test_a_frontend_full_of_rubbish(hostile: Hostile) -> None:
    """Long, binary, with control characters: said on one line, and cut."""
    evil = b"\n<3>{}\x1b[2J\x00\xff" * 100
    mine = hostile.own.frontend
    assert hostile.guest.ask(Op.WRITE, f"{mine}/backend", evil) == "OK"
    for name in ("params", "colo-host", "state", "online", "type", "mode"):
        assert hostile.guest.ask(Op.WRITE, f"{mine}/{name}", evil) == "OK"
    hostile.look()
    said = hostile.host.event("device.suspicious", domid=5)
    assert len(said["reason"]) < 600
    hostile.unharmed()
    lines = hostile.host.log.read_bytes().splitlines()
    assert all(line.startswith(b"{") and line.decode().isprintable() for line in lines)


# -- what it may because somebody let it --------------------------------------------------------


def test_a_command_that_the_guest_could_have_written_is_not_taken(hostile: Hostile) -> None:
    node, store = "/libxl/5/colo/command", hostile.host.store
    for permissions in (("n0", "w5"), ("n5",), ("n0", "b5"), ("w0",)):
        mark = hostile.host.mark()
        store.write(node, "")
        store.permit(node, *permissions)
        assert hostile.guest.write(node, "detach id=00") == "OK"
        said = hostile.host.event("command.failed", since=mark, domid=5)
        assert f"Untrusted xenstore node {node}" in said["error"]
        hostile.look()
        assert store.read(node) == "detach id=00"
        store.delete(node)
        hostile.look()
    assert not hostile.host.events("command.taken")
    assert store.read("/libxl/5/colo/answer") is None
    hostile.unharmed()


# -- floods -------------------------------------------------------------------------------------


def memory(pid: int) -> int:
    """Return how many KiB of a process are in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def seen(host: Host, domid: int) -> float:
    """Return the seconds from a disk's commit to its published state: an error, so no QEMU starts."""
    disk = host.disk(domid, make=False)
    host.store.create(domid)
    host.store.attach(disk)
    started = time.monotonic()
    state = f"/libxl/{domid}/colo/device/{XVDA}/state"
    until(lambda: host.store.read(state) == "error", f"the disk of {domid} is seen")
    return time.monotonic() - started


@pytest.mark.parametrize("where", ["frontend", "watched"])
def test_a_flood_costs_no_memory_and_delays_no_other_guest(
    where: str, host: Host, xenstored: Server
) -> None:
    """Its frontend, which nobody watches; and, if dom0 let it, a node below the daemon's watches."""
    host.start()
    own, pid = host.running(5)
    host.store.client.introduce_domain(5, 5, 5)
    path = f"{own.frontend}/state"
    if where == "watched":
        path = "/local/domain/0/backend/qdisk/5/flood"
        host.store.write(path, "")
        host.store.permit(path, "n0", "w5")
    flood, before, domids = Flood(xenstored.directory, 5, path), memory(host.pid), count(100)
    try:
        # Others use this machine too: one quiet round of three is enough.
        assert any(is_prompt(host, flood, domids) for _ in range(3))
    finally:
        writes = flood.end()
    assert writes > 1000
    assert memory(host.pid) - before < 8 * 1024
    host.barrier()
    assert host.qemu(5) == pid
    assert host.events("device.error", domid=5) == []


def is_prompt(host: Host, flood: Flood, domids: Iterator[int]) -> bool:
    """Whether disks of other guests are seen not later than twice what they take without a flood.

    And a look more, for the flood and its xenstored have the cores that the daemon has then.
    """
    calm, flooded = [], []
    for _ in range(9):
        calm.append(seen(host, next(domids)))
        with flood.on():
            time.sleep(0.05)  # so that it is at its height
            flooded.append(seen(host, next(domids)))
    return statistics.median(flooded) < 2 * statistics.median(calm) + 0.02


# -- a used domid -------------------------------------------------------------------------------


def test_a_guest_under_a_used_domid_gets_nothing_of_the_one_before(
    host: Host, xenstored: Server
) -> None:
    """The first one's command, role and disks are gone with it; its QEMU too."""
    host.start()
    old, pid = host.running(5)
    host.store.write("/libxl/5/colo/role", "primary")
    host.store.destroy(5)
    host.store.create(5, name="next")
    new = host.disk(5, params=f"aio:{host.directory}/next.raw")
    host.image(new.image, "raw")
    host.store.attach(new)
    with guest(host.store, xenstored, 5) as next_guest:
        assert next_guest.write(f"{new.frontend}/backend", old.backend + "/x") == "OK"
        until(lambda: host.has_open(5, new.image), "the next guest has its own disk")
        assert host.qemu(5) != pid
        assert not host.has_open(5, old.image)


# -- driver domains -----------------------------------------------------------------------------

DRIVER = 3


def driven(host: Host) -> Disk:
    """Describe a disk of domain 5 that domain 3 serves, as the toolstack does."""
    disk = host.disk(5)
    here, back = disk.backend.replace("/domain/0/", f"/domain/{DRIVER}/"), disk.libxl
    store = host.store

    def change() -> None:
        store.write(f"{back}/frontend", disk.frontend)
        store.write(f"{back}/backend", here)
        store.write(disk.frontend, "")
        store.permit(disk.frontend, "n5", f"r{DRIVER}")
        store.write(f"{disk.frontend}/backend", here)
        store.write(here, "")
        store.permit(here, f"n{DRIVER}", "r5")
        for directory in (here, back):
            for name, value in disk.nodes.items():
                store.write(f"{directory}/{name}", value)
        store.write(f"{here}/frontend", disk.frontend)

    store.together(change)
    return disk


@pytest.fixture
def driver(host: Host, xenstored: Server) -> Iterator[Guest]:
    """A driver domain in which xencolod runs, and 5, whose disk it serves."""
    host.configure(daemon={"domid": DRIVER})
    host.store.create(DRIVER, name="driver")
    host.store.create(5)
    with ExitStack() as stack:
        yield stack.enter_context(guest(host.store, xenstored, DRIVER))


EVIL = {
    "params": "aio:/etc/shadow",
    "colo-host": "192.0.2.66",
    "active-disk": "/etc/passwd",
    "mode": "r",
    "type": "phy",
    "frontend-id": "6",
}


def test_what_a_driver_domain_writes_is_not_believed_over_dom0s(host: Host, driver: Guest) -> None:
    host.start()
    disk = driven(host)
    host.state(5, "running")
    pid = host.qemu(5)
    for node, evil in EVIL.items():
        here = f"/local/domain/{DRIVER}/backend/qdisk/5/{XVDA}/{node}"
        honest = str(host.store.read(here))
        for kind in ("wrong", "missing"):
            mark = host.mark()
            did = driver.write(here, evil) if kind == "wrong" else driver.remove(here)
            said = host.event("device.error", since=mark, domid=5, devid=XVDA)
            assert (did, said["path"], said["kind"]) == ("OK", here, kind)
            assert host.qemu(5) == pid
            assert driver.write(here, honest) == "OK"
            host.event("device.mended", since=mark, domid=5, path=here)
    assert open_files_stay(host, disk)


def open_files_stay(host: Host, disk: Disk) -> bool:
    """Whether its QEMU has its image, and none of what the driver domain named."""
    named = {value.removeprefix("aio:") for value in EVIL.values()}
    return host.has_open(5, disk.image) and not any(
        host.has_open(5, path) for path in named if path.startswith("/etc")
    )


def test_what_a_driver_domain_wrote_before_the_start_launches_nothing(
    host: Host, driver: Guest
) -> None:
    disk = driven(host)
    here = f"/local/domain/{DRIVER}/backend/qdisk/5/{XVDA}/params"
    assert driver.write(here, EVIL["params"]) == "OK"
    host.start()
    said = host.event("device.error", domid=5, devid=XVDA)
    wrong = f"Wrong xenstore node {here}: it says {EVIL['params']!r}, and {disk.libxl}/params says "
    assert said["error"].startswith(wrong + repr(disk.params[:40])[:-1])
    assert host.qemus() == []


def test_a_driver_domain_that_shows_a_disk_to_dom0s_daemon(
    host: Host, xenstored: Server, images: Images
) -> None:
    """Its backends are not dom0's to serve, whatever it writes into them."""
    assert images
    host.start()
    _, pid = host.running(6)
    host.store.create(DRIVER, name="driver")
    host.store.create(5)
    disk = driven(host)
    with guest(host.store, xenstored, DRIVER) as evil:
        back = f"/local/domain/{DRIVER}/backend/qdisk"
        for domid in (5, 6):
            assert evil.write(f"{back}/{domid}/{XVDA}/params", "aio:/etc/shadow") in {
                "OK",
                "EACCES",
            }
        # a directory of dom0's is none of its business
        assert evil.write(f"{disk.backend}/params", "aio:/etc/shadow") == "EACCES"
    host.store.write("/libxl/5/colo/role", "primary")
    host.barrier()
    assert host.qemus() == [pid]
    assert host.qemus(5) == []
