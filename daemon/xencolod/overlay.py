"""What is published of a domain that replicates: the state of its replication over that of its QEMU."""

from typing import TYPE_CHECKING

from xencolo.disk import Role
from xencolo.status import DomainState, DomainStatus, ReplicationStatus

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_S = DomainState

#: What the reconciler says of a domain whose replication has more to say.
_COVERED = {_S.RUNNING, _S.LAUNCHING}
#: Where the state itself says that nothing is amiss.
_SOUND = {_S.REPLICATING, _S.RESYNCING}
#: To fill in: the domid.
_KEPT = (
    "its primary was lost, and the disks hold its last checkpoint: take over with it (xencolo failover {}), "
    "or let the primary come back and copy its own"
)
_HELD = (
    "the nodes describe other drives than QEMU has, and QEMU has the last checkpoint of a primary that was "
    "lost: take over with it first (xencolo failover {}), or let the primary come back"
)


def overlay(owner: "Replicator", status: DomainStatus) -> DomainStatus:
    """Return the domain's status with what its replication has to say."""
    if not owner.performer.disks:
        return status
    status = status._replace(replication=_replication(owner))
    state = owner.place.state
    if status.state is _S.OUTDATED and owner.seen and owner.holds_checkpoint(owner.seen.launch):
        why = owner.error if state is _S.FAILED else None
        return status._replace(state=state, error=why or _HELD.format(owner.domid))
    if status.state not in _COVERED and state is not _S.FAILING_OVER:
        return status
    if status.state is _S.RUNNING and status.error and owner.seen and not owner.seen.qmp:
        return status  # QEMU can't be asked where it is in its life
    error = None if state in _SOUND else _error(owner)
    return status._replace(
        state=state,
        error=error or status.error,
        role_in_force=status.role_in_force and owner.place.role,
    )


def _replication(owner: "Replicator") -> ReplicationStatus:
    performer = owner.performer
    record = performer.record
    return ReplicationStatus(
        generation=record.generation if record else None,
        peer=owner.peer,
        session=performer.session,
        checkpoint=performer.number or None,
        checkpoint_time=performer.checkpoint_time,
        resync=performer.resync,
        record=str(performer.host.records.path(record.uuid)) if record else None,
    )


def _error(owner: "Replicator") -> str | None:
    (role, state), record = owner.place, owner.performer.record
    unreached = owner.reach.error if role is Role.PRIMARY else None
    kept = state is _S.LISTENING and record is not None and record.in_sync
    said = owner.error or owner.obstacle
    if said and unreached and state is _S.DEGRADED and unreached != said:
        return f"{said}; no link: {unreached}"
    return said or unreached or (_KEPT.format(owner.domid) if kept else None)
