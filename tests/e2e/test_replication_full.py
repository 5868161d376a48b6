"""Replication where a file system is full."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import XVDA, end, until
from tests.e2e.site import COLO, DISKS, DOMID, MIB, QUICK_LINK, Member, listening, replicating


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path) -> None:
    """Leave no room there."""
    with (place / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.walks(
    *("secondary launching qemu-error", "primary replicating qemu-error"),
)
def test_the_hidden_disk_is_on_a_full_file_system(two: list[Member], small: Path) -> None:
    a, b = two
    b.set(link=QUICK_LINK)
    a.set(link=QUICK_LINK)
    b.start()
    fill(small)
    b.add("secondary", disks=DISKS[:1], hidden_disk=str(small / "hidden.qcow2"))
    b.is_("failed")
    b.says("No space left on device")
    (small / "filler").unlink()
    b.is_("listening")
    a.start()
    a.add(peer=b, disks=DISKS[:1])

    def ready(mark: int) -> None:
        b.walks("secondary listening peer-starts", since=mark)
        for member in two:
            member.is_("replicating")
        a.guest.write(XVDA, 0x01, "0", "512k")  # what is zero takes no room in the hidden disk
        a.command("checkpoint")
        fill(small)

    ready(0)
    mark = b.mark()
    a.guest.write(XVDA, 0x11, "0", "512k")
    a.walks(
        "primary replicating qemu-error"
    )  # the write of the secondary fails, the guest's does not
    (small / "filler").unlink()
    ready(mark)


def record(place: Path) -> Any:
    """Return what is on disk of the domain."""
    (path,) = place.glob("*.json")
    return json.loads(path.read_bytes())


def sparse(place: Path) -> Path:
    """Make a disk that takes no room yet."""
    disk = place / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(MIB)
    return disk


def replicating_from(disk: Path, a: Member, b: Member) -> None:
    """Have a pair replicate one disk, of which the primary's is this, and its guest run."""
    listening(b, disks=DISKS[:1])
    a.start()
    a.add(peer=b, disks=DISKS[:1], params=f"aio:{disk}")
    for member in (a, b):
        member.is_("replicating")
    a.guest("cont")


def replicating_onto(disk: Path, a: Member, b: Member) -> None:
    """Have a secondary whose guest's writes go there at a failover, where there is no room for them."""
    listening(b, disks=DISKS[:1], params=f"aio:{disk}")
    a.start()
    a.add(peer=b, disks=DISKS[:1])
    for member in (a, b):
        member.is_("replicating")
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(MIB), disk], check=True)
    b.guest.write(XVDA, 0x77, "0", "512k")
    a.lose()
    b.is_("degraded")
    fill(disk.parent)


@pytest.mark.parametrize("restart", [True, False])
def test_the_disk_of_a_secondary_that_takes_over_is_on_a_full_file_system(
    two: list[Member], small: Path, restart: bool
) -> None:
    a, b = two
    b.set(qemu={"restart": restart}, replication={"retry_max": 0.5})
    replicating_onto(sparse(small), a, b)
    assert b.command("failover").startswith("failover failed: QEMU could not write into the disk")
    b.is_("failed")
    if restart:
        b.says("No space left on device")
    else:
        b.says("QEMU could not write into the disk")
    (small / "filler").unlink()
    if not restart:
        end(b.qemu(DOMID))
        b.forget_guest()
        b.stop()  # a device model that died is not started again
        b.set(qemu={"restart": True})
        b.start()
    b.is_("promoted")
    assert b.guest.holds(XVDA, 0x77, "0", "512k")
    assert b.record["generation"] == 2


def test_a_failover_is_of_the_disks_that_qemu_has(two: list[Member], small: Path) -> None:
    """The images that the nodes name by then may be somebody else's."""
    a, b = two
    b.set(qemu={"restart": False})
    replicating_onto(sparse(small), a, b)
    (disk,) = b.disks
    for directory in (disk.backend, disk.libxl):
        b.store.write(f"{directory}/active-disk", f"{small}/another.qcow2")
    b.says("the nodes describe other drives than QEMU has")
    assert b.command("failover").startswith("failover failed: QEMU could not write into the disk")
    (chain,) = b.record["unfinished"]
    assert chain["active"] == disk.nodes["active-disk"]


@pytest.mark.walks("primary replicating disk-failed")
def test_the_disk_of_a_primary_is_on_a_full_file_system(two: list[Member], small: Path) -> None:
    """Its guest counts a write as done that the secondary alone has, and reads what was there before."""
    a, b = two
    replicating_from(sparse(small), a, b)
    fill(small)
    a.guest.write(XVDA, 0x77, "0", "512k")
    a.is_("failed")
    a.says("this host's disk refused a write")
    b.is_("degraded")
    a.kill()
    a.start()
    a.is_("failed")
    assert a.guest("query-status")["status"] == "paused", "it must not read what is not there"
    assert b.command("failover") == "failover done generation 2"
    assert b.guest.holds(XVDA, 0x77, "0", "512k"), (
        "the last checkpoint has the write that it refused"
    )

    (small / "filler").unlink()
    a.serve_here()
    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    assert not a.record["own"], "a write is not in it"
    b.command(f"resync to={a.address}")
    for member in two:
        member.is_("replicating")
    b.lose()
    a.is_("degraded")
    assert a.command("failover") == "failover done generation 3"
    assert a.guest.holds(XVDA, 0x77, "0", "512k")
    assert a.guest("query-status")["status"] != "paused"


@pytest.mark.walks("primary degraded disk-failed")
def test_a_disk_that_is_full_while_the_secondary_stays_away(two: list[Member], small: Path) -> None:
    a, b = two
    replicating_from(sparse(small), a, b)
    b.kill()
    a.is_("degraded")
    fill(small)
    a.guest.write(XVDA, 0x77, "0", "512k")
    a.is_("failed")
    a.says("this host's disk refused a write")
    until(lambda: a.record["spoiled"], "it is recorded")
    assert a.guest("query-status")["status"] == "paused"


def test_a_disk_that_is_full_without_a_secondary_is_the_guests_to_know(
    two: list[Member], small: Path
) -> None:
    a = two[0]
    disk = sparse(small)
    a.start()
    a.add(disks=DISKS[:1], params=f"aio:{disk}")
    a.is_("standalone")
    fill(small)
    assert "No space left" in a.guest.io(XVDA, "write -P 0x77 0 512k")
    a.event("qemu.event", qmp_event="QUORUM_REPORT_BAD")
    a.barrier()
    assert a.colo("state") == "standalone"
    assert not a.record["spoiled"]


def test_a_guest_stands_where_it_cannot_be_recorded_that_it_has_to(
    two: list[Member], small: Path
) -> None:
    """Else both hosts' guests would run."""
    a, b = two
    a.set(daemon={"state_directory": str(small)}, replication={"retry_max": 0.5})
    replicating(a, b)
    a.guest("cont")
    a.kill()
    b.is_("degraded")
    b.command("failover")
    fill(small)
    mark = a.mark()
    a.start()
    status = partial(a.guest, "query-status")
    until(lambda: status()["status"] == "paused", "the guest stands")
    for _ in range(2):  # it is tried again and again
        mark = a.mark()
        a.event("replication.failed", since=mark, cause="superseded")
        assert status()["status"] == "paused"
    (small / "filler").unlink()
    until(lambda: record(small)["superseded_by"] == 2, "it is recorded")
    assert status()["status"] == "paused"
    a.says("another host is the primary of generation 2")


def test_no_session_goes_on_after_a_failover_that_could_not_be_recorded(
    two: list[Member], small: Path
) -> None:
    """Its exports are down by then: nothing that the primary's guest writes would arrive."""
    a, b = two
    b.set(daemon={"state_directory": str(small)})
    replicating(a, b)
    session = a.colo("session")
    a.kill()
    b.is_("degraded")
    fill(small)
    assert "No space left on device" in b.command("failover")
    (small / "filler").unlink()
    b.is_("degraded")
    a.start()
    for member in two:
        member.is_("replicating")
    assert a.colo("session") != session
    assert len(b.guest("query-block-exports")) == 2
