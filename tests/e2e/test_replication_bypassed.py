"""A guest's PV driver takes a disk while something else goes wrong: what comes first is dealt with first."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.host import end
from tests.e2e.site import DOMID, Member, frozen, replicating

#: Nothing here waits for a deadline.
PATIENT = {"link": {"timeout": 20}, "replication": {"qmp_timeout": 20, "poll": 60}}


@contextmanager
def hangs(member: Member) -> Iterator[int]:
    """Keep the domain's QEMU from doing anything; yield its pid."""
    pid = member.qemu(DOMID)
    with frozen(pid):
        yield pid


def bypass(member: Member) -> None:
    """Have the guest's PV driver connect, and the daemon see it."""
    mark = member.mark()
    member.store.write(f"{member.disks[0].backend}/state", "4")
    member.event("replication.bypassed", since=mark)


def stop_it(member: Member) -> None:
    """Have the guest's PV driver let go, and the daemon see it."""
    mark = member.mark()
    member.store.write(f"{member.disks[0].backend}/state", "2")
    member.event("device.mended", since=mark)


@pytest.mark.walks(
    *("primary degraded peer-lost", "primary failed bypassed", "primary launching bypassed"),
)
def test_on_the_primary(two: list[Member]) -> None:
    a, b = two
    a.set(**PATIENT)
    replicating(a, b)
    with hangs(a):
        bypass(a)
        a.is_("degraded")  # and what that takes is not done yet
        b.kill()
        a.event("replication.peer_lost")
    a.walks("primary degraded peer-lost")
    stop_it(a)
    b.start()
    for member in two:
        member.is_("replicating")

    assert a.command("detach") == "detach done"
    mark = a.mark()
    with a.stuck_marker():
        with hangs(a):
            a.order("detach")
            a.walks("primary standalone detach", since=mark)
            bypass(a)
        a.walks("primary failed bypassed", since=mark)
        stop_it(a)
    a.event("replication.state", since=mark, state="standalone")

    mark = a.mark()
    with hangs(a) as pid:
        a.order("detach")
        a.walks("primary standalone detach", since=mark)
        bypass(a)
        end(pid)
    a.walks("primary launching bypassed", since=mark)
    stop_it(a)
    a.command("resync")
    for member in two:
        member.is_("replicating")


@pytest.mark.walks(
    *("secondary launching bypassed", "secondary degraded bypassed", "secondary failed bypassed"),
)
def test_on_the_secondary(two: list[Member]) -> None:
    a, b = two
    for member in two:
        member.set(**PATIENT)
    replicating(a, b)

    @contextmanager
    def checkpoint() -> Iterator[int]:
        mark = b.mark()
        with hangs(b) as pid:
            a.order("checkpoint")
            b.walks("secondary replicating peer-checkpoints", since=mark)
            yield pid

    mark = b.mark()
    with checkpoint() as pid:
        bypass(b)
        end(pid)
    b.walks("secondary launching bypassed", since=mark)
    stop_it(b)
    b.walks("secondary listening peer-starts", since=mark)
    for member in two:
        member.is_("replicating")

    with checkpoint():
        a.kill()
        b.event("replication.peer_lost")
        bypass(b)
    b.walks("secondary degraded bypassed")
    stop_it(b)
    a.start()
    for member in two:
        member.is_("replicating")

    with checkpoint():
        b.store.write(f"/libxl/{DOMID}/type", "pv")
        b.event("replication.refused")
        bypass(b)
    b.walks("secondary failed bypassed")
    stop_it(b)
    b.store.write(f"/libxl/{DOMID}/type", "hvm")
    for member in two:
        member.is_("replicating")
