"""QEMU stops, or ends at its start."""

import os
import signal

from tests.e2e.host import SDA, XVDA, Host, until
from tests.e2e.site import DOMID, replicating
from tests.faults.trial import Trial, rounds

_STARTS = 10


def ends_at_its_start(trial: Trial) -> None:
    """Ten times in a row; then it is given up, until a node changes."""
    host = trial.host()
    images = trial.directory / "bad"
    host.configure(
        qemu={
            "binary": host.program(
                f'case "$*" in *{images}*) exit 1;; esac', 'exec qemu-system-x86_64 "$@"'
            ),
            "start_attempts": _STARTS,
            "backoff": 0.01,
            "backoff_max": 0.16,
        }
    )
    host.start()
    for number in rounds(trial):
        domid = 5 + number
        good = host.disk(domid)
        bad = f"{images}-{domid}.raw"
        host.image(bad, "raw")
        host.store.create(domid)
        host.store.attach(good._replace(nodes={**good.nodes, "params": f"aio:{bad}"}))
        host.state(domid, "failed")
        failed = host.events("qemu.start_failed", domid=domid)
        assert [event["attempt"] for event in failed] == [*range(1, _STARTS + 1)]
        pauses = [min(0.01 * 2**n, 0.16) for n in range(_STARTS - 1)]
        assert [event["pause"] for event in failed] == [*pauses, None]
        assert len(host.events("qemu.failed", domid=domid)) == 1
        assert host.qemus(domid) == []
        assert "exit status 1" in (host.store.read(f"/libxl/{domid}/colo/error") or "")

        def mend(directories: tuple[str, str] = (good.libxl, good.backend)) -> None:
            for directory in directories:
                host.store.write(f"{directory}/params", good.params)  # noqa: B023 - at once

        host.store.together(mend)
        host.published(domid)
        assert host.has_open(domid, good.image)


def stopped(trial: Trial) -> None:
    """SIGSTOP: the daemon says that QEMU does not answer, leaves it alone, and goes on with others."""
    host = trial.host()
    host.configure(qemu={"start_timeout": 0.3})
    host.start()
    _, pid = host.running(5)
    for number in rounds(trial):
        os.kill(pid, signal.SIGSTOP)
        host.kill()
        mark = host.mark()
        host.start()
        host.event("qemu.qmp_lost", since=mark, domid=5)
        until(lambda: host.store.exists("/libxl/5/colo/error"), "it is said")
        host.running(6 + number)
        assert host.qemu(5) == pid
        os.kill(pid, signal.SIGCONT)
        host.event("qemu.qmp_back", since=mark, domid=5)
        assert host.published(5) == pid
        host.store.destroy(6 + number)
    os.kill(pid, signal.SIGSTOP)
    host.configure(qemu={"quit_timeout": 0.2, "term_timeout": 0.2})
    host.signal(signal.SIGHUP)
    host.event("daemon.reloaded")
    host.store.destroy(5)
    until(lambda: not host.qemus(), "one that is stopped is ended all the same")


def secondary_stopped(trial: Trial) -> None:
    """SIGSTOP to a secondary's QEMU: the primary's guest goes on writing, and they find back."""
    a, b = trial.pair()
    for member in (a, b):
        member.set(
            daemon={"settle": 0.3},
            replication={"qmp_timeout": 1.0, "grace": 1.0, "retry_max": 0.3},
            link={"ping_interval": 0.2, "timeout": 1.0},
        )
    replicating(a, b)
    for number in rounds(trial):
        for member in (a, b):
            member.is_("replicating")
        pattern, pid = number % 250 + 1, b.qemu(DOMID)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: not _replicates(a), "the primary has noticed", 20)
        assert a.qemus(DOMID)
        for devid in (XVDA, SDA):
            a.guest.write(devid, pattern, "0", "64k")
        os.kill(pid, signal.SIGCONT)
        b.forget_guest()
        for member in (a, b):
            until(lambda m=member: _replicates(m), "they replicate again", 30)  # type: ignore[misc]
        answer = a.command("checkpoint")
        assert answer.startswith("checkpoint done"), answer
        for devid in (XVDA, SDA):
            assert b.guest.holds(devid, pattern, "0", "64k"), "a write was lost"


def _replicates(host: Host) -> bool:
    return host.store.read(f"/libxl/{DOMID}/colo/state") == "replicating"
