"""One domain's replication: events are queued, the table says what they mean, the performer does it.

Nothing is remembered that can't be found again: where a QEMU is in its life is read from the QEMU, what
outlives it from the domain's record (:mod:`xencolod.watching`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from xencolo.disk import Role
from xencolo.errors import LinkClosed, LinkError, QmpCommandError, UnexpectedEvent, XencoloError
from xencolo.observed import (
    forbidden,
    hangs_up,
    is_moot,
    minds_bypass,
    needs_fencing,
    still,
    supersedes,
)
from xencolo.plan import Domain, Launch
from xencolo.qmp import Event as QmpEvent
from xencolo.record import NO_CHECKPOINT, latest_generation
from xencolo.replication import Action, Event, Place, Step, failure, step
from xencolo.status import DomainState
from xencolod.answering import Answering
from xencolod.fencing import fence
from xencolod.group import Host
from xencolod.log import Logger, emit
from xencolod.occurrences import Occurrence, Occurrences
from xencolod.performer import Performer
from xencolod.qmp import Qmp
from xencolod.reach import Reach
from xencolod.watching import Watching

_S = DomainState

#: Seconds between two looks whether a step has let the guest run again.
_LOOK = 0.01
#: Where the domain is alone: a link that led nowhere is given up, and tried again later.
_ALONE = {_S.STANDALONE, _S.DEGRADED, _S.PROMOTED, _S.LAUNCHING, _S.FAILED}
#: Where a secondary that holds a checkpoint may have lost its primary.
_SUSPENDED = {_S.DEGRADED, _S.LAUNCHING, _S.FAILED}
_FAILURES = {Event.ACTION_FAILED, Event.QEMU_ERROR}
#: To fill in: how many.
_UNKNOWN = (
    "QEMU has {} more COLO disks than the nodes describe, and all of a domain are replicated, or none: let "
    "the nodes describe them as QEMU has them, or restart the domain"
)


class Seen(NamedTuple):
    """What the reconciler saw of the domain last.

    :ivar launch: what its QEMU runs with.
    :ivar bypassed: vdevs of the COLO disks that the guest's PV driver writes to.
    :ivar refusal: why the domain can't replicate as it is described.
    """

    view: Domain
    qmp: Qmp | None
    launch: Launch | None
    bypassed: tuple[str, ...]
    refusal: str | None


class Replicator:
    """Replicates the COLO disks of one domain.

    :ivar place: role in force and state.
    :ivar seen: what the nodes and the QEMU were when the reconciler looked last.
    :ivar refusal: why nodes or record forbid to replicate, None where they don't.
    :ivar error: why it is as it is, where there is a reason.
    :ivar incomplete: whether an action of the last step failed.
    """

    def __init__(
        self, domid: int, host: Host, renew: Callable[[], None], on_change: Callable[[int], None]
    ) -> None:
        self.domid = domid
        self.place = Place(Role.PRIMARY, _S.LAUNCHING)
        self.seen: Seen | None = None
        self.refusal: str | None = None
        self.error: str | None = None
        self.incomplete = False
        self.performer = Performer(domid, host, renew)
        self.log: Logger = host.settings.log.bind(domid=domid)
        self.reach = Reach(self, self.log, self.changed)
        self.watching = Watching(self)
        self.answering = Answering(self)
        self._host = host
        self._on_change = on_change
        self._renew = renew
        self._demoted = False
        self._given: Qmp | None = None
        self._pausing = self._resting = False
        self._queue = Occurrences()
        self._fence = trio.CancelScope()

    # -- what the reconciler calls -------------------------------------------------------------------

    def see(self, seen: Seen) -> None:
        """Take what the reconciler saw; nothing is awaited."""
        before, self.seen = self.seen, seen
        self.performer.describe(seen.view, seen.launch)
        self._take_qmp(seen.qmp if self.performer.disks else None)
        self._accept(seen, before)
        self._demote(seen)
        self.poke()

    def _take_qmp(self, qmp: Qmp | None) -> None:
        """Speak to this QEMU from now on."""
        if qmp is self._given:
            return
        if self.performer.qmp:
            self.performer.fresh = False
            self.push(Event.QEMU_GONE)
        elif qmp and self.place.state is _S.FAILED:
            # What forbids to replicate may ask something of this QEMU too.
            self.push(Event.RETRY)
        self.performer.qmp = self._given = qmp
        self.performer.measure_anew()

    @property
    def peer(self) -> str | None:
        """The other side: of a primary whom it reaches for, of a secondary who speaks to it now."""
        return self.reach.peer if self.place.role is Role.PRIMARY else self.answering.peer

    def holds_checkpoint(self, launch: Launch | None) -> bool:
        """Whether its QEMU has, or is taking over with, the last checkpoint of a primary that was lost.

        So it may be as long as nobody has looked, or it can't replicate as it is described.

        :param launch: what that QEMU runs with.
        """
        if launch is None or launch.role is not Role.SECONDARY:
            return False
        if self.performer.record is None:
            return True
        role, state = self.place
        suspended = state in _SUSPENDED and self.performer.in_sync
        return role is Role.SECONDARY and (suspended or state is _S.FAILING_OVER)

    def changed(self) -> None:
        """Have the reconciler look at the domain again, and what is published with it."""
        self._on_change(self.domid)

    @property
    def accepted(self) -> bool:
        """Whether nothing forbids to replicate now."""
        return self.obstacle is None

    @property
    def obstacle(self) -> str | None:
        """What forbids to replicate now."""
        if self.refusal is None and self.seen and self.seen.bypassed:
            return _bypassed(self.seen.bypassed)
        return self.refusal

    def _accept(self, seen: Seen, before: Seen | None) -> None:
        """Compare what forbids to replicate now with what did before."""
        was, self.refusal = self.refusal, seen.refusal
        if self.refusal is None and self.performer.unknown:
            self.refusal = _UNKNOWN.format(self.performer.unknown)
        if self.refusal is None and seen.view.wanted_role is Role.PRIMARY:
            self.refusal = self.performer.superseded
        if self.refusal and self.refusal != was:
            emit(self.log, "replication.refused", error=self.refusal)
            # Launching, the record may not be known yet, which says more: who looks at QEMU tells of both.
            if self.place.state is not _S.LAUNCHING:
                self.push(forbidden(self.performer.record), self.refusal)
        elif was and not self.refusal and self.place.state is _S.FAILED:
            self.push(Event.ACCEPTED)
        if seen.bypassed and (before is None or before.bypassed != seen.bypassed):
            emit(self.log, "replication.bypassed", vdevs=list(seen.bypassed))
        if seen.bypassed and minds_bypass(
            self.place,
            self.performer.record,
            session=self.performer.session is not None,
            linked=self.answering.peer is not None,
        ):
            self.push(Event.BYPASSED, _bypassed(seen.bypassed))

    def _demote(self, seen: Seen) -> None:
        """Replace the QEMU of a promoted domain that the operator makes a secondary again.

        It has a secondary's drives already, but its replication is spent. What the nodes say is believed when
        it is read a second time: at first it may have been read before the promotion wrote the role.
        """
        record, qemu = self.performer.record, seen.launch
        wanted = seen.view.role is Role.SECONDARY and record is not None and record.promoted
        may = self._host.settings.config.qemu.restart
        demoted = bool(may and wanted and seen.qmp and qemu and qemu.role is Role.SECONDARY)
        if demoted and self._demoted:
            self._renew()
        elif demoted:
            self.changed()
        self._demoted = demoted

    def permit(self, launch: Launch) -> bool:
        """Return whether this QEMU may be started now; if not, what it needs is prepared first."""
        if launch.role is Role.NONE or not self.performer.disks:
            return True
        return self.watching.permit(launch)

    def hear(self, event: QmpEvent) -> None:
        """Take what QEMU said over QMP."""
        self.watching.hear(event)

    def poke(self) -> None:
        """Look again at what may be done now."""
        self.reach.poke()
        self.watching.poke()

    # -- events --------------------------------------------------------------------------------------

    def push(
        self,
        event: Event,
        error: str | None = None,
        begin: Callable[[], None] = lambda: None,
        void: Callable[[], bool] = lambda: False,
    ) -> Occurrence:
        """Queue an event; nothing is awaited."""
        occurrence = Occurrence(event, error, begin, void)
        self._queue.add(occurrence)
        return occurrence

    @property
    def queued(self) -> bool:
        """Whether an event waits to be dealt with."""
        return bool(self._queue)

    def superseded(self, generation: int) -> None:
        """Tell that the other host is the primary of a later generation."""
        own = self.performer.record
        if own and supersedes(generation, own):
            self.performer.note(superseded_by=generation)
            emit(
                self.log,
                "replication.superseded",
                generation=own.generation,
                other=generation,
                peer=self.reach.peer,
            )
            self.push(Event.SUPERSEDED, self.performer.superseded)

    async def run(self) -> None:
        """Live until cancelled; the QEMU stays as it is then, and is found so again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reach.run)
            while True:
                occurrence = await self._next()
                if self._resting and not self._holds_guest:
                    await trio.sleep_forever()  # the one who had it rest cancels it
                if await self._take(occurrence):
                    self._see_to_fence(nursery, occurrence.event)

    @property
    def _holds_guest(self) -> bool:
        """Whether a step has the guest stand, or what is left to do after it."""
        performer = self.performer
        stands = performer.times.paused is not None and performer.qmp and not performer.superseded
        return bool(self._pausing or stands) and self.place.state is not _S.FAILING_OVER

    async def rest(self) -> None:
        """Begin nothing any more; return when no guest stands that nobody would let run again.

        A failover is not waited for: who comes next finishes it.
        """
        self._resting = True
        while self._holds_guest:
            await trio.sleep(_LOOK)

    async def _next(self) -> Occurrence:
        """Return the next event; until there is one, do what the state has to do meanwhile."""
        if not self._queue:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watching.run)
                await self._queue.wait()
                nursery.cancel_scope.cancel()
        return self._queue.take()

    async def _take(self, occurrence: Occurrence) -> bool:
        """Do what the table says; return whether it says anything and was done."""
        before = role, state = self.place
        if role is Role.PRIMARY:
            occurrence.event = still(occurrence.event, self.performer.record)
        event = occurrence.event
        if is_moot(before, event) or occurrence.void():
            occurrence.finish()
            return False
        try:
            todo = step(self.place, event)
        except UnexpectedEvent as error:
            self._say_unexpected(occurrence, error)
            return False
        emit(self.log, "replication.step", cause=event.value, role=role.value, state=state.value)
        occurrence.begin()
        if before.role is Role.SECONDARY and hangs_up(event):
            self.answering.hang_up(event)
        self._move(Place(role, todo.during), occurrence)
        try:
            await self._perform(todo, event)
        except XencoloError as error:
            occurrence.finish(error)
            return False
        finally:
            self._pausing = False
        # What fails in a state that does nothing about it is left to do, be it only to look at QEMU.
        left = self.incomplete or event in _FAILURES
        self.incomplete = left and not todo.actions and todo.then.state is _S.FAILED
        self._move(todo.then, occurrence)
        if todo.then.state in _ALONE and event is not Event.PEER_AGREES:
            self.reach.hang_up()
        occurrence.finish()
        return True

    def _say_unexpected(self, occurrence: Occurrence, error: UnexpectedEvent) -> None:
        emit(
            self.log,
            "replication.unexpected",
            cause=error.event,
            state=error.state,
            role=error.role,
            error=occurrence.error,
        )
        occurrence.finish(error)

    async def _perform(self, todo: Step, event: Event) -> None:
        """Perform the actions of a step.

        :raises XencoloError: of the first that failed, after its event was queued.
        """
        performer = self.performer
        performer.begin()
        self._pausing = Action.PAUSE in todo.actions
        if Action.RECORD_FAILOVER in todo.actions:
            generation = latest_generation(performer.known, performer.peer_generation) + 1
            emit(self.log, "failover.started", generation=generation, cause=event.value)
        for action in todo.actions:
            began = trio.current_time()
            try:
                await performer.perform(action)
            except XencoloError as error:
                self._failed(action, event, error)
                raise
            if todo.during is _S.FAILING_OVER:
                seconds = round(trio.current_time() - began, 4)
                emit(self.log, "failover.step", step=action.value, seconds=seconds)
        self.watching.say_done(todo)

    def _failed(self, action: Action, event: Event, error: XencoloError) -> None:
        self.incomplete = True
        emit(
            self.log, "replication.failed", action=action.value, cause=event.value, error=str(error)
        )
        if self.performer.lost_qemu:
            self.qemu_lost()
            return
        in_part = isinstance(error, QmpCommandError) and len(self.performer.disks) > 1
        closed = isinstance(error, LinkClosed)
        what = failure(self.place.role, action, closed=closed, in_part=in_part)
        if what is Event.TORN:
            self.performer.note(**NO_CHECKPOINT)  # recorded or not
        self._queue.put_first(Occurrence(what, str(error)))
        if isinstance(error, LinkError):
            self.reach.hang_up()

    def qemu_lost(self) -> None:
        """Note that the connection to QEMU has ended, without waiting for the reconciler to see it."""
        self.performer.qmp, self.performer.fresh = None, False
        self._queue.put_first(Occurrence(Event.QEMU_GONE))

    def _move(self, place: Place, occurrence: Occurrence) -> None:
        """Go to a place; every change is logged and published."""
        before, self.place = self.place, place
        if before == place:
            if occurrence.error and occurrence.error != self.error:
                self.error = occurrence.error
                self.changed()
            return
        self.error = occurrence.error
        record = self.performer.record
        emit(
            self.log,
            "replication.state",
            state=place.state.value,
            before=before.state.value,
            role=place.role.value,
            cause=occurrence.event.value,
            generation=record and record.generation,
            peer=self.peer,
            error=self.error,
        )
        self.poke()
        self.changed()

    # -- fencing -------------------------------------------------------------------------------------

    def _see_to_fence(self, nursery: trio.Nursery, event: Event) -> None:
        """Run the fencing command, where the configuration has one, once for each loss of the peer."""
        by_command = self._host.settings.config.failover.policy == "command"
        lost = self.answering.peer is None and needs_fencing(self.place, event)
        if self.place != Place(Role.SECONDARY, _S.DEGRADED):
            self._fence.cancel()
        elif by_command and lost:
            self._fence.cancel()
            self._fence = trio.CancelScope()
            nursery.start_soon(self._run_fence, self._fence)

    async def _run_fence(self, scope: trio.CancelScope) -> None:
        with scope:
            if await fence(self):
                self.push(Event.FENCED, void=lambda: not self.performer.in_sync)


def _bypassed(vdevs: Sequence[str]) -> str:
    return f"bypassed by the guest's PV driver: {', '.join(vdevs)}"
