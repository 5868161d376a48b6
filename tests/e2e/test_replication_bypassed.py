"""A guest's PV driver takes a disk while something else goes wrong: what comes first is dealt with first."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.host import end, until
from tests.e2e.site import DOMID, Member, frozen, listening, replicating

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


@pytest.mark.walks("secondary replicating bypassed", "secondary degraded peer-prepares")
def test_what_a_guest_of_the_secondary_wrote_past_it_is_no_checkpoint(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    session = a.colo("session")
    bypass(b)
    b.is_("degraded")
    b.walks("secondary replicating bypassed")
    assert b.command("failover").startswith("failover failed: the disks hold no checkpoint")
    assert not b.record["in_sync"]
    mark = a.mark()
    stop_it(b)
    a.event("resync.done", since=mark)
    for member in two:
        member.is_("replicating")
    assert a.colo("session") != session


@pytest.mark.walks("secondary listening bypassed", "primary resyncing peer-lost")
def test_a_guest_of_the_secondary_writes_past_a_resync(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"resync_speed": 1})
    listening(b, mib=4)
    a.start()
    a.add(peer=b, mib=4)
    a.event("resync.started")
    mark = a.mark()
    bypass(b)
    a.walks("primary resyncing peer-lost", since=mark)
    stop_it(b)
    a.event("resync.started", since=mark)
    for member in two:
        member.is_("replicating")


@pytest.mark.walks("secondary failed bypassed", "secondary failed action-failed")
def test_it_cannot_be_recorded_that_the_checkpoint_is_spoilt(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    a.kill()
    b.store.write(f"/libxl/{DOMID}/type", "pv")
    b.is_("failed")
    place = b.record_path.parent
    away = place.rename(place.with_name("away"))
    place.write_bytes(b"no directory")
    bypass(b)
    b.walks("secondary failed action-failed")
    place.unlink()
    away.rename(place)
    b.store.write(f"/libxl/{DOMID}/type", "hvm")
    b.is_("degraded")
    until(lambda: not b.record["in_sync"], "it is recorded")
    assert b.command("failover").startswith("failover failed: the disks hold no checkpoint")
