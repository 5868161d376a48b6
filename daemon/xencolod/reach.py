"""The primary's way to its secondary: one link, made again with growing pauses, and what it hears there."""

from collections.abc import Callable
from typing import Protocol

import trio

from xencolo.command import parse_peer
from xencolo.disk import Role
from xencolo.errors import LinkClosed, LinkRefused, LinkSilent, XencoloError
from xencolo.link import Detach, Hello, Welcome
from xencolo.observed import met
from xencolo.replication import Event, Place
from xencolo.status import DomainState
from xencolod.link import Link, open_link
from xencolod.log import Logger, emit
from xencolod.performer import Performer

_RETRY_MIN = 0.25
#: States of a primary that has no secondary and reaches for one.
_ALONE = {DomainState.STANDALONE, DomainState.DEGRADED, DomainState.PROMOTED}


class Owner(Protocol):
    """The replicator whose link it is."""

    place: Place
    performer: Performer

    @property
    def accepted(self) -> bool:
        """Whether nothing forbids to replicate now."""

    def push(
        self, event: Event, error: str | None = None, *, void: Callable[[], bool] = ...
    ) -> object:
        """Tell of an event; ``void`` says when it means nothing any more."""

    def superseded(self, generation: int) -> None:
        """Tell that the other host is the primary of a later generation."""


class Reach:
    """Keeps one link to the peer while the domain is a primary that may have one.

    :ivar error: why there is no link now.
    """

    def __init__(self, owner: Owner, log: Logger, on_change: Callable[[], None]) -> None:
        self._owner = owner
        self._performer = owner.performer
        self._log = log
        self._on_change = on_change
        self._poked = trio.Event()
        self._hurried = trio.Event()
        self._scope = trio.CancelScope()
        self._lost_at: float | None = None
        self.error: str | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the peer's daemon, None where no node and no command names it."""
        performer = self._performer
        record, port = performer.record, performer.host.settings.config.link.port
        if record and record.peer:
            host, own_port = parse_peer(record.peer)
            return host, own_port or port
        # A promoted one's nodes name itself: to whom it shall replicate is the operator's to say.
        if not performer.disks or (record and record.promoted):
            return None
        return performer.disks[0].colo_host or "", port

    @property
    def peer(self) -> str | None:
        """The peer in words."""
        return "{}:{}".format(*self.address) if self.address else None

    def poke(self) -> None:
        """Look whether there may be a link now; a pause between two attempts goes on."""
        self._poked.set()

    def hurry(self) -> None:
        """Try now, whatever the pause."""
        self._hurried.set()
        self._poked.set()

    def hang_up(self) -> None:
        """Give the link up; the next attempt comes after a pause."""
        self._performer.link = None  # at once, for what it said and waits in the queue
        self._scope.cancel()

    def _open(self) -> bool:
        """Whether the domain is to have a link."""
        owner, performer = self._owner, self._performer
        record = performer.record
        return bool(
            owner.place.role is Role.PRIMARY
            and owner.place.state in _ALONE
            and performer.qmp
            and record
            and (record.untold if record.detached else owner.accepted)
            and self.address
        )

    async def run(self) -> None:
        """Reach for the peer for ever."""
        pause = _RETRY_MIN
        while True:
            while not self._open():
                await self._wait_poked()
            began, self._hurried = trio.current_time(), trio.Event()
            with trio.CancelScope() as self._scope:
                await self._attempt()
            if trio.current_time() - began > pause:
                pause = _RETRY_MIN
            self._give_up_in_time()
            with trio.move_on_after(pause):
                await self._hurried.wait()
                pause = _RETRY_MIN
            pause = min(pause * 2, self._performer.host.settings.config.replication.retry_max)

    async def _wait_poked(self) -> None:
        """Wait until something changed, without a deadline: all that matters pokes."""
        await self._poked.wait()
        self._poked = trio.Event()

    async def _attempt(self) -> None:
        """Have one link, from the connection to its end."""
        host, port = self.address or ("", 0)
        config = self._performer.host.settings.config.link
        welcomed = False
        if self._lost_at is None and self._performer.session is not None:
            self._lost_at = trio.current_time()  # it was lost while nobody looked
        try:
            security = self._performer.host.security()
            async with open_link(
                host, port, security, timeout=config.timeout, ping_interval=config.ping_interval
            ) as link:
                await self._meet(link, host)
                welcomed = True
                raise await link.wait_closed()
        except LinkRefused as refusal:
            self._refused(refusal)
        except XencoloError as error:
            self._say(error)
            if welcomed:
                self._lost(error)
            else:  # the guest writes on, and whenever the peer comes, the disks are not equal any more
                self._performer.equal_at = None
        finally:
            self._performer.link = None

    async def _meet(self, link: Link, host: str) -> None:
        """Say hello, and tell the owner what the answer means.

        :raises XencoloError: there is no answer that means anything.
        """
        performer = self._performer
        record = performer.known
        welcome = await link.ask(
            Hello(
                uuid=record.uuid,
                name=record.name,
                generation=record.generation,
                session=None if record.detached else performer.session,
                diverged=record.diverged,
                disks=await performer.infos(),
            )
        )
        if not isinstance(welcome, Welcome):
            raise LinkClosed(f"{type(welcome).__name__} is no answer to a hello")
        if record.detached:
            await self._release(link, welcome)
            return
        performer.link, performer.nbd = link, (host, welcome.port)
        self.error, self._lost_at = None, None
        doubt = await performer.doubt() if performer.said_equal else None
        means = met(performer.session, welcome, equal=performer.said_equal and not doubt)
        if doubt and means is Event.PEER_READY:
            emit(self._log, "resync.needed", peer=self.peer, reason=doubt)
        # No welcome outlives its link, and none is another host's.
        self._owner.push(means, void=lambda: performer.link is not link)

    async def _release(self, link: Link, welcome: Welcome) -> None:
        """Tell a secondary what it does not know yet: that it was detached, and its session is over.

        :raises XencoloError: it refuses, or that can't be recorded.
        """
        await link.ask(Detach(welcome.session))
        await self._performer.save(untold=False)
        emit(self._log, "replication.released", peer=self.peer)
        self.hang_up()

    def _refused(self, refusal: LinkRefused) -> None:
        self._say(refusal)
        if refusal.kind == "generation" and refusal.generation is not None:
            self._owner.superseded(refusal.generation)

    def _lost(self, error: XencoloError) -> None:
        emit(self._log, "replication.peer_lost", peer=self.peer, error=str(error))
        self._lost_at = trio.current_time()
        silent = isinstance(error, LinkSilent)
        self._owner.push(Event.PEER_SILENT if silent else Event.PEER_LOST, str(error))

    def _say(self, error: XencoloError) -> None:
        """Log why there is no link, once for each reason."""
        if str(error) != self.error:
            self.error = str(error)
            emit(self._log, "replication.unreachable", peer=self.peer, error=self.error)
            self._on_change()

    def _give_up_in_time(self) -> None:
        """Detach from a secondary whose daemon stays away: its QEMU may have gone with it."""
        grace = self._performer.host.settings.config.replication.grace
        if self._performer.session is None:
            self._lost_at = None  # in no session, there is nothing to detach from
        elif self._lost_at is not None and trio.current_time() >= self._lost_at + grace:
            self._lost_at = None
            self._owner.push(Event.PEER_SILENT, f"the peer was not back within {grace:g} s")
