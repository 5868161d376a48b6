"""What the actions of replication are: QMP on this side's QEMU, questions to the peer, the record.

Nothing is decided here: which action comes when is :mod:`xencolo.replication`'s.
"""

import errno
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import trio

from xencolo import link as peer
from xencolo.disk import Role
from xencolo.errors import CommitError, LinkClosed, LinkSilent, ReplicationError
from xencolo.record import NO_CHECKPOINT, Settled, chain_of, latest_generation
from xencolo.replication import Action
from xencolo.status import Resync
from xencolod.blocks import Mark
from xencolod.group import Group, Host
from xencolod.primary_blocks import PrimaryBlocks
from xencolod.secondary_blocks import SecondaryBlocks

#: Seconds between two looks whether the commit of a failover has ended, at first and at most, and how they
#: grow: a sixth of the commit's time at most is waited in vain.
_COMMIT_POLL, _COMMIT_GROWTH = (0.002, 0.1), 1.2


class Performer(Group):
    """The actions on a group."""

    def __init__(self, domid: int, host: Host, renew: Callable[[], None]) -> None:
        super().__init__(domid, host)
        self._renew = renew
        self._perform: Mapping[Action, Callable[[], Awaitable[None]]] = {
            Action.PAUSE: self._pause,
            Action.RESUME: self._resume,
            Action.MARK: self._mark,
            Action.CHECK: self.check,
            Action.CHECKPOINT: self._checkpoint,
            Action.PREPARE_PEER: self._prepare_peer,
            Action.CONNECT: self._connect,
            Action.MIRROR: self._mirror,
            Action.FINISH_MIRROR: self._finish_mirror,
            Action.START_PEER: self._start_peer,
            Action.ATTACH: self._attach,
            Action.CHECKPOINT_PEER: self._checkpoint_peer,
            Action.RELEASE_PEER: self._release_peer,
            Action.DETACH: self._detach,
            Action.SERVE: self._serve,
            Action.UNSERVE: self._unserve,
            Action.START: self._start,
            Action.RENEW: self._start_anew,
            Action.RECORD_STALE: self._record_stale,
            Action.RECORD_IN_SYNC: self._record_in_sync,
            Action.RECORD_SETTLED: self._record_settled,
            Action.RECORD_SUPERSEDED: self._record_superseded,
            Action.RECORD_FAILOVER: self._record_failover,
            Action.FAILOVER: self._failover,
            Action.AWAIT_COMMIT: self._await_commit,
            Action.FLUSH: self._flush,
            Action.RECORD_PROMOTED: self.promote,
        }

    async def perform(self, action: Action) -> None:
        """Do one action.

        :raises XencoloError: it could not be done, or it is not known whether it was.
        """
        await self._perform[action]()

    # -- both roles --------------------------------------------------------------------------------

    async def _pause(self) -> None:
        if self.qmp is None:
            return
        self.times.paused = trio.current_time()
        await self.either.pause()

    async def _resume(self) -> None:
        if self.qmp is None or self.superseded:  # then it stays paused, whatever else happens
            return
        await self.either.resume()
        if self.times.paused is not None:
            self.times.stood = trio.current_time() - self.times.paused
            self.times.paused = None

    async def _mark(self) -> None:
        await self.either.mark(Mark(self.session, self.number, self.checkpoint_time))

    async def check(self) -> None:
        """Look at QEMU's replication status.

        :raises ReplicationError: QEMU reports an error.
        """
        if error := await self.either.fault():
            raise ReplicationError(f"QEMU's replication reports: {error}")

    async def _checkpoint(self) -> None:
        await self.either.checkpoint()
        self.number, self.checkpoint_time = self.asked_number, int(time.time())

    # -- primary -----------------------------------------------------------------------------------

    def _session(self) -> str:
        if self.session is None:
            raise ReplicationError("there is no session")
        return self.session

    async def _prepare_peer(self) -> None:
        self.session, self.number, self.checkpoint_time = secrets.token_hex(8), 0, None
        await self.ask(peer.Prepare(self.session, assume_equal=self.equal_at is not None))

    async def _connect(self) -> None:
        if self.nbd is None:
            raise LinkClosed("there is no link to the peer")
        blocks = self.blocks(PrimaryBlocks, self.host.credentials())
        await blocks.connect(*self.nbd)

    async def _mirror(self) -> None:
        self.times.resync = trio.current_time()
        self.resync = Resync(0, await self.total(), 0, None)
        await self.primary.mirror(self.host.settings.config.replication.resync_speed << 20)

    async def _finish_mirror(self) -> None:
        await self.primary.finish_mirror()

    async def _start_peer(self) -> None:
        # Copied, they are equal whatever was said of them; else the guest stands, and has not written since.
        if self.resync is None and (doubt := await self.doubt()):
            raise ReplicationError(f"the disks are to be copied after all: {doubt}")
        self.equal_at = None  # from here on they may differ
        # Before the secondary records that it holds a checkpoint of this primary.
        await self.save(diverged=True)
        await self.ask(peer.Start(self._session()))

    async def _attach(self) -> None:
        await self.primary.attach()

    async def _checkpoint_peer(self) -> None:
        self.asked_number = self.number + 1
        await self.ask(peer.Checkpoint(self._session(), self.asked_number))

    async def _release_peer(self) -> None:
        """Tell the peer, if it can be told: else it sees by itself that its primary has gone."""
        if self.ended and self.link:
            with suppress(LinkClosed, LinkSilent):
                await self.ask(peer.Detach(self.ended))
                self.note(untold=False)

    async def _detach(self) -> None:
        self.resync = None
        self.ended, self.session = self.session, None
        if self.qmp:
            await self.primary.detach(cut=True)

    # -- secondary ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        disk = self.first
        blocks = self.blocks(SecondaryBlocks, self.host.credentials())
        host = disk.colo_host or ""
        # The colo-host of a primary of before is the other host's address still.
        where = host if await is_own(host) else self.host.settings.config.link.listen
        await blocks.serve(where, disk.colo_port)

    async def _unserve(self) -> None:
        await self.secondary.unserve()

    async def _start(self) -> None:
        await self.secondary.start()

    async def _start_anew(self) -> None:
        if not self.host.settings.config.qemu.restart:
            raise ReplicationError(
                "its QEMU was in a session, so a new one needs a new QEMU, and a device model can't be "
                "replaced under its guest: destroy the domain and restore it again"
            )
        generation = latest_generation(self.known, self.peer_generation)
        await self.save(**NO_CHECKPOINT, generation=generation)
        # No look at a QEMU that is to end.
        self.session = self.qmp = None
        self._renew()

    async def _record_stale(self) -> None:
        generation = latest_generation(self.known, self.peer_generation)
        await self.save(**NO_CHECKPOINT, own=False, generation=generation)

    async def _record_in_sync(self) -> None:
        self.checkpoint_time = int(time.time())
        await self.save(in_sync=True)

    async def _record_settled(self) -> None:
        await self.either.mark(Mark())  # no primary may go on with this session
        self.session = None
        disks = tuple(chain_of(disk) for disk in self.disks)
        settled = Settled(disks=disks, number=self.number, seconds=self.checkpoint_time)
        await self.save(settled=settled)

    async def _record_superseded(self) -> None:
        await self.save()  # it was noted where it was heard of

    async def _record_failover(self) -> None:
        chains = tuple(chain_of(disk) for disk in self.disks)
        generation = latest_generation(self.known, self.peer_generation) + 1
        await self.save(generation=generation, unfinished=chains)

    async def _failover(self) -> None:
        with self._replacing():
            await self.secondary.failover()

    async def _await_commit(self) -> None:
        """Wait without a deadline: how long depends on what the guest wrote."""
        pause, longest = _COMMIT_POLL
        with self._replacing():
            while not await self.secondary.committed():
                await trio.sleep(pause)
                pause = min(pause * _COMMIT_GROWTH, longest)

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Replace a QEMU that can't commit, if that may be: before the next one its disks are made whole."""
        try:
            yield
        except CommitError:
            if self.host.settings.config.qemu.restart:
                self.qmp = None
                self._renew()
            raise

    async def _flush(self) -> None:
        await self.either.flush()

    async def promote(self) -> None:
        """Record that the domain is a primary now, in xenstore and on disk.

        :raises XenstoreError: xenstored failed.
        :raises RecordError: it could not be saved.
        :raises ReplicationError: the domain has gone meanwhile.
        """
        uuid = self.known.uuid
        if self.qmp:  # what is recorded as promoted is in no session any more
            await self.either.mark(Mark())
        # Then the node: a role node that says secondary later is the operator's word.
        await self.host.set_role(self.domid, uuid, Role.PRIMARY)
        await self.save(
            role=Role.PRIMARY,
            promoted=True,
            **NO_CHECKPOINT,
            unfinished=(),
            own=False,
            superseded_by=None,
            spoiled=False,
            diverged=True,
        )
        self.session = None


async def is_own(host: str) -> bool:
    """Tell whether this machine can listen on an address; one that can't be looked up counts as its own."""
    try:
        found = await trio.socket.getaddrinfo(host, 0, type=trio.socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a name that can't be one
        return True  # QEMU will say so
    family, kind, protocol, _, address = found[0]
    with trio.socket.socket(family, kind, protocol) as probe:
        try:
            await probe.bind(address)
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
