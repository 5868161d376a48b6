"""The store below a replicating pair is lost, or the domain in it comes anew: QEMUs and session go on."""

import pytest

from tests.e2e.host import SDA, XVDA, until
from tests.e2e.site import COLO, DOMID, UUID, Member, replicating


def lose_store(*members: Member) -> None:
    """Kill xenstored, and start it again, empty."""
    for member in members:
        member.leave_store()
        member.server.restart()


def fill(member: Member, role: str | None) -> None:
    """Write the domain as its toolstack does."""
    member.store.create(DOMID, identity=UUID)
    for disk in member.disks:
        member.store.attach(disk, role=role)


def goes_on(two: list[Member], qemus: list[int], session: str | None) -> None:
    """Check that nothing began anew, and that it still replicates."""
    a, b = two
    for member in two:
        member.is_("replicating")
        until(lambda m=member: m.colo("session") == session, "the session is published")  # type: ignore[misc]
        member.counts(1)
    assert [member.qemu(DOMID) for member in two] == qemus
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x22, "256k", "256k")
    assert a.command("checkpoint") == "checkpoint done number 2"
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x11, "0", "256k")
        assert b.guest.holds(devid, 0x22, "256k", "256k")


def begun(two: list[Member]) -> tuple[list[int], str | None]:
    """Bring up a pair, with data and a checkpoint; return its QEMUs and session."""
    a, b = two
    replicating(a, b)
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "0", "256k")
    assert a.command("checkpoint") == "checkpoint done number 1"
    for member in two:
        member.counts(1)
    return [member.qemu(DOMID) for member in two], a.colo("session")


@pytest.mark.parametrize("whose", ["the primary's", "the secondary's", "both"])
@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
def test_xenstored_is_restarted(two: list[Member], whose: str, full: bool) -> None:
    """Full: with all that was in it, as from a copy, before the daemon has seen that it was gone."""
    a, b = two
    qemus, session = begun(two)
    lost = {"the primary's": [a], "the secondary's": [b], "both": two}[whose]
    said = {member: member.store.tree(COLO) for member in lost}
    marks = {member: member.mark() for member in lost}
    lose_store(*lost)
    for member in lost:
        if not full:
            member.event("xenstore.empty", since=marks[member])
            member.store.write("/local/domain/0/domid", "0")  # a look that finds nothing else
        fill(member, "secondary" if member is b else None)
        if full:
            for path, value in said[member].items():
                member.store.write(path, value)
    goes_on(two, qemus, session)


def test_its_role_comes_later_than_its_disks(two: list[Member]) -> None:
    b = two[1]
    qemus, session = begun(two)
    lose_store(b)
    fill(b, None)
    b.says("set its role to secondary")
    b.store.write(f"{COLO}/role", "secondary")
    goes_on(two, qemus, session)


def test_the_primary_is_lost_while_there_is_no_store(two: list[Member]) -> None:
    a, b = two
    b.set(replication={"grace": 0.3})
    begun(two)
    a.guest.write(XVDA, 0x33, "0", "512k")
    lose_store(b)
    a.lose()
    b.event("checkpoint.settled")
    b.lose()
    b.start()
    fill(b, "secondary")
    b.is_("listening")
    assert b.command("failover") == "failover done generation 2"
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x11, "0", "256k")
        assert b.guest.holds(devid, 0, "256k", "768k")


def create_again(member: Member, role: str | None) -> None:
    """Destroy the domain, and create one of its uuid and domid, before anybody looks."""

    def change() -> None:
        member.store.destroy(DOMID)
        fill(member, role)

    member.store.together(change)


@pytest.mark.parametrize("primary", [True, False], ids=["primary", "secondary"])
def test_the_domain_comes_anew_within_one_look(two: list[Member], primary: bool) -> None:
    a, b = two
    qemus, session = begun(two)
    create_again(a if primary else b, None if primary else "secondary")
    goes_on(two, qemus, session)


def test_a_secondary_comes_anew_as_a_primary_within_one_look(two: list[Member]) -> None:
    b = two[1]
    qemus, session = begun(two)
    create_again(b, None)
    b.says("set its role to secondary")
    assert b.colo("state") == "replicating"
    b.store.write(f"{COLO}/role", "secondary")
    goes_on(two, qemus, session)
