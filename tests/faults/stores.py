"""xenstored is killed and comes back, empty or full, at random moments under load."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.e2e.host import Disk, Host, until
from tests.e2e.site import DOMID, UUID, Member, replicating
from tests.faults.load import Load
from tests.faults.trial import Trial, rounds
from tests.rigs import Server, start_oxenstored, start_xenstored

_FIRST, _COUNT = 5, 3
_ROLES = ("primary", "secondary", None)


class Guest(NamedTuple):
    """A domain of the model: what xenstore is filled with."""

    disk: Disk
    identity: str
    role: str | None

    def write(self, host: Host) -> None:
        """Write it as the toolstack does."""
        host.store.create(self.disk.domid, identity=self.identity)
        host.store.attach(self.disk, role=self.role)


def make(host: Host, domid: int, role: str | None, life: int = 0) -> Guest:
    """Return a domain; each life of a domid has a uuid of its own."""
    disk = host.disk(domid, make=not (host.directory / f"d{domid}-xvda.raw").exists())
    return Guest(disk, f"{domid:08x}-0000-4000-8000-{life:012x}", role)


def _killed(
    trial: Trial, *, empty: bool, start: Callable[[Path], Server] = start_xenstored
) -> None:
    rng, server = trial.random, trial.server(start)
    host = trial.host(server)
    host.start()
    guests = {d: make(host, d, _ROLES[d % 3]) for d in range(_FIRST, _FIRST + _COUNT)}
    for guest in guests.values():
        guest.write(host)
    pids = {domid: host.published(domid) for domid in guests}
    paths = [f"{guest.disk.backend}/hotplug-status" for guest in guests.values()]
    extra = _FIRST + _COUNT
    with Load(server.socket, paths) as load:
        for number in rounds(trial):
            load.go_on()
            # One domain more is on its way, or has just come, when it happens.
            guests[extra] = make(host, extra, rng.choice(_ROLES), number)
            guests[extra].write(host)
            time.sleep(rng.uniform(0, 0.4))
            known = set(host.qemus())
            _lose(host, server, load)
            if empty:
                time.sleep(rng.uniform(0, 1))
                assert known <= set(host.qemus()), "a QEMU was ended for an empty store"
            for guest in rng.sample([*guests.values()], len(guests)):
                guest.write(host)
                time.sleep(rng.choice([0, 0.05]))
            now = {domid: host.published(domid) for domid in guests}
            assert {d: now[d] for d in pids} == pids, "a QEMU was replaced"
            assert host.qemus() == sorted(now.values()), "a QEMU was doubled"
            # What is seen again is believed again.
            host.store.destroy(extra)
            del guests[extra]
            until(lambda: host.qemus() == sorted(pids.values()), "the last domain's QEMU ends")
    assert not host.events("qemu.died")
    assert host.alive


def _lose(host: Host, server: Server, load: Load) -> None:
    load.hold()
    host.leave_store()
    server.restart()


def killed_full(trial: Trial) -> None:
    """It is filled again at once, by whoever is quicker: the daemon or the toolstack."""
    _killed(trial, empty=False)


def killed_empty(trial: Trial) -> None:
    """It stays empty for a while: no news."""
    _killed(trial, empty=True)


def oxenstored_killed(trial: Trial) -> None:
    """oxenstored, which stays empty for a while."""
    _killed(trial, empty=True, start=start_oxenstored)


def killed_replicating(trial: Trial) -> None:
    """The store of either host of a replicating pair: the session goes on without it, and after it."""
    rng = trial.random
    a, b = trial.pair()
    for member in (a, b):
        member.set(daemon={"settle": 0.3})
    replicating(a, b)
    before = [_session(member) for member in (a, b)]
    for number in rounds(trial):
        lost = [member for member in (a, b) if rng.random() < 0.5] or [rng.choice((a, b))]
        for member in lost:
            member.leave_store()
            member.server.restart()
        time.sleep(rng.uniform(0, 0.5))
        pattern = number % 250 + 1
        for disk in a.disks:
            a.guest.write(disk.devid, pattern, "0", "64k")
        for member in lost:
            _fill(member, "secondary" if member is b else None)
        for member in (a, b):
            member.is_("replicating")
        assert [_session(member) for member in (a, b)] == before, "a session was begun anew"
        answer = a.command("checkpoint")
        assert answer.startswith("checkpoint done"), answer
        for disk in b.disks:
            assert b.guest.holds(disk.devid, pattern, "0", "64k"), "a write was lost"


def _session(member: Member) -> tuple[int, str | None]:
    return member.qemu(DOMID), member.store.read(f"/libxl/{DOMID}/colo/session")


def _fill(member: Member, role: str | None) -> None:
    member.store.create(DOMID, identity=UUID)
    for disk in member.disks:
        member.store.attach(disk, role=role)
