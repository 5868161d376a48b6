"""What must be so before a domain's QEMU is started: its record, a failover that was left unfinished, images."""

from xencolo.disk import Role
from xencolo.errors import ReplicationError
from xencolo.paths import colo_path
from xencolo.plan import Domain
from xencolo.record import Record
from xencolod import images
from xencolod.log import Logger, emit
from xencolod.performer import Performer


async def record_for(performer: Performer, view: Domain, role: Role) -> None:
    """Give the performer the domain's record, as it is for a domain that begins in this role.

    :raises RecordError: it is damaged, or could not be saved.
    :raises ReplicationError: the domain has no uuid, its record is lost, or it is another role's.
    """
    if not view.uuid:
        raise ReplicationError(
            f"the domain has no uuid ({view.domid}/vm), and its generation is kept by that: create it "
            "with one"
        )
    records = performer.host.records
    record = await records.load(view.uuid.lower())
    if record is None:
        if view.generation:
            raise ReplicationError(
                f"{records.path(view.uuid)} is gone, and the domain was of generation {view.generation}: "
                f"put a backup in its place, or, if no failover of it was under way, remove "
                f"{colo_path(view.domid)}/generation and it begins anew at generation 1"
            )
        record = Record(uuid=view.uuid.lower(), name=view.name, role=role, generation=1)
        await records.save(record)
    performer.record = record
    if record.unfinished or record.role is role or record.promoted:
        return
    if role is Role.PRIMARY:
        raise ReplicationError(_NO_PRIMARY)
    # The operator has made the primary of before a secondary.
    await performer.save(role=role, in_sync=False, superseded_by=None, peer=None, detached=False)


_NO_PRIMARY = (
    "its disks are a secondary's, and only a failover makes it a primary: set its role to secondary, "
    "then xencolo failover"
)


async def finish_failover(performer: Performer, log: Logger) -> None:
    """Make the disks whole whose QEMU ended in the middle of a failover; the domain is promoted then.

    :raises ImageError: a disk could not be made whole; nothing is lost.
    :raises RecordError: the record could not be saved.
    :raises XenstoreError: xenstored failed.
    """
    record = performer.known
    for chain in record.unfinished:
        await images.make_whole(chain)
        emit(log, "failover.recovered", devid=chain.devid, generation=record.generation)
    await performer.promote()


async def ready_images(performer: Performer, role: Role, log: Logger) -> None:
    """Have active and hidden images ready for a secondary that begins.

    :raises ImageError: they are not as they must be and may not be made so.
    :raises RecordError: it could not be recorded that the disks hold no checkpoint any more.
    """
    if role is not Role.SECONDARY:
        return
    await performer.save(in_sync=False)
    for disk in performer.disks:
        await images.prepare(disk, make=performer.host.settings.config.replication.make_images)
        emit(log, "images.made", devid=disk.devid, vdev=disk.vdev, path=disk.active_disk)
