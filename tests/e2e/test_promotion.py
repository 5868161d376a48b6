"""A secondary that took over, and a daemon that starts again beside it."""

from pathlib import Path

from tests.e2e.host import XVDA, Images
from tests.e2e.site import DOMID, site


def test_a_promoted_domain_keeps_its_qemu_over_a_restart(tmp_path: Path, images: Images) -> None:
    with site(tmp_path, images) as (a, b):
        b.start()
        b.add("secondary")
        a.start()
        a.add(peer=b)
        for member in (a, b):
            member.is_("replicating")
        a.lose()
        b.is_("degraded")
        assert b.command("failover") == "failover done generation 2"
        b.is_("promoted")
        b.guest.write(XVDA, 0x33, "0", "64k")
        pid = b.qemu(DOMID)
        for end in (b.stop, b.kill):
            end()
            mark = b.mark()
            b.start()
            b.event("replication.state", since=mark, state="promoted")
            b.is_("promoted")
            assert b.qemu(DOMID) == pid
        assert b.guest.holds(XVDA, 0x33, "0", "64k")
