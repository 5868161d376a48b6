"""The daemon is killed at random moments under load; what it looked after goes on."""

import time

from tests.e2e.host import SDA, XVDA, Host, until
from tests.e2e.site import DOMID, Member, replicating
from tests.faults.load import Load
from tests.faults.stores import make
from tests.faults.trial import Trial, rounds

_DEVIDS = (XVDA, SDA)


def killed(trial: Trial) -> None:
    """Both daemons of a replicating pair, which launch and end other domains meanwhile."""
    rng = trial.random
    a, b = trial.pair()
    for member in (a, b):
        member.set(daemon={"settle": 0.3}, replication={"grace": 60.0, "retry_max": 0.3})
    replicating(a, b)
    pids = {member: _replicating(member) for member in (a, b)}
    for member in (a, b):
        assert member.guest  # connected now, as the next QEMU's monitor has the same path
    session = a.store.read(f"/libxl/{DOMID}/colo/session")
    loads = [Load(m.store.path, [f"{d.backend}/hotplug-status" for d in m.disks]) for m in (a, b)]
    with loads[0], loads[1]:
        for number in rounds(trial):
            member = rng.choice((a, b))
            other = 6 + number % 2
            _change(member, other, number)
            if rng.random() < 0.3:
                member.store.write(f"/libxl/{DOMID}/colo/command", "checkpoint")
            _kill(member, rng.uniform(0, 0.3))
            while rng.random() < 0.25:  # at its start too
                member.start(ready=False)
                _kill(member, rng.uniform(0, 0.8))
            member.start()
            _settled(member, other)
            for one in (a, b):
                assert _replicating(one) == pids[one], "the replicating QEMU was replaced"
            assert a.store.read(f"/libxl/{DOMID}/colo/session") == session
            if number % 5 == 0:
                _prove(a, b, number % 250 + 1)


def _replicating(member: Member) -> int:
    member.is_("replicating")
    return member.qemu(DOMID)


def _kill(member: Member, after: float) -> None:
    time.sleep(after)
    member.kill()


def _change(host: Host, domid: int, number: int) -> None:
    """Create the domain, or destroy it if it is there."""
    if host.store.exists(f"/local/domain/{domid}"):
        host.store.destroy(domid)
    else:
        make(host, domid, None, number).write(host)


def _settled(host: Host, domid: int) -> None:
    if host.store.exists(f"/local/domain/{domid}"):
        host.published(domid)
    else:
        until(lambda: not host.qemus(domid), f"the QEMU of domain {domid} ends")


def _prove(a: Member, b: Member, pattern: int) -> None:
    """Prove that what the guest writes reaches the other side with a checkpoint."""
    for devid in _DEVIDS:
        a.guest.write(devid, pattern, "0", "256k")
    answer = a.command("checkpoint")
    assert answer.startswith("checkpoint done"), answer
    for devid in _DEVIDS:
        assert b.guest.holds(devid, pattern, "0", "256k"), "a write was lost"
