"""The last checkpoint outlives the secondary's own QEMU and host, once the primary has stayed away."""

from pathlib import Path

import pytest

from tests.e2e.host import SDA, XVDA, end, until
from tests.e2e.site import DISKS, DOMID, UUID, Member, replicating


def abandoned(two: list[Member]) -> None:
    """Have a secondary lose its primary, with data of after the checkpoint everywhere, and wait no longer."""
    a, b = two
    b.set(replication={"grace": 0.3, "retry_max": 0.3})
    replicating(a, b)
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "64k", "512k")
    a.command("checkpoint")
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x22, "0", "256k")
        a.guest.write(devid, 0x22, "700k", "30k")
        b.guest.write(devid, 0x33, "320k", "128k")
    a.lose()
    b.walks("secondary degraded abandoned")
    b.event("checkpoint.settled", generation=1)
    assert b.colo("state") == "degraded"
    b.says("the primary was not back within 0.3 s")
    for devid in (XVDA, SDA):  # its guest goes on, in a QEMU that will not write this
        b.guest.write(devid, 0x44, "512k", "128k")


def reboot(b: Member, disks: int) -> None:
    """Lose the host; then the domain is created again, by its uuid, with so many of its disks."""
    b.lose()
    b.store.destroy(DOMID)
    b.start()
    b.store.create(DOMID, identity=UUID)
    for disk in b.disks[:disks]:
        b.store.attach(disk, role="secondary")


def holds_the_checkpoint(b: Member) -> None:
    """Check every byte that the guest reads."""
    for devid in (XVDA, SDA):
        for pattern, offset, length in (
            *((0, "0", "64k"), (0x11, "64k", "512k")),
            (0, "576k", "448k"),
        ):
            assert b.guest.holds(devid, pattern, offset, length), (devid, offset)


@pytest.mark.walks("secondary degraded abandoned", "secondary listening failover")
def test_its_qemu_dies_and_it_takes_over(two: list[Member]) -> None:
    b = two[1]
    abandoned(two)
    b.forget_guest()
    end(b.qemu(DOMID))
    b.event("checkpoint.kept", devid=XVDA)
    b.event("checkpoint.kept", devid=SDA)
    b.is_("listening")
    b.says("the disks hold its last checkpoint: take over with it (xencolo failover 5)")
    assert b.command("failover") == "failover done generation 2"
    b.is_("promoted")
    holds_the_checkpoint(b)
    assert b.record["settled"] is None


def test_its_host_is_lost_more_than_once(two: list[Member]) -> None:
    """A reboot ends xenstored too: the domain is created again, with its uuid."""
    b = two[1]
    abandoned(two)
    for count in (1, 2):
        reboot(b, len(DISKS))
        b.is_("listening")
        assert b.record["settled"]["whole"]
        assert b.colo("checkpoint") == "1"
        assert len(b.events("checkpoint.kept")) == 2, f"whole already at start {count}"
    assert b.command("failover") == "failover done generation 2"
    holds_the_checkpoint(b)


@pytest.mark.walks("secondary listening bypassed")
def test_its_guest_writes_past_the_checkpoint(two: list[Member]) -> None:
    b = two[1]
    abandoned(two)
    b.forget_guest()
    end(b.qemu(DOMID))
    b.is_("listening")
    b.store.write(f"{b.disks[0].backend}/state", "4")
    b.walks("secondary listening bypassed")
    until(lambda: not b.record["in_sync"], "it is no checkpoint any more")
    assert b.command("failover").startswith("failover failed: the disks hold no checkpoint")


@pytest.mark.parametrize("dies", [False, True], ids=["its QEMU lives", "its QEMU died"])
def test_the_primary_comes_back_after_all(two: list[Member], dies: bool) -> None:
    a, b = two
    abandoned(two)
    until(lambda: b.colo("session") is None, "the session is over")
    if dies:
        b.forget_guest()
        end(b.qemu(DOMID))
        b.is_("listening")
    a.start()
    for member in two:
        member.is_("replicating")
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x22, "0", "256k")
    assert (b.record["in_sync"], b.record["settled"]) == (True, None)
    until(lambda: not b.colo("error"), "nothing is amiss")


def test_other_disks_are_described(two: list[Member]) -> None:
    b = two[1]
    abandoned(two)
    reboot(b, 1)
    b.says("describe them as they were")
    b.is_("failed")
    assert b.record["settled"], "nothing is given up"
    record, node = b.record_path, f"/libxl/{DOMID}/colo/record"
    record.unlink()
    if b.store.read(node):
        b.says(f"{record} is gone")
        b.store.delete(node)
    b.is_("listening")
    assert not b.record["in_sync"]


def test_a_hidden_disk_does_not_outlive_the_host(two: list[Member]) -> None:
    """As on a tmpfs, or one that is mounted late."""
    b = two[1]
    abandoned(two)
    b.lose()
    hidden = Path(b.disks[1].nodes["hidden-disk"])
    hidden.rename(hidden.with_suffix(".away"))
    b.start()
    b.is_("failed")
    b.says(f"{hidden}: there is no such image; a part of the primary's last checkpoint is in it")
    b.says(f"to give it up, remove {b.record_path}")
    hidden.with_suffix(".away").rename(hidden)
    b.is_("listening")
    assert b.command("failover") == "failover done generation 2"
    holds_the_checkpoint(b)


def test_a_daemon_that_is_away_for_less_ends_no_session(two: list[Member]) -> None:
    a, b = two
    b.set(replication={"grace": 60})
    replicating(a, b)
    session = a.colo("session")
    a.kill()
    b.is_("degraded")
    a.start()
    for member in two:
        member.is_("replicating")
    assert a.colo("session") == session
    assert not b.events("checkpoint.settled")
