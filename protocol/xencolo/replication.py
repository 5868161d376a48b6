"""The life of a replicated disk as a table: (role, state, event) → what is done, and the state after it.

Everything that decides about replication stands in this file; :mod:`xencolod.replicator` observes, asks
this table, and does what it says. A key that the table does not have is an event that the state does
not expect: :func:`step` raises, and it is logged. Nothing here knows time, QMP or the network.

All COLO disks of a domain are one consistency group, so there is one state for a domain. Sources: QEMU's
``docs/block-replication.txt`` and ``docs/COLO-FT.txt``. Two rules that the table has to keep, and that
the tests walk it for: QEMU's replication is never stopped on a secondary that is to take over other than
with ``failover: true``, which :attr:`Action.FAILOVER` is; and :attr:`Action.ATTACH` comes only after
:attr:`Action.DETACH` in the same life of a QEMU, so that no stale node stands in its way.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from xencolo.disk import Role
from xencolo.errors import UnexpectedEvent
from xencolo.status import DomainState as State


class Event(StrEnum):
    """What may happen to a domain's replication."""

    # -- what QEMU was found to be, when it greeted or was found running
    CLEAN = "clean"
    ATTACHED = "attached"
    PARTIAL = "partial"
    SERVING = "serving"
    IN_SESSION = "in-session"
    SPENT = "spent"
    UNFINISHED = "unfinished"
    TAKEN_OVER = "taken-over"
    QEMU_GONE = "qemu-gone"
    QEMU_ERROR = "qemu-error"
    DISK_FAILED = "disk-failed"
    # -- from the peer
    PEER_READY = "peer-ready"
    PEER_EQUAL = "peer-equal"
    PEER_AGREES = "peer-agrees"
    PEER_LOST = "peer-lost"
    PEER_SILENT = "peer-silent"
    ABANDONED = "abandoned"
    PEER_PREPARES = "peer-prepares"
    PEER_STARTS = "peer-starts"
    PEER_CHECKPOINTS = "peer-checkpoints"
    PEER_DETACHES = "peer-detaches"
    SUPERSEDED = "superseded"
    # -- from the operator, or the configuration in the operator's name
    CHECKPOINT = "checkpoint"
    DETACH = "detach"
    FAILOVER = "failover"
    FORCE_FAILOVER = "force-failover"
    FENCED = "fenced"
    # -- from the nodes
    REFUSED = "refused"
    BYPASSED = "bypassed"
    ACCEPTED = "accepted"
    # -- from what was done
    MIRRORED = "mirrored"
    ACTION_FAILED = "action-failed"
    TORN = "torn"
    RETRY = "retry"


class Action(StrEnum):
    """What is done to this side's QEMU, this side's record, or asked of the peer."""

    # -- both roles
    PAUSE = "pause the guest"
    RESUME = "resume the guest that was paused"
    MARK = "mark QEMU with the session and its last checkpoint"
    CHECK = "read QEMU's replication status"
    CHECKPOINT = "take the checkpoint in QEMU"
    # -- primary
    PREPARE_PEER = "ask the peer to prepare"
    CONNECT = "add the NBD nodes"
    MIRROR = "start the mirror jobs"
    FINISH_MIRROR = "end the mirror jobs"
    START_PEER = "ask the peer to start replication"
    ATTACH = "attach the replication nodes"
    CHECKPOINT_PEER = "ask the peer for the checkpoint"
    RELEASE_PEER = "tell the peer that it is detached"
    DETACH = "cut the NBD connections, detach and delete the nodes"
    # -- secondary
    SERVE = "export the disks"
    UNSERVE = "take the exports down"
    START = "start replication"
    RENEW = "start QEMU anew"
    RECORD_STALE = "record that the disks are being overwritten"
    RECORD_IN_SYNC = "record that the disks hold a checkpoint"
    RECORD_SETTLED = "record that the checkpoint is on disk, and that nobody writes to it any more"
    RECORD_SUPERSEDED = "record why this host may not be the primary any more"
    RECORD_FAILOVER = "record the failover and its generation"
    FAILOVER = "stop replication with failover"
    AWAIT_COMMIT = "wait until active and hidden are committed"
    FLUSH = "flush every node"
    RECORD_PROMOTED = "record the promotion"


class Place(NamedTuple):
    """Where a domain is: its role in force and its state."""

    role: Role
    state: State


class Step(NamedTuple):
    """A row's right side.

    :ivar during: the state that is shown while the actions are performed.
    :ivar actions: in their order; the first that fails ends them, and :attr:`Event.ACTION_FAILED` comes
        in ``during``.
    :ivar then: the place after the last of them.
    """

    during: State
    actions: tuple[Action, ...]
    then: Place


Key = tuple[Role, State, Event]

_A, _E, _S = Action, Event, State
_P, _Q = Role.PRIMARY, Role.SECONDARY

_SWITCH = (_A.START_PEER, _A.ATTACH, _A.MARK, _A.RESUME)
_RESYNC = (_A.DETACH, _A.PREPARE_PEER, _A.CONNECT, _A.MIRROR)
_TRUST = (_A.DETACH, _A.PREPARE_PEER, _A.CONNECT, _A.PAUSE, *_SWITCH)
# The guest stands until the promotion is recorded: what it wrote between QEMU's commit and the record would
# be overwritten, were the chain made whole once more after a crash of the host in between.
_TAKE_OVER = (
    *(_A.PAUSE, _A.FAILOVER, _A.AWAIT_COMMIT, _A.FLUSH),
    *(_A.RECORD_PROMOTED, _A.RESUME),
)
# From the record on, the chain on disk is what counts: nobody writes to it any more, and it is flushed.
_RECORDED = (_A.UNSERVE, _A.PAUSE, _A.FLUSH, _A.RECORD_FAILOVER)
_CLEAN_UP = (_A.DETACH, _A.RESUME)
# Paused first: the guest must not run on where nothing can be recorded.
_FENCE_OFF = (_A.DETACH, _A.PAUSE, _A.RECORD_SUPERSEDED)


def _row(
    role: Role,
    state: State,
    event: Event,
    *actions: Action,
    then: State,
    during: State | None = None,
    as_role: Role | None = None,
) -> tuple[Key, Step]:
    return (role, state, event), Step(during or state, actions, Place(as_role or role, then))


def _primary_alone(state: State) -> Iterator[tuple[Key, Step]]:
    """Yield what a primary without a secondary does: it reaches for one."""
    yield _row(_P, state, _E.PEER_READY, *_RESYNC, during=_S.RESYNCING, then=_S.RESYNCING)
    yield _row(_P, state, _E.PEER_EQUAL, *_TRUST, during=_S.RESYNCING, then=_S.REPLICATING)
    yield _row(_P, state, _E.PEER_LOST, then=state)
    # Its data connection may hang with it, and the guest's writes with that.
    yield _row(_P, state, _E.PEER_SILENT, *_CLEAN_UP, then=state)
    yield _row(_P, state, _E.DETACH, *_CLEAN_UP, then=_S.STANDALONE)
    yield _row(_P, state, _E.BYPASSED, *_CLEAN_UP, during=_S.DEGRADED, then=_S.DEGRADED)


def _anywhere(role: Role, state: State) -> Iterator[tuple[Key, Step]]:
    """Yield what may happen in every state of a role."""
    yield _row(role, state, _E.QEMU_GONE, then=_S.LAUNCHING)
    if state is _S.FAILING_OVER:
        return  # only in the middle of a step: what else happens finds what the step has led to
    if role is _P:
        # Failed from the start: an action that fails must lead to no state that lets the guest run on.
        yield _row(_P, state, _E.SUPERSEDED, *_FENCE_OFF, during=_S.FAILED, then=_S.FAILED)
        yield _row(_P, state, _E.REFUSED, *_CLEAN_UP, during=_S.FAILED, then=_S.FAILED)
    else:
        yield _row(_Q, state, _E.REFUSED, then=_S.FAILED)


_PRIMARY_STATES = (
    *(_S.LAUNCHING, _S.STANDALONE, _S.RESYNCING, _S.REPLICATING),
    *(_S.DEGRADED, _S.FAILED, _S.PROMOTED),
)
_SECONDARY_STATES = (
    *(_S.LAUNCHING, _S.LISTENING, _S.REPLICATING, _S.DEGRADED, _S.FAILING_OVER, _S.FAILED),
)


def _rows() -> Iterator[tuple[Key, Step]]:
    for state in _PRIMARY_STATES:
        yield from _anywhere(_P, state)
    for state in _SECONDARY_STATES:
        yield from _anywhere(_Q, state)
    yield from _primary_rows()
    yield from _secondary_rows()


def _primary_rows() -> Iterator[tuple[Key, Step]]:
    yield _row(_P, _S.LAUNCHING, _E.CLEAN, _A.RESUME, then=_S.STANDALONE)
    yield _row(_P, _S.LAUNCHING, _E.TAKEN_OVER, _A.RESUME, then=_S.PROMOTED)
    yield _row(_P, _S.LAUNCHING, _E.PARTIAL, *_CLEAN_UP, then=_S.DEGRADED)
    # It may be replicating still: the peer has to say so first.
    yield _row(_P, _S.LAUNCHING, _E.ATTACHED, _A.RESUME, then=_S.DEGRADED)
    yield _row(_P, _S.LAUNCHING, _E.QEMU_ERROR, then=_S.FAILED)
    yield _row(_P, _S.LAUNCHING, _E.ACTION_FAILED, then=_S.FAILED)

    for state in (_S.STANDALONE, _S.DEGRADED, _S.PROMOTED):
        yield from _primary_alone(state)
    for state in (_S.STANDALONE, _S.PROMOTED):
        yield _row(_P, state, _E.ACTION_FAILED, then=_S.FAILED)
    # The guest's writes may hang in the connection to a secondary whose QEMU hangs, and QEMU with them.
    yield _row(_P, _S.DEGRADED, _E.ACTION_FAILED, *_CLEAN_UP, during=_S.FAILED, then=_S.DEGRADED)
    # A write may have failed meanwhile.
    yield _row(_P, _S.DEGRADED, _E.PEER_AGREES, _A.CHECK, then=_S.REPLICATING)

    yield _row(
        *(_P, _S.RESYNCING, _E.MIRRORED, _A.PAUSE, _A.FINISH_MIRROR, *_SWITCH), then=_S.REPLICATING
    )
    for event in (_E.ACTION_FAILED, _E.QEMU_ERROR, _E.PEER_LOST, _E.PEER_SILENT, _E.BYPASSED):
        yield _row(_P, _S.RESYNCING, event, *_CLEAN_UP, during=_S.DEGRADED, then=_S.DEGRADED)
    yield _row(_P, _S.RESYNCING, _E.DETACH, *_CLEAN_UP, during=_S.DEGRADED, then=_S.STANDALONE)

    yield _row(
        *(_P, _S.REPLICATING, _E.CHECKPOINT, _A.PAUSE, _A.CHECK),
        *(_A.CHECKPOINT_PEER, _A.CHECKPOINT, _A.RESUME, _A.MARK),
        then=_S.REPLICATING,
    )
    # It may come in the middle of a checkpoint that the peer was not asked for yet, with the guest paused.
    yield _row(_P, _S.REPLICATING, _E.PEER_LOST, _A.RESUME, during=_S.DEGRADED, then=_S.DEGRADED)
    for event in (_E.ACTION_FAILED, _E.QEMU_ERROR, _E.PEER_SILENT, _E.BYPASSED):
        yield _row(_P, _S.REPLICATING, event, *_CLEAN_UP, during=_S.DEGRADED, then=_S.DEGRADED)
    yield _row(
        *(_P, _S.REPLICATING, _E.DETACH, _A.DETACH, _A.RESUME, _A.RELEASE_PEER),
        during=_S.DEGRADED,
        then=_S.STANDALONE,
    )

    # One copy suffices for the quorum: a write that the own disk refuses the guest counts as done, and reads
    # back what was there before. The secondary has it, and gets the rest if it can.
    last = (_A.PAUSE, _A.CHECK, _A.CHECKPOINT_PEER, _A.CHECKPOINT)
    for state, first in ((_S.REPLICATING, last), (_S.DEGRADED, ())):
        yield _row(
            *(_P, state, _E.DISK_FAILED, *first, *_FENCE_OFF), during=_S.FAILED, then=_S.FAILED
        )

    for event in (_E.PEER_LOST, _E.PEER_SILENT):
        yield _row(_P, _S.LAUNCHING, event, then=_S.LAUNCHING)
    # It was so where it was seen; where it matters it is seen again.
    for state in (_S.LAUNCHING, _S.FAILED):
        yield _row(_P, state, _E.BYPASSED, then=state)
    for event in (_E.ACCEPTED, _E.RETRY):
        yield _row(_P, _S.FAILED, event, then=_S.LAUNCHING)
    for event in (_E.ACTION_FAILED, _E.PEER_LOST, _E.PEER_SILENT):
        yield _row(_P, _S.FAILED, event, then=_S.FAILED)


def _secondary_rows() -> Iterator[tuple[Key, Step]]:
    yield _row(_Q, _S.LAUNCHING, _E.CLEAN, _A.RESUME, _A.SERVE, then=_S.LISTENING)
    yield _row(_Q, _S.LAUNCHING, _E.PARTIAL, _A.UNSERVE, _A.SERVE, then=_S.LISTENING)
    yield _row(_Q, _S.LAUNCHING, _E.SERVING, then=_S.LISTENING)
    # It may be replicating still: the primary has to say so first.
    yield _row(_Q, _S.LAUNCHING, _E.IN_SESSION, _A.RESUME, then=_S.DEGRADED)
    yield _row(_Q, _S.LAUNCHING, _E.SPENT, _A.RENEW, then=_S.LAUNCHING)
    yield _row(
        *(_Q, _S.LAUNCHING, _E.UNFINISHED, *_TAKE_OVER),
        during=_S.FAILING_OVER,
        then=_S.PROMOTED,
        as_role=_P,
    )
    for event in (_E.QEMU_ERROR, _E.ACTION_FAILED):
        yield _row(_Q, _S.LAUNCHING, event, then=_S.FAILED)

    # Served anew: with the keys and at the port that the primary is told, and to nobody who was here before.
    yield _row(
        *(_Q, _S.LISTENING, _E.PEER_PREPARES, _A.RECORD_STALE, _A.UNSERVE, _A.SERVE),
        then=_S.LISTENING,
    )
    yield _row(
        *(_Q, _S.LISTENING, _E.PEER_STARTS, _A.START, _A.MARK, _A.RECORD_IN_SYNC),
        then=_S.REPLICATING,
    )
    yield _row(_Q, _S.LISTENING, _E.PEER_DETACHES, then=_S.LISTENING)
    # Replication that never ran leaves QEMU's node refusing all I/O: it is started, then stopped. It is
    # recorded after that: what is unfinished is finished by a failover, which needs it started.
    for event in (_E.FAILOVER, _E.FORCE_FAILOVER):
        yield _row(
            *(_Q, _S.LISTENING, event, _A.START, *_RECORDED, *_TAKE_OVER),
            during=_S.FAILING_OVER,
            then=_S.PROMOTED,
            as_role=_P,
        )
    for event in (_E.PEER_LOST, _E.PEER_SILENT):
        yield _row(_Q, _S.LISTENING, event, then=_S.LISTENING)
        yield _row(_Q, _S.REPLICATING, event, then=_S.DEGRADED)
        yield _row(_Q, _S.DEGRADED, event, then=_S.DEGRADED)
        yield _row(_Q, _S.FAILED, event, then=_S.FAILED)
    yield _row(_Q, _S.LISTENING, _E.ACTION_FAILED, then=_S.FAILED)

    yield _row(
        *(_Q, _S.REPLICATING, _E.PEER_CHECKPOINTS, _A.CHECK, _A.CHECKPOINT, _A.MARK),
        then=_S.REPLICATING,
    )
    yield _row(_Q, _S.REPLICATING, _E.PEER_AGREES, then=_S.REPLICATING)
    for event in (_E.ACTION_FAILED, _E.QEMU_ERROR):
        yield _row(_Q, _S.REPLICATING, event, then=_S.DEGRADED)
    # Its own guest has written into the secondary disk itself: what was the checkpoint there is none now.
    yield _row(
        *(_Q, _S.REPLICATING, _E.BYPASSED, _A.RECORD_STALE), during=_S.DEGRADED, then=_S.DEGRADED
    )
    # Some disks may have taken what others refused: together they hold neither this checkpoint nor the last.
    yield _row(
        *(_Q, _S.REPLICATING, _E.TORN, _A.RECORD_STALE), during=_S.DEGRADED, then=_S.DEGRADED
    )
    # Where it listens it hangs up, which ends the copying that its guest has written into.
    for state in (_S.LAUNCHING, _S.LISTENING, _S.DEGRADED, _S.FAILED):
        yield _row(_Q, state, _E.BYPASSED, _A.RECORD_STALE, then=state)
    yield _row(_Q, _S.DEGRADED, _E.PEER_AGREES, then=_S.REPLICATING)
    # From here on the checkpoint needs no QEMU: what the primary overwrote is in the hidden disks, which
    # QEMU keeps in part in memory till they are flushed, and nobody can overwrite more.
    yield _row(
        *(_Q, _S.DEGRADED, _E.ABANDONED, _A.UNSERVE, _A.FLUSH, _A.RECORD_SETTLED),
        then=_S.DEGRADED,
    )
    yield _row(_Q, _S.DEGRADED, _E.ACTION_FAILED, then=_S.FAILED)
    for state in (_S.REPLICATING, _S.DEGRADED):
        for event in (_E.PEER_PREPARES, _E.PEER_DETACHES):
            # It records that the checkpoint is given up, unless it may not be: then the disks keep it.
            yield _row(_Q, state, event, _A.RENEW, then=_S.LAUNCHING)
        for event in (_E.FAILOVER, _E.FORCE_FAILOVER, _E.FENCED):
            yield _row(
                *(_Q, state, event, *_RECORDED, *_TAKE_OVER),
                during=_S.FAILING_OVER,
                then=_S.PROMOTED,
                as_role=_P,
            )

    # The record says that it is unfinished: QEMU is looked at again and the rest is done.
    yield _row(_Q, _S.FAILING_OVER, _E.ACTION_FAILED, then=_S.FAILED)
    yield _row(_Q, _S.FAILED, _E.ACTION_FAILED, then=_S.FAILED)

    for event in (_E.ACCEPTED, _E.RETRY):
        yield _row(_Q, _S.FAILED, event, then=_S.LAUNCHING)


TABLE: Mapping[Key, Step] = dict(_rows())


def step(place: Place, event: Event) -> Step:
    """Return what is to be done.

    :raises UnexpectedEvent: the state does not expect it; nothing is to be done.
    """
    try:
        return TABLE[place.role, place.state, event]
    except KeyError:
        raise UnexpectedEvent(place.role, place.state, event) from None


def expected(place: Place) -> frozenset[Event]:
    """Return the events that a state expects."""
    return frozenset(event for role, state, event in TABLE if (role, state) == place)


def failure(role: Role, action: Action, *, closed: bool, in_part: bool = False) -> Event:
    """Return the event that an action which failed is.

    A primary that loses its link may go on with the session, but not from the middle of a checkpoint: the
    secondary may still take it, of whatever the guest has written by then.

    :param closed: the link to the peer has ended.
    :param in_part: QEMU refused it, and may have done it to others of several disks.
    """
    if in_part and role is Role.SECONDARY and action is Action.CHECKPOINT:
        return Event.TORN
    lost = closed and role is Role.PRIMARY and action is not Action.CHECKPOINT_PEER
    return Event.PEER_LOST if lost else Event.ACTION_FAILED


def failover_event(*, in_sync: bool, force: bool) -> Event | None:
    """Return the event that a failover command is; None where it would lose what nobody gave up.

    :param in_sync: the record says that the disks hold a checkpoint of the primary.
    """
    if in_sync:
        return Event.FAILOVER
    return Event.FORCE_FAILOVER if force else None
