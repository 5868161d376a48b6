"""The network between two hosts goes silent: nothing runs into an error, and no answer comes."""

from pathlib import Path

import pytest

from tests.e2e.host import SDA, XVDA, until
from tests.e2e.network import Network
from tests.e2e.site import Member, replicating
from tests.e2e.test_replication_faults import keys
from tests.e2e.test_replication_primary import clean

LINK = {"timeout": 2, "ping_interval": 0.2}


@pytest.mark.walks(
    *("primary replicating peer-silent", "primary degraded peer-ready"),
    *("secondary replicating peer-silent", "secondary degraded peer-prepares"),
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_it_drops_all(
    network: tuple[Network, list[Member]], encrypted: bool, tmp_path: Path
) -> None:
    cable, (a, b) = network
    how = {"keys": keys(tmp_path / "keys.pem"), "unencrypted_and_unauthenticated": not encrypted}
    for member in (a, b):
        member.set(link=LINK | how)
    replicating(a, b)
    qemus = a.qemus(), b.qemus()
    a.guest.write(XVDA, 0x11, "0", "64k")
    a.command("checkpoint")
    session, mark = a.colo("session"), a.mark()
    with cable.silent():
        # It waits for the secondary until that is given up; TCP alone would take a quarter of an hour.
        a.guest.write(XVDA, 0x22, "0", "64k")
        a.is_("degraded")
        until(lambda: clean(a), "nothing of the secondary is left")
        a.guest.write(SDA, 0x33, "0", "64k")
        b.is_("degraded")
        b.says("the primary's daemon is gone")
        assert b.guest.holds(XVDA, 0x11, "0", "64k"), "the last checkpoint"
        a.says("no answer to ping within 2 s")
        assert (a.qemus(), b.qemus()) == qemus
    a.event("resync.done", since=mark)
    for member in (a, b):
        member.is_("replicating")
    assert a.colo("session") == b.colo("session") != session
    assert a.command("checkpoint") == "checkpoint done number 1"
    assert b.guest.holds(XVDA, 0x22, "0", "64k")
    assert b.guest.holds(SDA, 0x33, "0", "64k")


@pytest.mark.walks("primary replicating action-failed")
def test_it_drops_only_the_data(network: tuple[Network, list[Member]]) -> None:
    cable, (a, b) = network
    a.set(replication={"qmp_timeout": 2})
    replicating(a, b)
    a.guest("cont")
    written = a.logs / "qemu-5.log"
    mark = a.mark()
    with cable.silent(b.nbd_port):
        assert not a.guest.io(XVDA, "aio_write -P 0x22 0 64k")
        assert a.command("checkpoint").startswith("checkpoint failed: ")
        a.walks("primary replicating action-failed", since=mark)
        until(lambda: b"wrote 65536/65536 bytes" in written.read_bytes(), "the guest goes on")
        a.guest.write(SDA, 0x33, "0", "64k")
    a.event("resync.done", since=mark)
    for member in (a, b):
        member.is_("replicating")
    assert a.guest("query-status")["running"]
    assert a.command("checkpoint") == "checkpoint done number 1"
    assert b.guest.holds(XVDA, 0x22, "0", "64k")
    assert b.guest.holds(SDA, 0x33, "0", "64k")
