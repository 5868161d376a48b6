"""What a secondary answers to its primary's daemon: each request is an event of the table, or refused."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from xencolo import link
from xencolo.disk import Role
from xencolo.errors import UnexpectedEvent, XencoloError
from xencolo.link import Refusal, refusal
from xencolo.replication import Event
from xencolo.status import DomainState
from xencolod.listener import Peer
from xencolod.log import emit

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_S = DomainState
_IN_SESSION = {_S.REPLICATING, _S.DEGRADED}


class Answering:
    """The secondary's end of the link, for one domain."""

    def __init__(self, owner: "Replicator") -> None:
        self._owner = owner
        self._performer = owner.performer
        self._peer: Peer | None = None
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

    def hang_up(self, reason: str) -> None:
        """End the connection: the primary has to learn at once that what it spoke of is over."""
        if self._peer:
            self._peer.close(reason)

    async def _hello(self, hello: link.Hello, peer: Peer) -> link.Reply:
        owner, performer = self._owner, self._performer
        record = performer.record
        if record is None or not performer.disks:
            return refusal(
                "busy", f"the domain is {owner.place.state} here: {owner.error or 'wait'}"
            )
        if hello.generation < record.generation or record.unfinished:
            return refusal(
                "generation",
                f"the domain is of generation {record.generation} here",
                record.generation,
            )
        if record.role is Role.PRIMARY:
            owner.superseded(hello.generation)
            return refusal(
                "state",
                f"the domain is a primary here too, of generation {record.generation}: say which one "
                f"is to be the secondary (xencolo role {owner.domid} secondary)",
                record.generation,
            )
        if refused := await self._mismatch(hello):
            return refused
        if self._peer and self._peer is not peer:
            self._peer.close("another connection has spoken for this domain since")
        self._peer = peer
        performer.peer_generation = hello.generation
        await self._agree(hello)
        disk = performer.disks[0]
        return link.Welcome(
            generation=record.generation,
            state=owner.place.state.value,
            session=performer.session,
            in_sync=record.in_sync,
            host=disk.colo_host or "",
            port=disk.colo_port,
            encrypted=performer.host.credentials() is not None,
        )

    async def _mismatch(self, hello: link.Hello) -> Refusal | None:
        theirs = {disk.export: disk for disk in hello.disks}
        ours = {disk.export: disk for disk in await self._performer.infos()}
        if theirs.keys() != ours.keys():
            return refusal(
                "disks",
                f"the exports are {', '.join(sorted(ours))} here, and {', '.join(sorted(theirs))} on the "
                f"primary: give the disks the same colo-export on both hosts",
            )
        for export, disk in ours.items():
            if disk.length != theirs[export].length:
                return refusal(
                    "disks",
                    f"{export} is {disk.length} bytes long here, and {theirs[export].length} on the "
                    f"primary: make them equal",
                )
        return None

    async def _agree(self, hello: link.Hello) -> None:
        """Go on with the session that both sides are in, if QEMU has no complaint."""
        performer = self._performer
        same = hello.session is not None and hello.session == performer.session
        if same and self._owner.place.state in _IN_SESSION and not await performer.either.fault():
            await self._owner.push(Event.PEER_AGREES).outcome()

    async def _prepare(self, request: link.Prepare) -> link.Reply:
        owner, performer = self._owner, self._performer
        if owner.place.state is _S.LISTENING:
            performer.session = request.session
            await owner.push(Event.PEER_PREPARES).outcome()
            return link.Done()
        if owner.place.state in _IN_SESSION:
            await owner.push(Event.PEER_PREPARES).outcome()
            return refusal("busy", "its QEMU is being started anew for the new session")
        return refusal("busy", f"it is {owner.place.state}: {owner.error or 'wait'}")

    async def _start(self, request: link.Start) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused
        await self._owner.push(Event.PEER_STARTS).outcome()
        return link.Done()

    async def _checkpoint(self, request: link.Checkpoint) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused
        self._performer.number = request.number
        await self._owner.push(Event.PEER_CHECKPOINTS).outcome()
        return link.Done()

    async def _detach(self, request: link.Detach) -> link.Reply:
        if refused := self._other_session(request.session):
            return refused
        await self._owner.push(Event.PEER_DETACHES).outcome()
        return link.Done()

    def _other_session(self, session: str) -> Refusal | None:
        if session == self._performer.session:
            return None
        own = self._performer.session or "in none"
        return refusal("state", f"this side is not in session {session} but {own}")
