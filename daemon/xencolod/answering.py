"""What a secondary answers to its primary's daemon: each request is an event of the table, or refused."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from xencolo import link
from xencolo.disk import Role
from xencolo.errors import QmpClosed, UnexpectedEvent, XencoloError
from xencolo.link import Refusal, refusal
from xencolo.observed import is_prepared, is_stranger, may_agree, rejection
from xencolo.replication import Event
from xencolo.status import DomainState
from xencolod.listener import Peer
from xencolod.log import emit

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_S = DomainState
_IN_SESSION = {_S.REPLICATING, _S.DEGRADED}
#: What the primary's host shows, whose "there" is here. To fill in: generation and domid.
_REJECTIONS: Mapping[link.RefusalKind, str] = {
    "generation": "the domain is of generation {0} there",
    "state": "the domain is a primary there too, of generation {0}: say which one is to be the secondary "
    "(there: xencolo role {1} secondary)",
}
#: To fill in: the domid here, and the path of the record.
_STRANGER = (
    "the disks there hold the last checkpoint of a primary, and this one has never replicated: take over "
    "with what they hold (on that host: xencolo failover {0}), or give it up (destroy domain {0} there, "
    "remove {1}, and create it again)"
)


class Answering:
    """The secondary's end of the link, for one domain.

    :ivar last_peer: where its primary's daemon spoke from last, None if it has not since this one started.
    """

    def __init__(self, owner: "Replicator") -> None:
        self._owner = owner
        self._performer = owner.performer
        self._peer: Peer | None = None
        self.last_peer: str | None = None
        self._answers: Mapping[type, Callable[[Any], Awaitable[link.Reply]]] = {
            link.Prepare: self._prepare,
            link.Start: self._start,
            link.Checkpoint: self._checkpoint,
            link.Detach: self._detach,
        }

    @property
    def peer(self) -> str | None:
        """Where the primary's daemon speaks from, None while it does not."""
        return self._peer.address if self._peer else None

    async def answer(self, request: link.Request, peer: Peer) -> link.Reply:
        """Return the answer to a request of a peer that holds the keys.

        :param peer: the connection; the last one that said hello for the domain is the one that counts.
        """
        try:
            if isinstance(request, link.Hello):
                return await self._hello(request, peer)
            if peer is not self._peer:
                return refusal("state", "another connection has spoken for this domain since")
            return await self._answers[type(request)](request)
        except UnexpectedEvent as error:
            return refusal("state", str(error))
        except XencoloError as error:
            return refusal("failed", str(error))

    def gone(self, peer: Peer, why: str, *, silent: bool) -> None:
        """Take note that a connection has ended."""
        if peer is not self._peer:
            return
        self._peer = None
        if self._owner.place.role is not Role.SECONDARY:
            return
        if self._owner.place.state is _S.REPLICATING:
            emit(self._owner.log, "replication.peer_lost", peer=peer.address, error=why)
        if self._owner.place.state in {_S.LISTENING, *_IN_SESSION}:
            error = f"the primary's daemon is gone: {why}"
            self._owner.push(Event.PEER_SILENT if silent else Event.PEER_LOST, error)

    def hang_up(self, why: Event) -> None:
        """End the primary's connection: it says hello again and hears what is so now."""
        if peer := self._peer:
            self._peer = None
            peer.close(f"the secondary left the session: {why}")

    async def _hello(self, hello: link.Hello, peer: Peer) -> link.Reply:
        owner, performer = self._owner, self._performer
        refused = self._unwelcome(hello) or await self._mismatch(hello)
        # Again: it may have been promoted while the disks were looked at.
        if refused := refused or self._unwelcome(hello):
            return refused
        if self._peer and self._peer is not peer:
            self._peer.close("another connection has spoken for this domain since")
        self._peer, self.last_peer = peer, peer.address
        performer.peer_generation = hello.generation
        await self._agree(hello)
        disk, record = performer.first, performer.known
        return link.Welcome(
            generation=record.generation,
            state=owner.place.state.value,
            session=performer.session,
            in_sync=record.in_sync,
            host=disk.colo_host or "",
            port=disk.colo_port,
            encrypted=performer.host.credentials() is not None,
        )

    def _unwelcome(self, hello: link.Hello) -> Refusal | None:
        owner, record = self._owner, self._performer.record
        launching = owner.place.state is _S.LAUNCHING
        # A QEMU that was not looked at yet may be in the session that its primary names.
        if record is None or not self._performer.disks or (launching and not record.unfinished):
            return self._busy()
        kind = rejection(record, hello.generation)
        if kind == "state":
            owner.superseded(hello.generation)
        why = kind and _REJECTIONS[kind].format(record.generation, owner.domid)
        if kind and why:
            return refusal(kind, why, record.generation)
        if is_stranger(record, hello):
            path = self._performer.host.records.path(record.uuid)
            return refusal("state", _STRANGER.format(owner.domid, path))
        if not owner.accepted:
            return refusal("busy", f"it may not replicate there: {owner.error or owner.refusal}")
        return None

    def _busy(self) -> Refusal:
        owner = self._owner
        return refusal("busy", f"the domain is {owner.place.state} there: {owner.error or 'wait'}")

    async def _mismatch(self, hello: link.Hello) -> Refusal | None:
        theirs = {disk.export: disk for disk in hello.disks}
        ours = {disk.export: disk for disk in await self._performer.infos()}
        if theirs.keys() != ours.keys():
            have, want = (", ".join(sorted(names)) or "none" for names in (ours, theirs))
            return refusal(
                "disks",
                f"the exports are {have} on the secondary, and {want} on the primary: give the disks the "
                f"same colo-export on both hosts",
            )
        for export, disk in ours.items():
            if disk.length != theirs[export].length:
                return refusal(
                    "disks",
                    f"{export} is {disk.length} bytes long on the secondary, and "
                    f"{theirs[export].length} on the primary: make them equal",
                )
        return None

    async def _agree(self, hello: link.Hello) -> None:
        """Go on with the session that both sides are in, if QEMU has no complaint; else with none."""
        performer = self._performer
        may = may_agree(self._owner.place, performer.known, performer.session, hello.session)
        if may and self._owner.accepted and await self._is_sound():
            await self._asked(Event.PEER_AGREES)
        elif self._owner.place.state is _S.REPLICATING:
            # It is in another session, or QEMU is in none: who was in this one speaks no more.
            await self._asked(Event.PEER_LOST)

    async def _is_sound(self) -> bool:
        """Whether QEMU serves the disks and has no complaint; one that hangs is replaced for a new session.

        A failover that went no further has taken the exports down, which the primary sees at its next write.
        """
        blocks = self._performer.secondary
        try:
            return await blocks.serves() and not await blocks.fault()
        except QmpClosed:
            return False

    async def _prepare(self, request: link.Prepare) -> link.Reply:
        owner, performer = self._owner, self._performer
        if not owner.accepted:
            return refusal("state", owner.refusal or "the guest's PV driver bypasses a disk there")
        if not is_prepared(owner.place) and owner.place.state not in _IN_SESSION:
            return self._busy()

        def begin() -> None:
            performer.session = request.session
            performer.number, performer.checkpoint_time = 0, None

        await self._asked(Event.PEER_PREPARES, begin)
        # Where it was may not be where it is, when its turn has come.
        if not is_prepared(owner.place):
            return refusal("busy", "its QEMU is being started anew for the new session")
        return link.Done()

    async def _start(self, request: link.Start) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused
        await self._asked(Event.PEER_STARTS)
        return link.Done()

    async def _checkpoint(self, request: link.Checkpoint) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused

        def begin() -> None:
            self._performer.asked_number = request.number

        await self._asked(Event.PEER_CHECKPOINTS, begin)
        return link.Done()

    async def _detach(self, request: link.Detach) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused
        await self._asked(Event.PEER_DETACHES)
        return link.Done()

    async def _asked(self, event: Event, begin: Callable[[], None] = lambda: None) -> None:
        """Have the table deal with what the peer asked, unless the peer has gone by then.

        :raises XencoloError: it came to nothing.
        """
        peer = self._peer
        asked = self._owner.push(event, begin=begin, void=lambda: self._peer is not peer)
        await asked.outcome()

    def _other_session(self, session: str | None) -> Refusal | None:
        if session == self._performer.session:
            return None
        own = self._performer.session or "in none"
        return refusal("state", f"the other side is not in session {session} but {own}")
