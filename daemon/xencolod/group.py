"""A domain's COLO disks as one consistency group: what is known of it, and of both its sides.

:class:`Group` does nothing to them: that is :mod:`xencolod.performer`'s.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
import trio

from xencolo import link as peer
from xencolo.disk import Disk, Format, Role
from xencolo.errors import LinkClosed, ReplicationError
from xencolo.graph import Form, colo_disks, form_of, has_disk
from xencolo.observed import is_superseded
from xencolo.plan import Domain, Launch
from xencolo.record import Record
from xencolo.status import Resync
from xencolod import images
from xencolod.blocks import Blocks
from xencolod.link import Link
from xencolod.primary_blocks import PrimaryBlocks
from xencolod.qmp import Qmp
from xencolod.records import Records
from xencolod.secondary_blocks import SecondaryBlocks
from xencolod.security import Security
from xencolod.supervisor import Settings

B = TypeVar("B", bound=Blocks)


#: To fill in: the generation of the other host's, and of this one's.
_SUPERSEDED = "another host is the primary of generation {}, this one's is {}"
_SPOILED = (
    "this host's disk refused a write of the guest that the secondary has: let that take over (on that "
    "host: xencolo failover). Then mend this disk"
)


class Host(Protocol):
    """What replication needs of the daemon around it."""

    settings: Settings
    records: Records

    def security(self) -> Security:
        """Return how the link is secured.

        :raises KeysError: there are no keys to be used; with the remedy.
        """

    def credentials(self) -> str | None:
        """Return the directory of QEMU's TLS credentials, None for the plain mode."""

    async def has_role(self, domid: int, uuid: str, role: Role) -> bool:
        """Return whether the role node of the domain of this uuid says this now.

        :raises ReplicationError: the domid has come to another domain.
        :raises XenstoreError: xenstored failed.
        """

    async def set_role(self, domid: int, uuid: str, role: Role) -> None:
        """Write the role node, unless the domid has come to another domain.

        :raises ReplicationError: it has.
        :raises XenstoreError: xenstored failed.
        """


@dataclass
class Times:
    """When things began, on trio's clock, and how long the guest stood last."""

    began: float = 0.0
    paused: float | None = None
    stood: float = 0.0
    resync: float | None = None


class Group:
    """One domain's group.

    :ivar disks: its COLO disks, by devid.
    :ivar unknown: how many more its QEMU has, of which no readable node tells.
    :ivar qmp: to its QEMU, None while there is none to talk to.
    :ivar link: to the secondary's daemon, None while there is none.
    :ivar nbd: where the secondary's NBD server is.
    :ivar equal_at: somebody said, when the guest had made so many writes, that both hosts' disks are equal.
    :ivar fresh: the record was begun here, and no QEMU has run with it yet.
    :ivar session: the replication session that this side is in or about to begin.
    :ivar ended: the session that was given up last.
    :ivar number: of the last checkpoint in the session.
    :ivar asked_number: of the one that is being taken.
    """

    def __init__(self, domid: int, host: Host) -> None:
        self.domid = domid
        self.host = host
        self.disks: tuple[Disk, ...] = ()
        self.unknown = 0
        self.qmp: Qmp | None = None
        self.link: Link | None = None
        self.nbd: tuple[str, int] | None = None
        self.equal_at: int | None = None
        self.fresh = False
        self.peer_generation: int | None = None
        self.session: str | None = None
        self.number = self.asked_number = 0
        self.checkpoint_time: int | None = None
        self.resync: Resync | None = None
        self.times = Times()
        self.record: Record | None = None
        self._saved: Record | None = None
        self._noted: dict[str, object] = {}
        self.ended: str | None = None
        self._form = Form.BLOCKDEV
        self._saving = trio.Lock()
        self._lengths: dict[tuple[str, Format], int] = {}

    def describe(self, view: Domain, launch: Launch | None) -> None:
        """Take what the nodes say of the disks; a disk that can't be read is as it was.

        :param launch: what the QEMU runs with: only what it was given can replicate, and does for as long as
            it runs, whatever the nodes say by then.
        """
        if self.record and view.uuid and view.uuid.lower() != self.record.uuid:
            self._forget()
        read = {d: device.disk for d, device in view.devices.items() if device.is_colo}
        before = {disk.devid: disk for disk in self.disks}
        found = [disk or before.get(devid) for devid, disk in read.items()]
        if launch:  # of two descriptions of one disk the later one counts
            both = [*before.values(), *filter(None, read.values())]
            found = [disk for disk in both if has_disk(launch.drives, disk)]
        elif view.wanted_role is Role.NONE:
            found = []
        disks = {disk.devid: disk for disk in found if disk}
        self.disks = tuple(disks[devid] for devid in sorted(disks))
        self.unknown = max(0, colo_disks(launch.drives) - len(disks)) if launch else 0
        self._form = form_of(launch.drives) if launch else Form.BLOCKDEV

    def _forget(self) -> None:
        """Forget the guest that had the domid before."""
        self.record, self._saved, self._noted, self.disks = None, None, {}, ()
        self.session = self.checkpoint_time = self.resync = self.nbd = None
        self.peer_generation = self.ended = self.equal_at = None
        self.number, self.fresh = 0, False

    def begin(self) -> None:
        """Note that a step begins."""
        self.times.began, self.times.stood = trio.current_time(), 0.0

    def blocks(self, kind: type[B], credentials: str | None = None) -> B:
        """Return the domain's QEMU, as one of the role's.

        :raises ReplicationError: there is none to talk to.
        """
        if self.qmp is None:
            raise ReplicationError("there is no QEMU to talk to")
        timeout = self.host.settings.config.replication.qmp_timeout
        return kind(self.qmp, self.disks, self._form, timeout=timeout, credentials=credentials)

    @property
    def first(self) -> Disk:
        """The first disk, whose host and port are those of all.

        :raises ReplicationError: there is none any more.
        """
        if not self.disks:
            raise ReplicationError("the domain has no COLO disk any more")
        return self.disks[0]

    @property
    def primary(self) -> PrimaryBlocks:
        """The domain's QEMU as a primary's.

        :raises ReplicationError: there is none to talk to.
        """
        return self.blocks(PrimaryBlocks)

    @property
    def secondary(self) -> SecondaryBlocks:
        """The domain's QEMU as a secondary's.

        :raises ReplicationError: there is none to talk to.
        """
        return self.blocks(SecondaryBlocks)

    @property
    def either(self) -> Blocks:
        """The domain's QEMU, for what goes for both roles.

        :raises ReplicationError: there is none to talk to.
        """
        return self.blocks(Blocks)

    @property
    def lost_qemu(self) -> bool:
        """Whether the connection to QEMU has ended."""
        return self.qmp is not None and self.qmp.closed

    @property
    def said_equal(self) -> bool:
        """Whether somebody said, for this time or for the first, that both hosts' disks are equal."""
        return self.equal_at is not None or self.host.settings.config.replication.assume_equal

    async def doubt(self) -> str | None:
        """Return why a primary's disks and its secondary's may differ, whoever said that they are equal.

        :raises QmpError: QEMU can't be asked.
        """
        if self.equal_at is None and self.known.diverged:
            return "the domain has replicated or taken over before"
        if self.equal_at is None and self.known.relaunched:
            return "its QEMU has run before, and what its guest wrote then is not known"
        if await self.primary.writes() != (self.equal_at or 0):
            return "its guest has written meanwhile"
        return None

    @property
    def superseded(self) -> str | None:
        """Why this host may not be the primary, None where it may."""
        record = self.record
        if record is None or not is_superseded(record):
            return None
        other = record.superseded_by
        why = _SPOILED if other is None else _SUPERSEDED.format(other, record.generation)
        remedy = f"make it a secondary (xencolo role {self.domid} secondary)"
        return f"{why}: {remedy}, and let the other one resync to it"

    @property
    def known(self) -> Record:
        """The domain's record.

        :raises ReplicationError: there is none.
        """
        if self.record is None:
            raise ReplicationError("the domain has no record")
        return self.record

    @property
    def in_sync(self) -> bool:
        """Whether the disks hold a checkpoint of the primary; nobody's disks do."""
        return self.record is not None and self.record.in_sync

    def recall(self, record: Record) -> None:
        """Take the record as it is on disk; what was noted still counts."""
        self._saved = record
        self.record = msgspec.structs.replace(record, **self._noted)

    def note(self, **changes: object) -> None:
        """Have changes of the record count from now on, saved or not; the next save has them too."""
        self._noted |= changes
        self.record = msgspec.structs.replace(self.known, **changes)

    async def save(self, **changes: object) -> None:
        """Change the record, on disk first.

        :raises RecordError: it could not be saved; nothing changed.
        """
        async with self._saving:
            record = msgspec.structs.replace(self.known, **changes)
            noted, self._noted = self._noted, {}
            try:
                if record != self._saved:
                    await self.host.records.save(record)
            except BaseException:  # cancelled, it is not saved either
                self._noted = noted | self._noted
                raise
            self.recall(record)

    async def infos(self) -> tuple[peer.DiskInfo, ...]:
        """Return what the peer is told of the disks.

        :raises ImageError: the length of one can't be read.
        """
        return tuple(
            [
                peer.DiskInfo(disk.vdev, disk.colo_export or "", await self._length(disk))
                for disk in self.disks
            ]
        )

    def measure_anew(self) -> None:
        """Forget what was so under the QEMU of before: the disks may be resized between two."""
        self._lengths.clear()
        self.equal_at = None

    async def _length(self, disk: Disk) -> int:
        key = disk.pdev_path or "", disk.format
        if key not in self._lengths:
            self._lengths[key] = await images.length(*key)
        return self._lengths[key]

    async def total(self) -> int:
        """Return the bytes of all disks together."""
        return sum([await self._length(disk) for disk in self.disks])

    async def ask(self, request: peer.Request) -> peer.Reply:
        """Ask the secondary's daemon.

        :raises LinkError: it refused, went away, or did not answer in time.
        """
        if self.link is None:
            raise LinkClosed("there is no link to the peer")
        return await self.link.ask(request)
