"""The life of a replicated disk, on real xenstoreds and real QEMUs, two disks at once: IDE and SCSI."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import SDA, XVDA, until
from tests.e2e.site import DOMID, Member, listening

_BOTH = (XVDA, SDA)


@pytest.mark.walks(
    *("primary launching clean", "primary standalone peer-ready", "primary resyncing mirrored"),
    *("primary replicating checkpoint", "primary promoted peer-ready"),
    *("primary replicating detach", "secondary launching clean"),
    *("secondary listening peer-prepares", "secondary listening peer-starts"),
    *("secondary replicating peer-checkpoints", "secondary replicating peer-lost"),
    *("secondary degraded failover", "secondary replicating peer-detaches"),
)
def test_whole_life(three: list[Member]) -> None:
    _whole_life(*three)


@pytest.mark.walks("secondary degraded failover", "primary promoted peer-ready")
def test_whole_life_encrypted(three: list[Member], tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.pem")
    words = [sys.executable, "-c", "from xencolod.cli import main; main()", "keys", keys]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for member in three:
        member.set(link={"unencrypted_and_unauthenticated": False, "keys": keys})
    _whole_life(*three)
    assert all(member.event("link.listening")["encrypted"] for member in three)
    assert "tls-creds" in three[1].guest("qom-list-types", implements="tls-creds")[0]["name"]


def _whole_life(a: Member, b: Member, c: Member) -> None:
    listening(b)
    a.start()
    a.add(peer=b)
    a.is_("replicating")
    b.is_("replicating")
    for devid in _BOTH:
        a.guest.write(devid, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    for devid in _BOTH:
        a.guest.write(devid, 0x22, "0", "128k")
        assert b.guest.holds(devid, 0x11, "0", "256k"), "the secondary holds the last checkpoint"

    a.lose()
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    b.is_("promoted")
    for devid in _BOTH:
        assert b.guest.holds(devid, 0x11, "0", "256k")
        b.guest.write(devid, 0x33, "512k", "128k")

    listening(c)
    assert b.command("resync").endswith(f"say which (xencolo resync {DOMID} --to HOST)")
    assert (
        b.command(f"resync to={c.address}") == f"resync done reaching for {c.address}:{c.link_port}"
    )
    b.is_("replicating")
    for devid in _BOTH:
        assert c.guest.holds(devid, 0x11, "0", "256k")
        assert c.guest.holds(devid, 0x33, "512k", "128k")
    assert b.command("detach") == "detach done"
    b.is_("standalone")
    c.walks("secondary replicating peer-detaches")
    c.is_("listening")


@pytest.mark.walks(
    *("primary degraded superseded", "primary launching superseded"),
    *("primary standalone superseded", "primary failed accepted", "secondary launching clean"),
)
def test_a_returning_old_primary_gives_way_and_becomes_the_secondary(two: list[Member]) -> None:
    a, b = two
    elsewhere = "192.0.2.1"  # none of this machine's: what b's address is on a, when b is another
    listening(b)
    a.start()
    a.add(peer=b, colo_host=elsewhere)
    a.is_("standalone")
    assert a.command(f"resync to={b.address}").startswith("resync done")
    for member in two:
        member.is_("replicating")
    a.guest("cont")
    for devid in _BOTH:
        a.guest.write(devid, 0x11, "0", "1M")
    a.command("checkpoint")
    a.kill()
    b.is_("degraded")
    b.command("failover")
    b.is_("promoted")
    for devid in _BOTH:
        b.guest.write(devid, 0x44, "0", "64k")

    a.start()
    a.is_("failed")
    a.says("another host is the primary of generation 2")
    until(lambda: a.record["superseded_by"] == 2, "it is recorded")
    assert a.guest("query-status")["status"] == "paused", "the guest stands"
    a.stop()
    a.start()
    a.is_("failed")
    a.says("another host is the primary of generation 2")
    assert a.guest("query-status")["status"] == "paused", "a restart does not let it run"
    assert a.command("resync").startswith("resync failed: another host is the primary")

    assert b.command(f"resync to={a.address}").startswith("resync done")
    a.store.write("/libxl/5/colo/role", "secondary")
    for member in two:
        member.is_("replicating")
    for devid in _BOTH:
        assert a.guest.holds(devid, 0x44, "0", "64k")
        assert a.guest.holds(devid, 0x11, "64k", "960k")
        b.guest.write(devid, 0x55, "0", "64k")
    assert b.command("checkpoint") == "checkpoint done number 1"

    b.lose()
    a.is_("degraded")
    assert a.command("failover") == "failover done generation 3"
    a.is_("promoted")
    for devid in _BOTH:
        assert a.guest.holds(devid, 0x55, "0", "64k")

    b.start()
    b.is_("failed")
    b.store.write("/libxl/5/colo/role", "secondary")
    b.is_("listening")
    assert a.command(f"resync to={b.address}").startswith("resync done")
    for member in two:
        member.is_("replicating")

    a.store.write("/libxl/5/colo/role", "secondary")
    a.walks("secondary launching clean", since=a.mark())
    a.is_("listening")
