"""The life of a replicated disk, on real xenstoreds and real QEMUs, two disks at once: IDE and SCSI."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import SDA, XVDA, Images
from tests.e2e.site import Member, site


@pytest.fixture
def three(tmp_path: Path, images: Images) -> Iterator[list[Member]]:
    with site(tmp_path, images, 3) as members:
        yield members


@pytest.fixture
def two(tmp_path: Path, images: Images) -> Iterator[list[Member]]:
    with site(tmp_path, images, 2) as members:
        yield members


def replicating(a: Member, b: Member) -> None:
    """Bring a primary and its secondary up."""
    b.start()
    b.add("secondary")
    a.start()
    a.add(peer=b)
    for member in (a, b):
        member.is_("replicating")


def test_whole_life(three: list[Member]) -> None:
    a, b, c = three
    b.start()
    b.add("secondary")
    b.is_("listening")
    a.start()
    a.add(peer=b)
    a.is_("replicating")
    b.is_("replicating")
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x22, "0", "128k")
        assert b.guest.holds(devid, 0x11, "0", "256k"), "the secondary holds the last checkpoint"

    a.lose()
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    b.is_("promoted")
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x11, "0", "256k")
        b.guest.write(devid, 0x33, "512k", "128k")

    c.start()
    c.add("secondary")
    c.is_("listening")
    assert (
        b.command(f"resync to={c.address}") == f"resync done reaching for {c.address}:{c.link_port}"
    )
    b.is_("replicating")
    for devid in (XVDA, SDA):
        assert c.guest.holds(devid, 0x11, "0", "256k")
        assert c.guest.holds(devid, 0x33, "512k", "128k")
    assert b.command("detach") == "detach done"
    b.is_("standalone")
