"""xenstored says no: conflicts without end, and quotas that are used up."""

from collections.abc import Callable
from pathlib import Path

from tests.attack.guest import guest
from tests.e2e.host import Host, until
from tests.faults.load import Load
from tests.faults.trial import Trial, rounds
from tests.rigs import Server, start_oxenstored, start_xenstored
from xencolo.wire import Op

#: More nodes than the quota of either server allows a guest.
_NODES = 2000


def conflicts(trial: Trial) -> None:
    """Somebody changes what the daemon's transaction reads, all the time."""
    server = trial.server()
    host = trial.host(server)
    host.start()
    _, pid = host.running(5)
    for number in rounds(trial):
        domid, mark = 6 + number, host.mark()
        host.store.create(domid)
        # Each of its transactions reads where it publishes; so does each of these change it.
        with Load(server.socket, [f"/local/domain/{domid}/vm"], pause=0, value=_vm(host, domid)):
            host.store.attach(host.disk(domid))
            until(lambda d=domid, m=mark: _tried(host, d, m), "it has tried")  # type: ignore[misc]
            assert host.alive
            assert host.qemu(5) == pid
            other = 100 + number
            host.domain(other)
            host.published(other)  # others are not kept waiting
        host.published(domid)
        for one in (domid, other):
            host.store.destroy(one)


def _tried(host: Host, domid: int, mark: int) -> bool:
    """Tell whether it gave a transaction up, or found a gap in which one went through."""
    failed = host.events("xenstore.failed", since=mark, domid=domid)
    return bool(failed) or host.calm(domid)


def _vm(host: Host, domid: int) -> str:
    return host.store.read(f"/local/domain/{domid}/vm") or ""


def _full_guest(start: Callable[[Path], Server], trial: Trial) -> None:
    server = trial.server(start)
    host = trial.host(server)
    host.start()
    for number in rounds(trial):
        domid = 5 + number
        host.store.create(domid)
        host.store.write(f"/local/domain/{domid}/data", "")
        host.store.permit(f"/local/domain/{domid}/data", f"n{domid}")
        with guest(host.store, server, domid) as theirs:
            answers = (theirs.write(f"data/{n}", "x") for n in range(_NODES))
            assert next(a for a in answers if a != "OK") in {"ENOSPC", "EQUOTA", "EDQUOT"}
            _attach_what_goes(host, domid)
            host.domain(domid + 100)
            host.published(domid + 100)
            theirs.ask(Op.RM, "data")
        host.published(domid)


def _attach_what_goes(host: Host, domid: int) -> None:
    """Attach a disk; the frontend, which is the guest's, may be refused, and comes later then."""
    disk = host.disk(domid)
    host.store.attach(disk)


def guest_full_xenstored(trial: Trial) -> None:
    """A guest has used up its quota of nodes on the C xenstored; dom0's disks go on."""
    _full_guest(start_xenstored, trial)


def guest_full_oxenstored(trial: Trial) -> None:
    """The same on oxenstored."""
    _full_guest(start_oxenstored, trial)
