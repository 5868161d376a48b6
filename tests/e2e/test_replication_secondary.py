"""What a secondary does when its primary, its QEMU or its operator does something unusual."""

import json
import os
import resource
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.host import SDA, SDB, XVDA, argv_of, end, free_ports, until
from tests.e2e.site import (
    COLO,
    DISKS,
    DOMID,
    INFOS,
    MIB,
    QUICK_LINK,
    UUID,
    Caller,
    Member,
    frozen,
    listening,
    replicating,
)
from xencolo.record import parse, render

SESSION = "0123456789abcdef"


def rewrite(member: Member, **changes: Any) -> None:
    """Change the record of a host whose daemon does not run."""
    fields = json.loads(member.record_path.read_bytes()) | changes
    del fields["format"], fields["checksum"]
    record = type(parse(member.record_path.read_bytes()))
    member.record_path.write_bytes(render(msgspec.convert(fields, record)))


def failing_over(b: Member, command: str = "failover") -> None:
    """Have a failover begin and hang in its QEMU, which is stopped."""
    b.order(command)
    b.is_("failing-over")


@pytest.mark.walks(
    *(
        "secondary launching serving",
        "secondary launching partial",
        "secondary listening qemu-gone",
    ),
    *("secondary listening peer-detaches", "secondary listening refused"),
    *("secondary failed accepted", "secondary listening force-failover"),
    *("secondary listening action-failed", "secondary failed retry", "secondary failed qemu-gone"),
    *(
        "secondary failed peer-lost",
        "secondary failed peer-silent",
        "secondary listening peer-silent",
    ),
    "secondary failed refused",
)
@pytest.mark.unexpected("secondary listening peer-checkpoints")
def test_a_secondary_listens(two: list[Member]) -> None:
    b = two[1]
    b.set(link=QUICK_LINK, replication={"qmp_timeout": 2})
    listening(b)
    b.kill()
    b.start()
    b.walks("secondary launching serving")
    b.is_("listening")
    b.kill()
    b.guest("block-export-del", id=f"export-{SDA}", mode="hard")
    b.start()
    b.walks("secondary launching partial")
    b.is_("listening")
    assert len(b.guest("query-block-exports")) == 2

    mark = b.mark()
    end(b.qemu(DOMID))
    b.walks("secondary listening qemu-gone", since=mark)
    b.walks("secondary launching clean", since=mark)
    b.is_("listening")
    mark = b.mark()
    b.store.write(f"{COLO.removesuffix('/colo')}/type", "pv")
    b.walks("secondary listening refused", since=mark)
    b.is_("failed")
    b.says("only the disks of an hvm guest")
    b.store.write(f"{COLO.removesuffix('/colo')}/type", "pvh")
    b.walks("secondary failed refused", since=mark)
    end(b.qemu(DOMID))
    b.walks("secondary failed qemu-gone", since=mark)
    b.says("only the disks of an hvm guest")
    b.store.write(f"{COLO.removesuffix('/colo')}/type", "hvm")
    b.is_("listening")

    caller = Caller(b)
    welcome = caller.hello()
    assert (welcome["state"], welcome["session"], welcome["in_sync"]) == ("listening", None, False)
    assert caller("prepare", session=SESSION, assume_equal=False)["type"] == "done"
    assert "not in session" in caller("start", session="ff" * 8)["reason"]
    assert caller("checkpoint", session=SESSION, number=1)["kind"] == "state"
    assert caller("detach", session=SESSION)["type"] == "done"
    caller.close()

    for number, row in enumerate(("secondary failed peer-lost", "secondary failed peer-silent")):
        mark = b.mark()
        caller = Caller(b)
        caller.hello()
        caller("prepare", session=SESSION, assume_equal=False)
        with frozen(b.qemu(DOMID)):
            caller.send("start", session=SESSION)
            if number == 0:
                caller.close()
            b.walks("secondary listening action-failed", since=mark)
            b.walks(row, since=mark)
        caller.close()
        b.walks("secondary failed retry", since=mark)
        b.is_("listening")
    caller = Caller(b)
    caller.hello()
    b.walks("secondary listening peer-silent")
    caller.close()

    mark = b.mark()
    caller = Caller(b)
    caller.hello()
    caller("prepare", session=SESSION, assume_equal=False)
    with frozen(b.qemu(DOMID)):
        caller.send("start", session=SESSION)
        b.is_("failed")
        b.store.write(f"{COLO.removesuffix('/colo')}/type", "pv")
        b.event("replication.refused", since=mark)
    caller.close()
    b.is_("failed")
    b.store.write(f"{COLO.removesuffix('/colo')}/type", "hvm")
    b.walks("secondary failed accepted", since=mark)
    b.is_("listening")

    assert b.command("failover").startswith("failover failed: the disks hold no checkpoint")
    assert b.command("failover force") == "failover done generation 2"
    b.is_("promoted")
    assert b.record["generation"] == 2
    assert not b.record["unfinished"]
    b.guest.write(XVDA, 0x11, "0", "64k")


@pytest.mark.unexpected("secondary replicating peer-starts")
@pytest.mark.walks(
    *("secondary replicating peer-agrees", "secondary replicating peer-prepares"),
    *("secondary replicating peer-silent", "secondary replicating refused"),
    *("secondary degraded qemu-gone", "secondary degraded refused", "secondary launching spent"),
    *("secondary replicating force-failover", "primary promoted superseded"),
)
def test_a_secondary_replicates(two: list[Member]) -> None:
    a, b = two
    b.set(link=QUICK_LINK)
    a.set(link=QUICK_LINK)
    replicating(a, b)

    def again(mark: int) -> None:
        b.walks("secondary listening peer-starts", since=mark)
        for member in two:
            member.is_("replicating")

    session = a.colo("session")
    mark = b.mark()
    caller = Caller(b)
    assert caller.hello(session=session)["session"] == session
    b.walks("secondary replicating peer-agrees", since=mark)
    caller.close()
    a.event("replication.peer_lost")
    for member in two:
        member.is_("replicating")
    assert a.colo("session") == session

    mark = b.mark()
    caller = Caller(b)
    caller.hello(session=session)
    assert caller("start", session=session)["kind"] == "state"
    assert caller("prepare", session=SESSION, assume_equal=False)["kind"] == "busy"
    b.walks("secondary replicating peer-prepares", since=mark)
    caller.close()
    again(mark)

    mark = b.mark()
    with frozen(a.pid):
        b.walks("secondary replicating peer-silent", since=mark)
        b.is_("degraded")
        b.says("the primary's daemon is gone")
    for member in two:
        member.is_("replicating")

    mark = b.mark()
    a.kill()
    b.is_("degraded")
    end(b.qemu(DOMID))
    b.walks("secondary degraded qemu-gone", since=mark)
    a.start()
    again(mark)

    mark = b.mark()
    a.kill()
    b.is_("degraded")
    b.kill()
    b.guest("xen-set-replication", enable=False, primary=False, failover=True)
    b.start()
    b.walks("secondary launching spent", since=mark)
    a.start()
    again(mark)

    mark = b.mark()
    session = a.colo("session")
    b.store.write("/libxl/5/type", "pv")
    b.walks("secondary replicating refused", since=mark)
    b.is_("failed")
    b.store.write("/libxl/5/type", "hvm")
    for member in two:
        member.is_("replicating")
    a.kill()
    b.is_("degraded")
    b.store.write("/libxl/5/type", "pv")
    b.walks("secondary degraded refused", since=mark)
    b.is_("failed")
    b.store.write("/libxl/5/type", "hvm")
    a.start()
    for member in two:
        member.is_("replicating")
    assert a.colo("session") == session, "refused for a time, the session goes on"

    a.kill()
    b.stop()
    rewrite(b, in_sync=False)
    mark = b.mark()
    b.start()
    b.is_("degraded")
    assert b.command("failover").startswith("failover failed: ")
    a.start()
    again(mark)
    assert a.colo("session") != session, "what holds no checkpoint gets none in the old session"

    a.kill()
    b.is_("degraded")
    b.stop()
    end(b.qemu(DOMID))
    b.start()
    b.is_("listening")
    caller = Caller(b)
    caller.hello()
    caller("prepare", session=SESSION, assume_equal=False)
    with frozen(b.qemu(DOMID)):
        caller.send("start", session=SESSION)
        b.walks("secondary listening peer-starts", since=b.mark() - 1)
        b.order("failover force")
        b.event("command.taken", command="failover force")
    assert b.answer("failover") == "failover done generation 2"
    b.walks("secondary replicating force-failover")
    caller.close()
    a.start()
    a.is_("failed")
    a.says("another host is the primary of generation 2")
    b.is_("promoted")
    caller = Caller(b)
    caller.hello(9)
    caller.close()
    b.walks("primary promoted superseded")


@pytest.mark.walks(
    *("secondary replicating qemu-error", "secondary degraded peer-detaches"),
    *("secondary degraded peer-lost", "secondary degraded peer-silent"),
)
def test_a_secondary_whose_qemu_hangs(two: list[Member]) -> None:
    a, b = two
    ending = {"quit_timeout": 0.1, "term_timeout": 0.1}
    b.set(link=QUICK_LINK | {"timeout": 2}, replication={"qmp_timeout": 0.3}, qemu=ending)
    replicating(a, b)
    session, pid = a.colo("session"), b.qemu(DOMID)
    mark = b.mark()
    with frozen(a.pid), frozen(pid):
        b.walks("secondary replicating qemu-error", since=mark)
        b.says("QEMU did not answer")
        caller = Caller(b)
        assert caller.hello(session=session)["state"] == "degraded"
        caller.close()
        b.walks("secondary degraded peer-lost", since=mark)
        caller = Caller(b)
        caller.hello(session=session)
        b.walks("secondary degraded peer-silent", since=mark)
        caller.close()
        caller = Caller(b)
        caller.hello(session=session)
        assert caller("detach", session=session) == {"type": "done"}
        caller.close()
        until(lambda: b.qemus(DOMID) != [pid], "the QEMU that hangs is replaced")
    for member in two:
        member.is_("replicating")
    assert a.colo("session") != session


def unfinished(b: Member) -> None:
    """Have the record say that a failover was begun."""
    chains = [
        {
            "devid": disk.devid,
            "secondary": disk.image,
            "format": "raw",
            "hidden": disk.nodes["hidden-disk"],
            "active": disk.nodes["active-disk"],
        }
        for disk in b.disks
    ]
    rewrite(b, unfinished=chains, generation=2)


@pytest.mark.walks(
    *("secondary launching in-session", "secondary degraded force-failover"),
    *("secondary failing-over action-failed", "secondary launching qemu-error"),
    *("secondary launching unfinished", "secondary failing-over qemu-gone"),
)
def test_a_failover_is_interrupted(two: list[Member]) -> None:
    a, b = two
    b.set(replication={"qmp_timeout": 0.5})
    replicating(a, b)
    a.guest.write(XVDA, 0x11, "0", "64k")
    a.command("checkpoint")
    a.lose()
    b.is_("degraded")
    b.stop()
    rewrite(b, in_sync=False)
    b.start()
    b.is_("degraded")
    assert b.command("failover").startswith("failover failed: ")
    with frozen(b.qemu(DOMID)):
        failing_over(b, "failover force")
        b.walks("secondary failing-over action-failed")
        b.walks("secondary launching qemu-error")
        b.is_("failed")
    mark = b.mark()
    b.walks("secondary launching in-session", since=mark)
    b.is_("degraded")
    b.stop()
    unfinished(b)
    b.start()
    b.walks("secondary launching unfinished")
    b.is_("promoted")
    assert b.record["generation"] == 2
    assert b.guest.holds(XVDA, 0x11, "0", "64k")

    b.store.write(f"{COLO}/role", "secondary")
    b.is_("listening")
    a.start()
    a.is_("failed")
    pid = b.qemu(DOMID)
    with frozen(pid):
        failing_over(b, "failover force")
        os.kill(pid, signal.SIGKILL)
        b.forget_guest()
        b.walks("secondary failing-over qemu-gone")
    b.is_("listening")


def test_another_domain_comes_while_a_failover_is_finished(two: list[Member]) -> None:
    """Of the same domid, as its toolstack may choose: the failover says nothing of its role."""
    a, b = two
    replicating(a, b)
    a.command("checkpoint")
    b.stop()
    unfinished(b)
    b.lose_qemu()
    begun, gate, programs = (b.directory / name for name in ("begun", "gate", "bin"))
    programs.mkdir()
    slow = programs / "qemu-img"
    wait = f"touch {begun}; until [ -e {gate} ]; do sleep 0.02; done"
    lines = ["#!/bin/sh", f"export PATH={os.environ['PATH']}"]
    lines += [f"if [ $1 = commit ]; then {wait}; fi", 'exec qemu-img "$@"']
    slow.write_text("\n".join([*lines, ""]))
    slow.chmod(0o755)
    b.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    mark = b.mark()
    b.start()
    until(begun.exists, "a disk is made whole")

    def change() -> None:
        b.store.destroy(DOMID)
        b.store.create(DOMID)
        b.store.attach(*b.disks, role="secondary")

    b.store.together(change)
    b.barrier()
    gate.touch()
    b.event("failover.recovered", since=mark)
    b.is_("listening")
    assert b.store.read(f"{COLO}/role") == "secondary"


@pytest.mark.walks("primary promoted detach", "primary promoted action-failed")
def test_a_failover_is_finished_without_its_qemu(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "0", "64k")
    a.command("checkpoint")
    b.stop()
    unfinished(b)
    end(b.qemu(DOMID))
    b.start()
    b.is_("promoted")
    b.event("failover.recovered", devid=XVDA)
    b.event("failover.recovered", devid=SDA)
    assert b.record["generation"] == 2
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x11, "0", "64k")
    with b.stuck_marker():
        assert "in use" in b.command("detach")
        b.walks("primary promoted action-failed")
        b.is_("failed")
    b.is_("promoted")
    assert b.command("detach") == "detach done"
    b.walks("primary promoted detach")
    b.is_("standalone")
    caller = Caller(b)
    caller.hello(9)
    caller.close()
    b.is_("failed")

    a.is_("failed")
    a.serve_here()
    for member in two:
        member.store.write(f"{COLO}/role", "secondary")
        member.is_("listening")


@pytest.mark.walks(
    *("secondary launching action-failed", "secondary launching refused"),
    *("secondary launching qemu-gone", "secondary failed retry"),
)
def test_a_secondary_does_not_get_as_far_as_listening(two: list[Member]) -> None:
    a, b = two
    with socket.create_server((b.address, b.nbd_port)):
        b.set(replication={"qmp_timeout": 2})
        b.start()
        b.add("secondary")
        b.walks("secondary launching action-failed")
        b.is_("failed")
        b.says("Failed to find an available port")
        pid = b.qemu(DOMID)
        mark = b.mark()
        os.kill(pid, signal.SIGSTOP)
        b.event("replication.state", since=mark, state="launching")
        end(pid)
        b.walks("secondary launching qemu-gone", since=mark)
    b.is_("listening")

    a.set(qemu={"binary": a.gated_qemu()})
    a.start()
    a.add("secondary")
    a.event("qemu.starting")
    a.store.write("/libxl/5/type", "pv")
    a.walks("secondary launching refused")
    a.is_("failed")


def test_a_host_that_can_be_no_name(two: list[Member]) -> None:
    b = two[1]
    b.start()
    b.add("secondary", colo_host="web..example")
    b.is_("failed")
    b.says("web..example")
    b.serve_here()
    b.is_("listening")


@pytest.mark.walks("secondary degraded fenced")
def test_the_fencing_command_decides(two: list[Member], tmp_path: Path) -> None:
    a, b = two
    told, gate = tmp_path / "told", tmp_path / "gate"
    fence = tmp_path / "fence"
    fence.write_text(
        f'#!/bin/sh\necho "$XENCOLO_DOMID $XENCOLO_PEER $XENCOLO_GENERATION" > {told}\n'
        f"case $(cat {gate}) in hang) sleep 60;; fail) echo no hand reaches it >&2; exit 3;; esac\n"
    )
    fence.chmod(0o755)
    gate.write_text("fail")
    b.set(failover={"policy": "command", "command": [str(fence)], "timeout": 0.5, "after": 0.01})
    replicating(a, b)
    a.kill()
    b.event("failover.fencing_failed", error="it ended with status 3: no hand reaches it")
    assert told.read_text().split() == ["5", "127.0.0.1", "1"]
    b.is_("degraded")
    a.start()
    for member in two:
        member.is_("replicating")
    gate.write_text("hang")
    a.kill()
    b.event("failover.fencing_failed", error="it did not end within 0.5 s")
    assert b.colo("state") == "degraded"
    a.start()
    for member in two:
        member.is_("replicating")
    gate.write_text("succeed")
    a.kill()
    b.is_("promoted")
    assert len(b.events("failover.fencing")) == 3
    assert b.record["generation"] == 2
    until(lambda: b.colo("generation") == "2", "the generation is published")


@pytest.mark.parametrize("deaf", ["both", "child"])
def test_a_fencing_command_ends_with_all_that_it_has_started(
    two: list[Member], tmp_path: Path, deaf: str
) -> None:
    """What it leaves behind would fence a primary that has long come back."""
    a, b = two
    child = tmp_path / "child"
    own = "trap '' TERM" if deaf == "both" else ":"
    fence = ["sh", "-c", f"{own}; (trap '' TERM; sleep 300; :) & echo $! > {child}; wait"]
    b.set(failover={"policy": "command", "command": fence, "timeout": 0.5, "after": 0.01})
    replicating(a, b)
    a.kill()
    b.event("failover.fencing_failed", error="it did not end within 0.5 s")
    until(lambda: not argv_of(int(child.read_text())), "what it has started is ended")


def test_a_fencing_command_that_leaves_something_behind(two: list[Member], tmp_path: Path) -> None:
    """Its status counts, whoever holds its stderr open after it."""
    a, b = two
    child = tmp_path / "child"
    fence = ["sh", "-c", f"sleep 300 & echo $! > {child}"]
    b.set(failover={"policy": "command", "command": fence, "timeout": 30, "after": 0.01})
    replicating(a, b)
    a.kill()
    b.is_("promoted")
    end(int(child.read_text()))


def test_a_fencing_command_that_prints_without_end(two: list[Member]) -> None:
    a, b = two
    fence = ["sh", "-c", "head -c 200M /dev/zero >&2; echo no hand reaches it >&2; exit 3"]
    b.set(failover={"policy": "command", "command": fence, "timeout": 30, "after": 0.01})
    replicating(a, b)
    a.kill()
    failed = b.event("failover.fencing_failed")
    assert failed["error"].endswith("no hand reaches it")
    status = Path(f"/proc/{b.pid}/status").read_text()
    (peak,) = (int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    assert peak < 200 << 10, "KiB: what it prints is not kept"


def test_a_fencing_command_for_a_name_that_no_variable_can_hold(
    two: list[Member], tmp_path: Path
) -> None:
    a, b = two
    fence = ["sh", "-c", f'echo "$XENCOLO_NAME" > {tmp_path}/name']
    b.set(failover={"policy": "command", "command": fence, "after": 0.01})
    b.start()
    b.store.create(DOMID, identity=UUID)
    b.store.write(f"/local/domain/{DOMID}/name", b"we\0b")
    b.attach("secondary")
    b.is_("listening")
    a.start()
    a.add(peer=b)
    a.is_("replicating")
    a.kill()
    b.is_("promoted")
    assert (tmp_path / "name").read_text() == "web\n"


@pytest.mark.walks("secondary degraded action-failed")
def test_a_device_model_that_cannot_be_replaced(two: list[Member]) -> None:
    a, b = two
    b.set(qemu={"restart": False})
    replicating(a, b)
    pid = b.qemu(DOMID)
    a.stop()
    b.is_("degraded")
    end(a.qemu(DOMID))
    a.start()
    b.walks("secondary degraded action-failed")
    until(lambda: "can't be replaced under its guest" in (a.colo("error") or ""), "a hears why")
    assert b.qemu(DOMID) == pid
    a.lose()
    b.barrier()  # what is said from here on is of after
    until(lambda: b.colo("peer") is None, "the primary is lost again")
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2", "its checkpoint was not given up"


@pytest.mark.walks("primary replicating action-failed")
def test_a_checkpoint_that_comes_late_has_nothing_of_after(two: list[Member]) -> None:
    a, b = two
    a.set(link={"timeout": 20})
    b.set(replication={"qmp_timeout": 20})
    replicating(a, b)
    a.guest.write(XVDA, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    mark, caller = b.mark(), Caller(b)
    with frozen(b.qemu(DOMID)):
        a.order("checkpoint")
        b.walks("secondary replicating peer-checkpoints", since=mark)
        caller.send(
            "hello", **caller.fields(session=a.colo("session"))
        )  # which ends the other's link
        assert a.answer("checkpoint").startswith("checkpoint failed: ")
        a.walks("primary replicating action-failed")
        assert a.colo("checkpoint") != "2", "what failed is not counted"
        names = partial(a.guest, "query-named-block-nodes")
        until(lambda: not any("peer" in n["node-name"] for n in names()), "it is detached")
        a.kill()
        a.guest.write(XVDA, 0x22, "0", "64k")
    b.event("checkpoint.taken", since=mark)
    caller.close()
    a.lose_qemu()
    b.is_("degraded")
    b.command("failover")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")


@pytest.mark.walks("primary launching partial")
def test_a_checkpoint_that_outlives_who_asked_for_it_has_nothing_of_after(
    two: list[Member],
) -> None:
    a, b = two
    for member in two:
        member.set(replication={"qmp_timeout": 20}, link={"timeout": 20})
    replicating(a, b)
    a.guest("cont")
    a.guest.write(XVDA, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    a.guest.write(XVDA, 0x22, "0", "128k")
    mark, guest = b.mark(), a.guest

    def running() -> bool:
        return bool(guest("query-status")["running"])

    with ExitStack() as stack:
        with frozen(b.pid):
            a.order("checkpoint")
            until(lambda: not running(), "the guest stands for the checkpoint")
            stack.enter_context(frozen(b.qemu(DOMID)))
        b.walks("secondary replicating peer-checkpoints", since=mark)
        a.kill()
        a.start()
        until(running, "its guest goes on")
        a.kill()
        guest.begin(XVDA, "write -q -P 0x33 0 64k")
        time.sleep(0.5)  # it is on its way
    b.event("checkpoint.taken", since=mark)
    a.lose_qemu()
    b.is_("degraded")
    b.command("failover")
    assert b.guest.holds(XVDA, 0x22, "0", "128k")
    assert b.guest.holds(XVDA, 0x11, "128k", "128k")


@pytest.mark.parametrize("policy", ["report", "command"])
def test_a_primary_that_comes_in_another_session_does_not_replicate(
    two: list[Member], policy: str
) -> None:
    a, b = two
    b.set(failover={"policy": policy, "command": ["/bin/true"], "after": 0.01})
    replicating(a, b)
    mark, caller = b.mark(), Caller(b)
    with frozen(a.pid):
        assert caller.hello(session=SESSION)["state"] == "degraded"
        b.is_("degraded")
        assert b.colo("peer") == "127.0.0.1"
        b.barrier()
        assert not b.events("failover.fencing", since=mark), "who speaks is not dead"
        caller.close()
        if policy == "command":
            b.is_("promoted")
    if policy == "report":
        b.is_("replicating")


def test_a_port_that_is_changed_while_a_secondary_listens(two: list[Member]) -> None:
    """Somebody else's server may be at the new one, and export a disk of that name too."""
    a, b = two
    listening(b, disks=DISKS[:1])
    other, port = b.directory / "other.raw", free_ports(1, b.address)[0]
    other.write_bytes(bytes(MIB))
    where = ("-b", b.address, "-p", str(port), "-x", "web-xvda")
    theirs = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", *where, str(other)])
    try:
        (disk,) = b.disks

        def change() -> None:
            for directory in (disk.backend, disk.libxl):
                b.store.write(f"{directory}/colo-port", str(port))

        b.store.together(change)
        b.barrier()
        a.start()
        a.add(peer=b, disks=DISKS[:1], colo_port=str(port))
        b.says("Failed to find an available port")
        assert a.colo("state") != "replicating"
    finally:
        end(theirs.pid)
        theirs.wait()
    for member in two:
        member.is_("replicating")
    a.guest.write(XVDA, 0x11, "0", "256k")
    a.command("checkpoint")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")
    assert not any(other.read_bytes())


def test_a_primary_whose_daemon_is_gone_copies_into_no_other_session(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"resync_speed": 1})
    listening(b, mib=4)
    a.start()
    a.add(peer=b, mib=4)
    a.is_("resyncing")
    until(lambda: a.guest("query-block-jobs"), "its disks are copied")
    a.kill()
    caller = Caller(b)
    caller.hello(disks=[info | {"length": 4 * MIB} for info in INFOS])
    assert caller("prepare", session=SESSION)["type"] == "done"

    def ended() -> bool:
        jobs = a.guest("query-block-jobs")
        return all(job["status"] == "concluded" and "error" in job for job in jobs)

    until(ended, "it copies no more", 15)
    caller.close()


@pytest.mark.walks("secondary replicating torn")
def test_a_checkpoint_that_one_disk_of_two_refuses_is_none(two: list[Member]) -> None:
    a, b = two
    b.set(qemu={"binary": b.program("trap '' XFSZ", 'exec qemu-system-x86_64 "$@"')})
    b.add("secondary")
    for node in ("active-disk", "hidden-disk"):
        # With clusters so big all but its header is out of the limit below.
        big = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M")
        subprocess.run([*big, b.disks[1].nodes[node], "1M"], check=True)
    b.start()
    a.start()
    a.add(peer=b)
    b.is_("replicating")
    a.is_("replicating")
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x22, "0", "256k")
        b.guest.write(devid, 0x33, "512k", "64k")
    hard = resource.RLIM_INFINITY
    resource.prlimit(b.qemu(DOMID), resource.RLIMIT_FSIZE, (1 << 20, hard))
    session = a.colo("session")
    a.lose()
    caller = Caller(b)
    caller.hello(session=session)
    assert "Failed to empty" in caller("checkpoint", session=session, number=2)["reason"]
    caller.close()
    b.walks("secondary replicating torn")
    holds = [[b.guest.holds(devid, p, "0", "256k") for p in (0x11, 0x22)] for devid in (SDA, XVDA)]
    assert holds == [[True, False], [False, True]], "one has the last, the other the next"
    assert "hold no checkpoint" in b.command("failover")
    assert not b.record["in_sync"]


@pytest.mark.walks("secondary listening force-failover", "primary promoted superseded")
def test_a_forced_failover_has_a_generation_of_its_own(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    a.kill()
    b.is_("degraded")
    b.command("failover")
    a.start()
    a.says("another host is the primary of generation 2")
    a.serve_here()
    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    assert a.command("failover force") == "failover done generation 3"
    b.command(f"resync to={a.address}")
    b.is_("failed")
    b.says("another host is the primary of generation 3")


def test_both_hosts_were_made_secondary(two: list[Member]) -> None:
    """The one that was the primary has all that the guest wrote, and loses none of it."""
    a, b = two
    replicating(a, b)
    assert a.command("checkpoint") == "checkpoint done number 1"
    a.guest.write(XVDA, 0x11, "0", "256k")
    a.serve_here()
    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    b.is_("degraded")
    said = a.command("failover")
    assert "all that the guest wrote here while this host was it" in said
    assert "resync" not in said
    assert a.command("failover force") == "failover done generation 2"
    assert a.guest.holds(XVDA, 0x11, "0", "256k")
    a.command(f"resync to={b.address}")
    for member in two:
        member.is_("replicating")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")

    a.store.write(f"{COLO}/role", "secondary")
    a.is_("listening")
    assert a.record["own"]
    assert b.command("failover") == "failover done generation 3"
    b.command(f"resync to={a.address}")
    for member in two:
        member.is_("replicating")
    assert not a.record["own"], "it holds the other one's now"
    b.lose()
    end(a.qemu(DOMID))
    a.is_("listening")
    assert "may be part of a resync" in a.command("failover")


def suspended(two: list[Member]) -> int:
    """Have a secondary lose its primary after a checkpoint; return the pid of its QEMU."""
    a, b = two
    replicating(a, b)
    a.guest.write(XVDA, 0x11, "0", "256k")
    a.command("checkpoint")
    pid = b.qemu(DOMID)
    a.lose()
    b.is_("degraded")
    return pid


def test_a_disk_that_is_added_does_not_cost_the_last_checkpoint(two: list[Member]) -> None:
    b = two[1]
    pid = suspended(two)
    b.store.attach(b.disk(DOMID, "sdb", SDB, colo=False))
    b.says("QEMU has the last checkpoint of a primary that was lost")
    assert b.colo("state") == "degraded"
    assert b.qemu(DOMID) == pid
    assert b.command("failover") == "failover done generation 2"
    until(lambda: b.qemus(DOMID) not in ([], [pid]), "the QEMU of the promoted gets the disk")
    b.is_("promoted")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")


@pytest.mark.parametrize("restarted", [True, False])
def test_a_disk_that_is_added_costs_no_checkpoint_that_the_daemon_can_say_nothing_of(
    two: list[Member], restarted: bool
) -> None:
    """It has not looked yet, or the disk makes a group of them that can't replicate."""
    b = two[1]
    pid = suspended(two)
    if restarted:
        other = b.disk(DOMID, "sdb", SDB, colo=False)
        b.stop()
        b.store.attach(other)
        b.start()
        b.is_("degraded")
        b.says("QEMU has the last checkpoint of a primary that was lost")
    else:
        other = b.disk(DOMID, "sdb", SDB, colo_host="192.0.2.1")
        b.store.attach(other)
        b.is_("failed")
        b.says("give all the same colo-host")
    b.barrier()
    assert b.qemu(DOMID) == pid
    b.store.detach(other)
    until(lambda: b.colo("error") is None, "all is well")
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    assert b.guest.holds(XVDA, 0x11, "0", "256k")


def test_a_secondarys_disk_is_not_given_to_a_guest_as_a_plain_one(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    b.store.write(f"{COLO}/role", "none")
    b.says("its disks are a secondary's")
    assert a.colo("state") == "replicating"
    a.guest.write(XVDA, 0x11, "0", "256k")
    a.command("checkpoint")
    b.stop()
    unfinished(b)
    end(b.qemu(DOMID))
    b.start()
    b.says("its disks are a secondary's")
    assert b.qemus(DOMID) == []
    b.store.write(f"{COLO}/role", "secondary")
    b.is_("promoted")
    assert b.guest.holds(XVDA, 0x11, "0", "256k")
