"""What must be so before a domain's QEMU is started: its record, its disks made whole, its images."""

from msgspec.structs import replace

from xencolo.disk import Role
from xencolo.errors import ImageError, RecordError, ReplicationError
from xencolo.observed import is_superseded
from xencolo.paths import colo_path
from xencolo.plan import Domain, Launch
from xencolo.record import NO_CHECKPOINT, Record, Settled, latest_generation
from xencolo.status import RECORD
from xencolod import images
from xencolod.log import Logger, emit
from xencolod.performer import Performer
from xencolod.places import forbidden


def as_recorded(view: Domain, record: Record | None, running: Launch | None) -> Domain:
    """Return what the nodes say of a domain with what its record adds to it.

    :param running: what its QEMU runs with.
    """
    if record is None:
        # A secondary's QEMU has a record, which is not read yet: it may have taken over.
        return view._replace(promoted=running is not None and running.role is Role.SECONDARY)
    if not view.uuid or record.uuid != view.uuid.lower():
        return view
    plain = record.role is Role.SECONDARY and view.wanted_role is Role.NONE
    if plain or (record.role is Role.SECONDARY and not record.unfinished):
        wrong = view.wanted_role is not Role.SECONDARY and view.role_error is None
        return view._replace(role=None, role_error=NO_PRIMARY) if wrong else view
    # While it takes over, its role node says primary before the record does: its QEMU must not be
    # replaced for that.
    return view._replace(promoted=record.promoted or bool(record.unfinished))


async def recall(performer: Performer, view: Domain) -> Domain:
    """Have the record read of a domain whose COLO disks are to be plain ones; return it as it is then.

    What a secondary's disk holds is no guest's disk without its active and hidden images.
    """
    colo = any(device.is_colo for device in view.devices.values())
    if performer.record or not view.uuid or not colo or view.role is not Role.NONE:
        return view
    try:
        record = await _load(performer, view, view.uuid.lower())
    except (RecordError, ReplicationError) as error:
        return view._replace(role=None, role_error=str(error))
    if record:
        performer.recall(record)
    return view


async def _load(performer: Performer, view: Domain, uuid: str) -> Record | None:
    """Return the domain's record, None if it never had one.

    :raises RecordError: it is damaged.
    :raises ReplicationError: it is lost.
    """
    records = performer.host.records
    record = await records.load(uuid)
    if record is None and view.record == str(records.path(uuid)):
        raise ReplicationError(
            f"{view.record} is gone, so it is not known which host has the data: put a backup in its "
            f"place, or, if it was no failover that this host went through last, remove "
            f"{colo_path(view.domid)}/{RECORD}, and the domain begins anew at generation 1"
        )
    return record


_NO_UUID = "the domain has no uuid (/local/domain/{}/vm), by which its generation is kept: create it with one"


def nameless(view: Domain, role: Role) -> str | None:
    """Return why a primary can't have a record, and so no secondary; it runs all the same."""
    return None if view.uuid or role is not Role.PRIMARY else _NO_UUID.format(view.domid)


async def load_record(performer: Performer, view: Domain, role: Role) -> None:
    """Give the performer the domain's record; a domain that has none begins one in this role.

    :raises RecordError: it is damaged, or could not be saved.
    :raises ReplicationError: the domain has no uuid, or its record is lost.
    """
    if not view.uuid:
        raise ReplicationError(_NO_UUID.format(view.domid))
    uuid = view.uuid.lower()
    record = await _load(performer, view, uuid)
    if record is None:
        record = Record(uuid=uuid, name=view.name, role=role, generation=1)
        await performer.host.records.save(record)
        performer.fresh = True
    performer.recall(record)
    if settled := record.settled:
        performer.number, performer.checkpoint_time = settled.number, settled.seconds


async def assume_role(performer: Performer, role: Role) -> bool:
    """Bring the record to the role that a QEMU is to be started in; return False if that is outdated.

    :raises RecordError: it could not be saved.
    :raises ReplicationError: only a failover may bring it there.
    :raises XenstoreError: xenstored failed.
    """
    if performer.known.role is role:
        if role is Role.PRIMARY and not performer.fresh:
            await performer.save(relaunched=True)
        return True
    if role is Role.PRIMARY:
        raise ReplicationError(NO_PRIMARY)
    # The start may have been decided before a promotion that wrote the node: it would undo that.
    if not await performer.host.has_role(performer.domid, performer.known.uuid, role):
        return False
    # The operator has made the primary of before a secondary.
    await performer.save(
        role=role,
        own=not is_superseded(performer.known),
        generation=latest_generation(performer.known),
        **NO_CHECKPOINT,
        **dict.fromkeys(("promoted", "detached", "untold", "spoiled"), False),
        **dict.fromkeys(("superseded_by", "peer")),
    )
    return True


NO_PRIMARY = (
    "its disks are a secondary's, and only a failover makes them a guest's own: set its role to secondary, "
    "then xencolo failover"
)


async def finish_failover(performer: Performer, log: Logger) -> None:
    """Make the disks whole whose QEMU ended in the middle of a failover; the domain is promoted then.

    :raises ImageError: a disk could not be made whole; nothing is lost.
    :raises RecordError: the record could not be saved.
    :raises ReplicationError: the domain has gone meanwhile; it is finished when it comes again.
    :raises XenstoreError: xenstored failed.
    """
    record = performer.known
    for chain in record.unfinished:
        await images.make_whole(chain)
        emit(log, "failover.recovered", devid=chain.devid, generation=record.generation)
    if performer.known.uuid != record.uuid:
        raise ReplicationError("another domain has its domid by now")
    await performer.promote()


async def ready_images(performer: Performer, role: Role, log: Logger) -> None:
    """Have active and hidden images ready for a secondary that begins.

    :raises ImageError: they are not as they must be and may not be made so.
    :raises RecordError: it could not be recorded whether the disks still hold a checkpoint.
    :raises ReplicationError: these are not the disks that hold the last checkpoint.
    """
    if role is not Role.SECONDARY:
        return
    config = performer.host.settings.config
    for disk in performer.disks:
        for path in (disk.active_disk, disk.hidden_disk):
            if path and (reason := forbidden(path, config.images.directories)):
                raise ImageError(path, reason)
    if settled := performer.known.settled:
        await _keep_checkpoint(performer, settled, log)
    else:
        await performer.save(**NO_CHECKPOINT)
        performer.number, performer.checkpoint_time = 0, None
    for disk in performer.disks:
        for path in await images.prepare(disk, make=config.replication.make_images):
            emit(log, "images.made", devid=disk.devid, vdev=disk.vdev, path=path)


async def _keep_checkpoint(performer: Performer, settled: Settled, log: Logger) -> None:
    """Put what the hidden disks hold of the last checkpoint into the disks: they are made anew after it.

    :raises ImageError: a disk could not be made whole; nothing is lost.
    :raises RecordError: the record could not be saved.
    :raises ReplicationError: these are not the disks that hold it.
    """
    record = performer.known
    give_up = f"or, to give it up, remove {performer.host.records.path(record.uuid)}"
    held = {chain.secondary: chain.format for chain in settled.disks}
    described = {disk.pdev_path: disk.format for disk in performer.disks}
    if held != described:
        raise ReplicationError(
            f"the last checkpoint of its primary is on {', '.join(held)}, and the disks described now are "
            f"{', '.join(map(str, described))}: describe them as they were, {give_up}"
        )
    if settled.whole:
        return
    for chain in settled.disks:
        try:
            await images.make_whole(chain, active=False)
        except ImageError as error:
            why = f"{error.reason}; a part of the primary's last checkpoint is in it: put it back, {give_up}"
            raise ImageError(error.path, why) from None
        emit(log, "checkpoint.kept", devid=chain.devid, generation=record.generation)
    await performer.save(settled=replace(settled, whole=True))
