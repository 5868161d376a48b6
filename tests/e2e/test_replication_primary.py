"""What a primary does when its peer, its QEMU, its guest or its operator does something unusual."""

import signal
import time
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from tests.e2e.host import SDA, XVDA, end, until
from tests.e2e.site import (
    COLO,
    DOMID,
    QUICK_LINK,
    Caller,
    Member,
    Refused,
    frozen,
    listening,
    replicating,
)

SLOW = {"resync_speed": 1}


def resyncing(a: Member, b: Member) -> None:
    """Bring a pair into a resync that takes long."""
    a.set(replication=SLOW)
    listening(b, mib=8)
    a.start()
    a.add(peer=b, mib=8)
    a.is_("resyncing")
    a.event("resync.started")


def hurry(a: Member) -> None:
    """Let the resync that runs be as fast as it can; the part that has ended meanwhile needs no more."""
    for job in a.guest("query-block-jobs"):
        with suppress(Refused):
            a.guest("block-job-set-speed", device=job["device"], speed=0)


def clean(a: Member) -> bool:
    """Tell whether QEMU has nothing of a secondary."""
    names = {node["node-name"] for node in a.guest("query-named-block-nodes")}
    return not a.guest("query-block-jobs") and not any(n.startswith(("nbd", "peer")) for n in names)


@pytest.mark.walks(
    *("primary resyncing peer-lost", "primary degraded peer-ready", "primary resyncing detach"),
    *("primary resyncing qemu-error", "primary resyncing bypassed", "primary resyncing refused"),
    *("primary failed accepted", "primary launching partial", "primary resyncing peer-silent"),
    *(
        "primary resyncing qemu-gone",
        "primary resyncing superseded",
        "secondary listening peer-lost",
    ),
)
def test_a_resync_is_interrupted(two: list[Member]) -> None:
    a, b = two
    b.set(link=QUICK_LINK)
    a.set(link=QUICK_LINK)
    resyncing(a, b)
    until(lambda: a.colo("resync-total") == str(16 << 20), "the progress is published")

    b.kill()
    a.walks("primary resyncing peer-lost")
    a.is_("degraded")
    until(lambda: clean(a), "nothing of the secondary is left")
    b.start()
    a.is_("resyncing")

    assert a.command("detach") == "detach done"
    a.is_("standalone")
    until(lambda: clean(a), "nothing of the secondary is left")
    mark = a.mark()
    assert a.command("resync").startswith("resync done")
    a.event("resync.started", since=mark)

    mark = a.mark()
    with frozen(b.pid):
        end(b.qemu(DOMID))
        hurry(a)
        a.walks("primary resyncing qemu-error", since=mark)
    a.event("resync.started", since=mark)

    mark = a.mark()
    a.store.write(f"{a.disks[0].backend}/state", "4")
    a.walks("primary resyncing bypassed", since=mark)
    a.event("replication.bypassed", vdevs=["xvda"])
    a.is_("degraded")
    a.says("bypassed")
    assert a.colo(f"device/{XVDA}/state") == "bypassed"
    assert a.command("resync").startswith("resync failed: "), "not while it is bypassed"
    a.store.write(f"{a.disks[0].backend}/state", "2")
    a.event("resync.started", since=mark)
    assert a.colo(f"device/{XVDA}/state") == "ready"

    mark = a.mark()
    a.store.write(f"/libxl/{DOMID}/type", "pv")
    a.walks("primary resyncing refused", since=mark)
    a.is_("failed")
    a.says("only the disks of an hvm guest can be replicated")
    a.store.write(f"/libxl/{DOMID}/type", "hvm")
    a.walks("primary failed accepted", since=mark)
    a.event("resync.started", since=mark)

    mark = a.mark()
    a.kill()
    b.walks("secondary listening peer-lost")
    a.start()
    a.walks("primary launching partial", since=mark)
    a.event("resync.started", since=mark)

    mark = a.mark()
    with frozen(b.pid):
        a.walks("primary resyncing peer-silent", since=mark)
    a.event("resync.started", since=mark)

    mark = a.mark()
    end(a.qemu(DOMID))
    a.walks("primary resyncing qemu-gone", since=mark)
    a.event("resync.started", since=mark)

    mark = a.mark()
    caller = Caller(a)
    assert caller.hello(7)["kind"] == "state"
    caller.close()
    a.walks("primary resyncing superseded", since=mark)
    a.says("another host is the primary of generation 7")


@pytest.mark.walks(
    *("primary replicating peer-lost", "primary degraded peer-agrees"),
    *("primary launching attached", "secondary degraded peer-agrees"),
    *("secondary launching in-session", "secondary replicating peer-lost"),
)
def test_a_session_outlives_the_daemons(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    session = a.colo("session")
    assert session
    assert session == b.colo("session")
    qemus = a.qemu(DOMID), b.qemu(DOMID)
    b.kill()
    a.is_("degraded")
    a.guest.write(XVDA, 0x11, "0", "64k")
    b.start()
    a.is_("replicating")
    b.is_("replicating")
    a.kill()
    b.is_("degraded")
    a.guest.write(SDA, 0x22, "0", "64k")
    a.start()
    a.is_("replicating")
    b.is_("replicating")
    a.kill()
    b.kill()
    a.start()
    b.start()
    for member in two:
        member.is_("replicating")
        assert member.colo("session") == session
    assert (a.qemu(DOMID), b.qemu(DOMID)) == qemus
    assert a.command("checkpoint") == "checkpoint done number 1"
    assert b.guest.holds(XVDA, 0x11, "0", "64k")
    assert b.guest.holds(SDA, 0x22, "0", "64k")
    for number in (1, 2):
        for member in two:
            member.counts(number)
        taken = [member.colo("checkpoint-time") for member in two]
        for member in two:
            member.stop()
        for member in two:
            member.start()
        for member in two:
            member.is_("replicating")
            member.counts(number)
        assert [member.colo("checkpoint-time") for member in two] == taken
        assert a.command("checkpoint") == f"checkpoint done number {number + 1}"
    assert len(a.events("resync.started")) == 1


@pytest.mark.walks(
    *("primary replicating action-failed", "primary replicating qemu-error"),
    *("primary replicating peer-lost", "secondary replicating action-failed"),
    *("primary replicating peer-silent", "primary replicating bypassed"),
    *("primary replicating refused", "primary replicating qemu-gone"),
    *("primary replicating superseded", "primary resyncing action-failed"),
    *("secondary replicating qemu-gone", "secondary degraded peer-prepares"),
    *("secondary launching clean", "primary failed superseded"),
)
def test_a_session_is_broken_and_the_next_one_begins(two: list[Member]) -> None:
    a, b = two
    a.set(link=QUICK_LINK)
    b.set(link=QUICK_LINK, replication={"qmp_timeout": 0.4, "poll": 60})
    replicating(a, b)

    def again(row: str, mark: int) -> None:
        a.walks(row, since=mark)
        a.event("resync.done", since=mark)
        a.is_("replicating")
        b.is_("replicating")

    mark = a.mark()
    with frozen(b.qemu(DOMID)):
        assert a.command("checkpoint").startswith("checkpoint failed: ")
    again("primary replicating action-failed", mark)

    mark = a.mark()
    with frozen(b.pid):
        end(b.qemu(DOMID))
        a.guest.write(XVDA, 0x11, "0", "64k")
        a.walks("primary replicating qemu-error", since=mark)
    again("primary replicating qemu-error", mark)

    mark = a.mark()
    end(b.qemu(DOMID))
    again("primary replicating peer-lost", mark)

    mark = a.mark()
    with frozen(b.pid), frozen(b.qemu(DOMID)):
        a.guest.write(XVDA, 0x22, "0", "64k")  # it would wait for the secondary's QEMU
        a.is_("degraded")
        until(lambda: clean(a), "nothing of the secondary is left")
    again("primary replicating peer-silent", mark)

    mark = a.mark()
    a.store.write(f"{a.disks[1].backend}/state", "4")
    a.walks("primary replicating bypassed", since=mark)
    a.is_("degraded")
    a.store.write(f"{a.disks[1].backend}/state", "2")
    again("primary replicating bypassed", mark)

    mark = a.mark()
    end(a.qemu(DOMID))
    again("primary replicating qemu-gone", mark)

    mark = a.mark()
    a.store.write(f"/libxl/{DOMID}/type", "pvh")
    a.walks("primary replicating refused", since=mark)
    a.is_("failed")
    a.store.delete(f"/libxl/{DOMID}/type")
    again("primary replicating refused", mark)

    caller = Caller(a)
    caller.hello(8)
    a.walks("primary replicating superseded")
    a.is_("failed")
    mark = a.mark()
    caller.hello(9)
    a.walks("primary failed superseded", since=mark)
    a.says("generation 9")
    caller.close()


def pv(a: Member, state: str) -> None:
    """Make the domain one that can't replicate, and back."""
    mark = a.mark()
    a.store.write(f"/libxl/{DOMID}/type", "pv")
    a.walks(f"primary {state} refused", since=mark)
    a.is_("failed")
    a.says("only the disks of an hvm guest")
    a.store.write(f"/libxl/{DOMID}/type", "hvm")
    a.walks("primary failed accepted", since=mark)
    a.is_(state)


@pytest.mark.walks(
    *(
        "primary standalone peer-equal",
        "primary degraded peer-equal",
        "primary promoted peer-equal",
    ),
    *("primary degraded detach", "primary standalone detach"),
    *("primary standalone refused", "primary standalone bypassed", "primary degraded refused"),
    *("primary promoted refused", "primary promoted qemu-gone", "primary launching taken-over"),
    *("primary standalone qemu-gone", "primary degraded qemu-gone"),
    *("primary degraded superseded", "primary promoted bypassed"),
)
def test_a_primary_alone(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"assume_equal": True})
    replicating(a, b)
    a.event("resync.skipped")
    assert not a.events("resync.started")

    mark = a.mark()
    end(b.qemu(DOMID))
    reason = "the domain has replicated or taken over before"
    a.event("resync.needed", since=mark, reason=reason)
    a.event("resync.started", since=mark)
    a.is_("replicating")
    mark = a.mark()
    b.stop()
    a.is_("degraded")
    b.start()
    a.walks("primary degraded peer-agrees", since=mark)
    b.stop()
    a.walks("primary replicating peer-lost", since=mark)
    a.is_("degraded")
    assert a.command("detach").startswith("detach done but the secondary was not told: ")
    a.is_("standalone")
    assert a.command("detach").startswith("detach done but the secondary was not told: ")
    assert clean(a)

    mark = a.mark()
    pv(a, "standalone")
    mark = a.mark()
    end(a.qemu(DOMID))
    a.walks("primary standalone qemu-gone", since=mark)
    a.walks("primary launching clean", since=mark)
    a.is_("standalone")
    state = f"{a.disks[0].backend}/state"
    a.store.write(state, "4")
    a.is_("degraded")
    a.store.write(f"/libxl/{DOMID}/type", "pv")
    a.walks("primary degraded refused")
    a.is_("failed")
    a.store.write(f"/libxl/{DOMID}/type", "hvm")
    a.walks("primary failed accepted", since=mark)
    a.is_("degraded")
    mark = a.mark()
    end(a.qemu(DOMID))
    a.walks("primary degraded qemu-gone", since=mark)
    a.walks("primary standalone bypassed", since=mark)
    a.store.write(state, "2")
    a.is_("degraded")
    b.start()
    a.event("replication.released")
    b.is_("listening")
    assert a.command("resync assume-equal").startswith("resync done")
    for member in two:
        member.is_("replicating")
    mark = a.mark()
    b.stop()
    a.walks("primary replicating peer-lost", since=mark)
    a.is_("degraded")
    caller = Caller(a)
    caller.hello(2)
    caller.close()
    a.walks("primary degraded superseded")
    a.is_("failed")

    b.start()
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    b.is_("promoted")
    mark = b.mark()
    end(b.qemu(DOMID))
    b.walks("primary launching taken-over", since=mark)
    b.is_("promoted")
    pv(b, "promoted")
    mark = b.mark()
    state = f"{b.disks[0].backend}/state"
    b.store.write(state, "4")
    b.walks("primary promoted bypassed", since=mark)
    b.is_("degraded")
    b.store.write(state, "2")
    end(b.qemu(DOMID))
    b.walks("primary launching taken-over", since=mark)
    b.is_("promoted")

    a.serve_here()
    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    assert b.command(f"resync to={a.address} assume-equal").startswith("resync done")
    b.walks("primary promoted peer-equal")
    b.is_("replicating")


@pytest.mark.parametrize("hangs", [False, True])
def test_no_guest_stands_because_the_daemon_was_told_to_end(two: list[Member], hangs: bool) -> None:
    a, b = two
    a.set(link=QUICK_LINK | {"timeout": 2})
    replicating(a, b)
    a.guest("cont")
    status = partial(a.guest, "query-status")
    with ExitStack() as stack:
        stack.enter_context(frozen(b.pid))
        a.order("checkpoint")
        until(lambda: not status()["running"], "the guest stands for the checkpoint")
        a.signal(signal.SIGTERM)
        a.event("daemon.stopping")
        if not hangs:
            stack.close()
        assert a.wait_exit() == 0
        assert status()["running"]
    assert bool(a.events("checkpoint.done")) is not hangs
    a.start()
    for member in two:
        member.is_("replicating")


@pytest.mark.walks("primary standalone superseded", "primary launching qemu-error")
def test_a_superseded_primary_whose_qemu_hangs_stands_in_the_end(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"qmp_timeout": 0.3, "retry_max": 0.5})
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    a.guest("cont")
    caller = Caller(a)
    with frozen(a.qemu(DOMID)):
        caller.hello(9)
        a.walks("primary launching qemu-error")
        time.sleep(1)
    caller.close()
    until(lambda: a.guest("query-status")["status"] == "paused", "the guest stands")
    until(lambda: a.record["superseded_by"] == 9, "it is recorded")


def test_checkpoints_at_an_interval(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"checkpoint_interval": 0.3})
    replicating(a, b)
    a.guest.write(XVDA, 0x77, "0", "64k")
    a.event("checkpoint.done", number=3)
    assert b.guest.holds(XVDA, 0x77, "0", "64k")
    times = a.colo("checkpoint-time")
    assert times
    assert abs(int(times) - time.time()) < 10


def test_an_interval_that_is_configured_while_it_replicates(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    for interval, taken in ((0.2, True), (0, False), (3600, False), (0.2, True)):
        a.set(replication={"checkpoint_interval": interval})
        mark = a.mark()
        a.signal(signal.SIGHUP)
        a.event("daemon.reloaded", since=mark)
        time.sleep(0.5)  # one of before may be under way
        mark = a.mark()
        if taken:
            a.event("checkpoint.done", since=mark)
        else:
            time.sleep(1)
            assert not a.events("checkpoint.done", since=mark)


@pytest.mark.walks(
    *("primary standalone action-failed", "primary failed action-failed", "primary failed refused"),
    *("primary failed retry", "primary launching action-failed", "primary degraded action-failed"),
    *("primary launching qemu-error", "primary launching qemu-gone", "primary launching refused"),
    "primary failed qemu-gone",
)
@pytest.mark.unexpected("primary degraded checkpoint")
def test_an_action_fails(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"qmp_timeout": 0.5})
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    with a.stuck_marker():
        assert "in use" in a.command("detach")
        a.walks("primary standalone action-failed")
        a.walks("primary launching action-failed")
        a.is_("failed")
        a.says("in use")
        a.store.write(f"/libxl/{DOMID}/type", "pv")
        a.walks("primary failed action-failed")
        a.walks("primary failed refused")
    mark = a.mark()
    end(a.qemu(DOMID))
    a.walks("primary failed qemu-gone", since=mark)
    a.walks("primary launching refused", since=mark)
    a.store.write(f"/libxl/{DOMID}/type", "hvm")
    a.is_("standalone")

    state = f"{a.disks[0].backend}/state"
    with frozen(a.qemu(DOMID)):
        mark = a.mark()
        a.order("detach")
        a.walks("primary standalone detach", since=mark)
        a.store.write(state, "4")
        a.walks("primary launching qemu-error")
        a.is_("failed")
        a.says("QEMU did not answer")
        a.set(replication={"qmp_timeout": 10})  # it is to end while it is being asked
        a.signal(signal.SIGHUP)
        a.event("daemon.reloaded")
        a.barrier()
        mark = a.mark()
        a.event("replication.state", since=mark, state="launching")
        end(a.qemu(DOMID))
        a.walks("primary launching qemu-gone", since=mark)
    a.is_("degraded")
    a.says("bypassed")
    a.command("checkpoint")  # answered after all that is queued
    with a.stuck_marker():
        mark = a.mark()
        a.command("detach")
        a.walks("primary degraded action-failed", since=mark)
        a.walks("primary failed action-failed", since=mark)
    a.store.write(state, "2")
    a.is_("standalone")


@pytest.mark.walks(
    *("primary standalone peer-lost", "primary standalone peer-silent"),
    *("primary launching peer-lost", "primary launching peer-silent"),
    "primary degraded bypassed",
)
def test_the_peer_is_lost_while_the_own_qemu_hangs(two: list[Member]) -> None:
    a, b = two
    a.set(link=QUICK_LINK, replication={"qmp_timeout": 3, "poll": 60})
    replicating(a, b)

    def again() -> None:
        a.command("resync")
        for member in two:
            member.is_("replicating")

    mark = a.mark()
    with frozen(a.qemu(DOMID)):
        a.order("detach")
        a.is_("degraded")
        b.kill()
        a.event("replication.peer_lost", since=mark)
    a.walks("primary standalone peer-lost", since=mark)
    b.start()
    again()

    mark = a.mark()
    with frozen(a.qemu(DOMID)), frozen(b.pid):
        a.order("detach")
        a.event("replication.peer_lost", since=mark)
    a.walks("primary standalone peer-silent", since=mark)
    again()

    mark, pid = a.mark(), a.qemu(DOMID)
    with frozen(pid):
        a.order("checkpoint")
        a.walks("primary replicating checkpoint", since=mark)
        b.kill()
        a.event("replication.peer_lost", since=mark)
        end(pid)
    a.walks("primary launching peer-lost", since=mark)
    b.start()
    a.event("resync.done", since=mark)
    for member in two:
        member.is_("replicating")

    mark, pid = a.mark(), a.qemu(DOMID)
    with frozen(pid), frozen(b.pid):
        a.order("checkpoint")
        a.event("replication.peer_lost", since=mark)
        end(pid)
    a.walks("primary launching peer-silent", since=mark)
    a.event("resync.done", since=mark)
    for member in two:
        member.is_("replicating")

    state = f"{a.disks[0].backend}/state"
    mark = a.mark()
    with frozen(a.qemu(DOMID)):
        a.order("checkpoint")
        a.walks("primary replicating checkpoint", since=mark)
        for value, published in (("4", "bypassed"), ("2", "ready"), ("4", "bypassed")):
            a.store.write(state, value)
            until(lambda: a.colo(f"device/{XVDA}/state") == published, published)  # noqa: B023
    a.walks("primary degraded bypassed", since=mark)
    a.store.write(state, "2")
    for member in two:
        member.is_("replicating")


@pytest.mark.walks("primary degraded bypassed")
def test_a_session_does_not_go_on_after_a_disk_was_bypassed(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    b.kill()
    a.is_("degraded")

    mark = a.mark()
    state = f"{a.disks[0].backend}/state"
    a.store.write(state, "4")
    a.walks("primary degraded bypassed", since=mark)
    until(lambda: clean(a), "nothing of the secondary is left")
    a.store.write(state, "2")
    b.start()
    a.event("resync.done", since=mark)
    for member in two:
        member.is_("replicating")


@pytest.mark.walks("primary failed peer-lost", "primary failed peer-silent")
def test_the_peer_is_lost_while_the_own_qemu_fails(two: list[Member]) -> None:
    a, b = two
    a.set(link=QUICK_LINK, replication={"qmp_timeout": 1, "poll": 60})
    replicating(a, b)
    for row in ("primary failed peer-lost", "primary failed peer-silent"):
        mark = a.mark()
        with frozen(a.qemu(DOMID)), frozen(b.pid):
            a.order("detach")
            if row.endswith("lost"):
                a.is_("degraded")
                b.kill()
            a.walks(row, since=mark)
        if row.endswith("lost"):
            b.start()
        a.walks("primary launching partial", since=mark)
        until(lambda: clean(a), "the detaching that was broken off is done")
        a.command("resync")
        for member in two:
            member.is_("replicating")


@pytest.mark.walks(
    *("primary degraded peer-silent", "secondary replicating bypassed"),
    "secondary replicating failover",
)
def test_a_secondary_stays_away(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"grace": 0.3})
    replicating(a, b)
    state = f"{b.disks[0].backend}/state"
    b.store.write(state, "4")
    b.walks("secondary replicating bypassed")
    b.is_("degraded")
    b.says("bypassed")
    b.store.write(state, "2")
    for member in two:
        member.is_("replicating")

    b.kill()
    a.walks("primary replicating peer-lost")
    a.walks("primary degraded peer-silent")
    until(lambda: clean(a), "nothing of the secondary is left")
    b.start()
    for member in two:
        member.is_("replicating")
    assert b.command("failover") == "failover done generation 2"
    a.is_("failed")
    until(lambda: a.guest("query-status")["status"] != "running", "the guest stands")


def test_a_peer_of_before_is_not_waited_for(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"grace": 0.5})
    replicating(a, b)
    mark = a.mark()
    b.kill()
    a.is_("degraded")
    a.serve_here()
    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    time.sleep(0.5)
    assert a.command("failover force") == "failover done generation 2"
    assert a.command("resync to=127.0.0.9").startswith("resync done")
    a.says("Connection refused")
    assert "primary promoted peer-silent" not in a.walked(since=mark)


def test_why_a_degraded_primary_does_not_reach_another_secondary(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    b.lose()
    a.is_("degraded")
    a.says("it closed the connection")
    assert a.command("resync to=127.0.0.9:1").startswith("resync done")
    a.says("; no link: 127.0.0.9 port 1: ")
    assert (a.colo("error") or "").startswith("127.0.0.2 port ")


def test_disks_are_not_equal_any_more_when_the_peer_comes_later(two: list[Member]) -> None:
    a, b = two
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    a.says("Connection refused")
    mark = a.mark()
    assert a.command("resync assume-equal").startswith("resync done")
    a.event("command.done", since=mark)
    a.guest.write(XVDA, 0x11, "0", "256k")
    listening(b)
    for member in two:
        member.is_("replicating")
    assert a.events("resync.started")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")


def written(a: Member, pattern: int) -> None:
    """Write as the guest's devices do, which QEMU counts."""
    assert not a.guest.io(XVDA, f"aio_write -P {pattern:#x} 0 256k")
    assert not a.guest.io(XVDA, "aio_flush")


@pytest.mark.parametrize("since", ["nothing", "a write", "another QEMU", "another daemon"])
def test_what_is_configured_as_equal_is_copied_if_it_is_not(two: list[Member], since: str) -> None:
    a, b = two
    a.set(replication={"assume_equal": True})
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    if since == "a write":
        written(a, 0x11)
    elif since == "another QEMU":
        a.guest.write(XVDA, 0x11, "0", "256k")
        end(a.qemu(DOMID))
        a.is_("standalone")
    elif since == "another daemon":
        a.stop()
        written(a, 0x11)
        a.start()
    listening(b)
    for member in two:
        member.is_("replicating")
    needed = [event["reason"] for event in a.events("resync.needed")]
    why = {
        "a write": "its guest has written meanwhile",
        "another QEMU": "its QEMU has run before, and what its guest wrote then is not known",
        "another daemon": "its guest has written meanwhile",
    }
    if since == "nothing":
        assert needed == a.events("resync.started") == []
        a.event("resync.skipped")
    else:
        assert needed[:1] == [why[since]]
        assert a.events("resync.started")
        assert b.guest.holds(XVDA, 0x11, "0", "256k")


def test_what_is_said_to_be_equal_holds_till_the_guest_writes(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    assert a.command("detach") == "detach done"
    b.is_("listening")
    with frozen(b.pid):
        mark = a.mark()
        assert a.command("resync assume-equal").startswith("resync done")
        written(a, 0x22)
    a.event("resync.needed", since=mark, reason="its guest has written meanwhile")
    a.event("resync.done", since=mark)
    assert b.guest.holds(XVDA, 0x22, "0", "256k")


def test_the_guest_writes_while_equal_disks_are_connected(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    assert a.command("detach") == "detach done"
    b.is_("listening")
    mark = a.mark()
    with frozen(b.qemu(DOMID)):
        assert a.command("resync assume-equal").startswith("resync done")
        a.walks("primary standalone peer-equal", since=mark)
        written(a, 0x33)
    a.event("replication.failed", since=mark, action="ask the peer to start replication")
    a.event("resync.started", since=mark)
    for member in two:
        member.is_("replicating")
    assert b.guest.holds(XVDA, 0x33, "0", "256k")
