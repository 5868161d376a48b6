"""What the machine runs out of, or takes back: room on disk, descriptors, the time of day."""

import resource
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from tests.daemon.disk_rig import fill, small_disk
from tests.e2e.host import XVDB, Host, until
from tests.e2e.site import DOMID, replicating
from tests.faults.trial import Trial, rounds

_DAY = 86400
#: A limit of descriptors that the daemon has reached as soon as it runs.
_NONE_FREE = 8
_MORE = 100


def _says(host: Host, domid: int, *words: str) -> Callable[[], bool]:
    """Return whether the domain's error says all of this now."""

    def look() -> bool:
        error = host.store.read(f"/libxl/{domid}/colo/error") or ""
        return all(word in error for word in words)

    return look


def no_room_for_state(trial: Trial) -> None:
    """The record of a domain can't be saved: it is not started, and that is said."""
    state = trial.stack.enter_context(small_disk(trial.directory / "state", "64k"))
    host = trial.host()
    host.start()
    for number in rounds(trial):
        filler = fill(state)
        host.domain(5 + number)
        until(_says(host, 5 + number, str(state), "make room"), "the full disk is said")
        assert host.qemus(5 + number) == []
        filler.unlink()
        host.published(5 + number)


def no_room_for_images(trial: Trial) -> None:
    """A secondary's images can't be made: that is said, and it listens when they can."""
    path = trial.stack.enter_context(small_disk(trial.directory / "small", "2m"))
    host = trial.host()
    host.start()
    for number in rounds(trial):
        domid = 5 + number
        active = path / f"{domid}.qcow2"
        filler = fill(path)
        host.domain(domid, role="secondary", active_disk=str(active))
        until(_says(host, domid, str(active)), "the full disk is said")
        assert host.qemus(domid) == []
        filler.unlink()
        host.state(domid, "listening")
        host.store.destroy(domid)
        until(lambda: not host.qemus(), "it ends")
        active.unlink()


def no_room_for_the_log(trial: Trial) -> None:
    """The log is on a full disk: the work goes on, and the log too when there is room."""
    path = trial.stack.enter_context(small_disk(trial.directory / "small", "256k"))
    host = trial.host()
    host.log = path / "events"
    host.start()
    for number in rounds(trial):
        mark, filler = host.mark(), fill(path)
        for domid in range(5, 8):
            host.domain(domid)
            host.published(domid)
        filler.unlink()
        host.barrier()
        assert host.event("log.full", since=mark)["lines"] > 0
        for domid in range(5, 8):
            host.store.destroy(domid)
        until(lambda: not host.qemus(), "they end")
        assert host.alive, f"{number}: {host.stderr()}"


def no_descriptors(trial: Trial) -> None:
    """The daemon may open no file more: what needs one fails, is said, and is done later."""
    host = trial.host()
    host.start()
    _, pid = host.running(5)
    for number in rounds(trial):
        domid, mark = 6 + number, host.mark()
        hard = resource.prlimit(host.pid, resource.RLIMIT_NOFILE)[1]
        few = len([*Path(f"/proc/{host.pid}/fd").iterdir()]) + trial.random.randrange(4)
        # A limit below what is open leaves that open, and nothing can be opened beside it.
        resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (few, hard))
        host.domain(domid)
        host.store.attach(host.disk(domid, "xvdb", XVDB))
        time.sleep(trial.random.uniform(0, 0.3))
        resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (_NONE_FREE, hard))
        host.domain(domid + _MORE)
        until(lambda m=mark: _starved(host, m), "it is said")  # type: ignore[misc]
        time.sleep(trial.random.uniform(0, 0.5))
        assert host.alive, host.stderr()
        resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for one in (domid, domid + _MORE):
            host.published(one)
        assert host.qemu(5) == pid
        assert host.alive, host.stderr()


def _starved(host: Host, mark: int) -> bool:
    events = host.events(since=mark)
    return any("Too many open files" in str(event.get("error")) for event in events)


def clock_set_back(trial: Trial) -> None:
    """The time of day goes back by days: nothing waits for it to come again."""
    library, clock = trial.directory / "clock.so", trial.directory / "clock"
    source = Path(__file__).with_name("clock.c")
    gcc = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*gcc, "-o", str(library), str(source)], check=True)
    a, b = trial.pair()
    for member in (a, b):
        member.set(daemon={"settle": 0.3}, replication={"checkpoint_interval": 0.2})
        member.environment |= {"LD_PRELOAD": str(library), "CLOCK_FILE": str(clock)}
    replicating(a, b)
    number = f"/libxl/{DOMID}/colo/checkpoint"
    for turn in rounds(trial):
        until(lambda: a.store.exists(number), "checkpoints are taken")
        before = int(a.store.read(number) or 0)
        clock.write_text(str(_DAY * (turn + 1)))
        until(lambda n=before: int(a.store.read(number) or 0) >= n + 3, "it goes on")  # type: ignore[misc]
        at = int(a.store.read(f"{number}-time") or 0)
        assert at < time.time() - _DAY * (turn + 0.5), "the clock was not set back"
        a.state(DOMID, "replicating")
        a.domain(10 + turn)
        a.published(10 + turn)
        a.store.destroy(10 + turn)
    stamps = [datetime.fromisoformat(e["timestamp"]) for e in a.events("checkpoint.done")]
    assert stamps[-1] < stamps[0] - timedelta(days=0.5)
    assert b.alive
