"""What is seen of a QEMU and heard of a peer, as events of the table of :mod:`xencolo.replication`.

Pure, as the table is: :mod:`xencolod` looks and listens, and asks here what it means.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Literal

from xencolo.disk import Role
from xencolo.link import Hello, Welcome
from xencolo.record import Record
from xencolo.replication import Event, Place
from xencolo.status import DomainState as State


class Attachment(Enum):
    """How far a primary's disks are attached to their secondary."""

    CLEAN = "clean"
    PARTIAL = "partial"
    ATTACHED = "attached"


class Service(Enum):
    """What a secondary's disks are doing.

    PARTIAL: some disks are exported and some not. SPENT: the replication of a disk ran and was stopped, by
    failover or not, or was started for some disks only; this QEMU starts none again.
    """

    FRESH = "fresh"
    PARTIAL = "partial"
    SERVING = "serving"
    REPLICATING = "replicating"
    SPENT = "spent"


_FOUND: Mapping[Attachment | Service, Event] = {
    Attachment.CLEAN: Event.CLEAN,
    Attachment.PARTIAL: Event.PARTIAL,
    Attachment.ATTACHED: Event.ATTACHED,
    Service.FRESH: Event.CLEAN,
    Service.PARTIAL: Event.PARTIAL,
    Service.SERVING: Event.SERVING,
    Service.REPLICATING: Event.IN_SESSION,
    Service.SPENT: Event.SPENT,
}


def is_superseded(record: Record) -> bool:
    """Return whether a primary's disks are stale: another host was promoted since, or they lack a write."""
    stale = record.superseded_by is not None or record.spoiled
    return record.role is Role.PRIMARY and stale


def supersedes(generation: int, record: Record) -> bool:
    """Return whether a primary of this generation supersedes this host, and for the first time."""
    return record.generation < generation and record.superseded_by != generation


def rejection(record: Record, generation: int) -> Literal["generation", "state"] | None:
    """Return the kind of refusal for a primary of this generation that says hello, None if it is welcome.

    A failover that has begun counts as done: it will be.
    """
    if generation < record.generation or record.unfinished:
        return "generation"
    return "state" if record.role is Role.PRIMARY else None


def is_stranger(record: Record, hello: Hello) -> bool:
    """Return whether a primary is not the one whose checkpoint a secondary holds: it has never replicated.

    So it is where a lost host was built anew, with the nodes of before and empty disks.
    """
    return record.in_sync and not hello.diverged


def forbidden(record: Record | None) -> Event:
    """Return the event of a domain that may not replicate; the guest of a superseded one stands still."""
    return Event.SUPERSEDED if record and is_superseded(record) else Event.REFUSED


def found(record: Record, seen: Attachment | Service, *, refused: bool) -> Event:
    """Return what it means that a QEMU was found like this.

    :param seen: as what the record says that the domain is, a primary or a secondary.
    :param refused: the nodes forbid to replicate.
    """
    if record.unfinished:
        return Event.UNFINISHED
    if refused or is_superseded(record):
        return forbidden(record)
    if seen is Attachment.ATTACHED and record.detached:
        return Event.PARTIAL  # the command to detach was broken off
    if seen is Attachment.CLEAN and record.promoted and not record.peer:
        return Event.TAKEN_OVER
    return _FOUND[seen]


def met(session: str | None, welcome: Welcome, *, equal: bool) -> Event:
    """Return what a primary makes of its secondary's welcome.

    :param session: that the primary's QEMU is in.
    :param equal: somebody said that the disks of both hosts are equal.
    """
    same = session is not None and session == welcome.session
    if same and welcome.state == State.REPLICATING:
        return Event.PEER_AGREES
    return Event.PEER_EQUAL if equal else Event.PEER_READY


def is_moot(place: Place, event: Event) -> bool:
    """Return whether an event is about what is over by the time that its turn has come.

    It asks for a new beginning that has come already, tells a secondary whose QEMU has ended meanwhile
    that its primary has gone too, or is about a primary's disk that has no second copy: its guest was told.
    """
    if event is Event.DISK_FAILED:
        return place not in _ATTACHED
    if event in {Event.ACCEPTED, Event.RETRY}:
        return place.state is not State.FAILED
    return place == _BEGINNING and event in {Event.PEER_LOST, Event.PEER_SILENT}


def still(event: Event, record: Record | None) -> Event:
    """Return what an event means to a primary when its turn has come: it may have been superseded since."""
    return forbidden(record) if event is Event.REFUSED else event


def may_agree(place: Place, record: Record, session: str | None, theirs: str | None) -> bool:
    """Return whether a secondary may go on with the session that its primary names.

    Not once its disks were written to past it: they hold no checkpoint then, and get none in this session.
    """
    same = session is not None and session == theirs
    return same and record.in_sync and place in {_IN_FORCE, _SUSPENDED}


def minds_bypass(place: Place, record: Record | None, *, session: bool, linked: bool) -> bool:
    """Return whether a write past QEMU matters: where disks are replicated, or about to be.

    :param session: this side is in one: suspended, it must not go on after such a write.
    :param linked: a primary speaks to this secondary, and may be copying its disks.
    """
    role, state = place
    if role is Role.PRIMARY:
        return state in _WRITES or (state is State.DEGRADED and session)
    if state is State.LISTENING and linked:
        return True
    return record is not None and record.in_sync and state is not State.FAILING_OVER


def is_prepared(place: Place) -> bool:
    """Return whether a secondary that took a `Prepare` can be resynced at once."""
    return place == Place(Role.SECONDARY, State.LISTENING)


def needs_fencing(place: Place, event: Event) -> bool:
    """Return whether it is for the fencing command now: a secondary whose primary was lost, and only then.

    :param place: where the event has led.
    """
    return place == _SUSPENDED and event in _MISSED


def hangs_up(event: Event) -> bool:
    """Return whether a secondary hangs up at an event, before anything is done that may fail.

    Its session has ended, or may have, and its primary can't see that before the next write or checkpoint.
    """
    return event in _BY_ITSELF


#: States of a primary that writes, or is about to write, to a secondary.
_WRITES = {State.STANDALONE, State.PROMOTED, State.RESYNCING, State.REPLICATING}
_IN_FORCE = Place(Role.SECONDARY, State.REPLICATING)
_BEGINNING = Place(Role.SECONDARY, State.LAUNCHING)
_SUSPENDED = Place(Role.SECONDARY, State.DEGRADED)
#: Where a secondary may have what its primary's own disk lacks.
_ATTACHED = {Place(Role.PRIMARY, State.REPLICATING), Place(Role.PRIMARY, State.DEGRADED)}
# A secondary that was found in a session does not know whether its primary lives.
_MISSED = {Event.PEER_LOST, Event.PEER_SILENT, Event.IN_SESSION}
_BY_ITSELF = {
    *(Event.QEMU_GONE, Event.QEMU_ERROR, Event.REFUSED, Event.BYPASSED),
    *(Event.FAILOVER, Event.FORCE_FAILOVER, Event.FENCED, Event.ABANDONED),
}
