"""What a domain's replication does between two events, state by state."""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from xencolo.disk import Role
from xencolo.errors import ReplicationError, XencoloError
from xencolo.graph import PEER_NODE
from xencolo.observed import forbidden, found
from xencolo.plan import Launch
from xencolo.qmp import Event as QmpEvent
from xencolo.replication import Action, Event, Place, Step
from xencolo.status import DomainState, resync_after
from xencolod.log import emit
from xencolod.preparation import assume_role, finish_failover, load_record, nameless, ready_images

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_S = DomainState
_RETRY_MIN = 0.5
#: A resync is looked at this often at first: a small disk should not wait for the next look.
_LOOK_MIN = 0.02
#: Seconds between two lines of a resync's progress in the log.
_PROGRESS_EVERY = 10.0

#: What QEMU says when a copy breaks or is ready: it calls for a look at once.
_ALARMS = {
    *("QUORUM_REPORT_BAD", "QUORUM_FAILURE", "BLOCK_IO_ERROR"),
    *("BLOCK_JOB_ERROR", "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"),
}


def _is_own_write(data: Mapping[str, Any]) -> bool:
    """Whether it is a disk of this host that a quorum says to have refused a write, or to write it out."""
    own = not str(data.get("node-name", "")).startswith(PEER_NODE)
    return own and data.get("type") in {"write", "flush"}


class Watching:
    """The activity of each state; it ends as soon as an event is queued, and begins anew after it."""

    def __init__(self, owner: "Replicator") -> None:
        self._owner = owner
        self._performer = owner.performer
        self._changed = trio.Event()
        self._alarm = trio.Event()
        self._to_prepare: Launch | None = None
        self._prepared: Launch | None = None
        self._failures = 0
        self._checkpoint_at = -math.inf
        self._progress_at = 0.0
        self._activities: Mapping[Place, Callable[[], Awaitable[None]]] = {
            Place(Role.PRIMARY, _S.LAUNCHING): self._begin,
            Place(Role.SECONDARY, _S.LAUNCHING): self._begin,
            Place(Role.PRIMARY, _S.RESYNCING): self._follow_mirror,
            Place(Role.PRIMARY, _S.REPLICATING): self._keep_primary,
            Place(Role.SECONDARY, _S.REPLICATING): self._keep_status,
            Place(Role.SECONDARY, _S.DEGRADED): self._await_primary,
            Place(Role.PRIMARY, _S.FAILED): self._retry,
            Place(Role.SECONDARY, _S.FAILED): self._retry,
        }

    async def run(self) -> None:
        """Do what the state has to do; what goes wrong in it is an event like any other."""
        activity = self._activities.get(self._owner.place)
        try:
            if activity:
                await activity()
        except XencoloError as error:
            if self._performer.lost_qemu and not self._owner.queued:
                self._owner.qemu_lost()
            else:
                self._tell(Event.QEMU_ERROR, str(error))

    def _tell(self, event: Event, error: str | None = None) -> None:
        """Tell what was seen, where it was seen: what is so after the next event too is seen again."""
        if not self._owner.queued:
            self._owner.push(event, error)

    def poke(self) -> None:
        """Look again."""
        self._changed.set()

    def hear(self, event: QmpEvent) -> None:
        """Take what QEMU said."""
        if event.name in _ALARMS:
            self._alarm.set()
        if event.name == "QUORUM_REPORT_BAD" and _is_own_write(event.data):
            performer = self._performer
            self._owner.push(
                Event.DISK_FAILED,
                f"this host's disk refused a write: {event.data.get('error', 'no reason given')}",
                begin=lambda: performer.note(spoiled=True),
                void=lambda: performer.session is None,  # then the guest was told
            )

    async def _wait_changed(self) -> None:
        """Wait for a poke, without a deadline: whoever changes something pokes."""
        await self._changed.wait()
        self._changed = trio.Event()

    async def _wait_alarm(self, seconds: float) -> None:
        """Wait until QEMU says that something is to be looked at, at most so long."""
        with trio.move_on_after(seconds):
            await self._alarm.wait()
        self._alarm = trio.Event()

    # -- before a QEMU runs, and when one is found ---------------------------------------------------

    def permit(self, launch: Launch) -> bool:
        """Return whether all that this QEMU needs is ready; once for each start."""
        if self._prepared == launch and not self._owner.refusal:
            self._prepared = None
            return True
        self._to_prepare = launch
        self.poke()
        return False

    async def _begin(self) -> None:
        """Prepare a start, or look at the QEMU that runs."""
        while True:
            if self._performer.qmp:
                await self._observe()
                return
            if refusal := self._owner.refusal:
                # A QEMU that comes before its turn is looked at first.
                event = forbidden(self._performer.record)
                self._owner.push(event, refusal, void=lambda: self._performer.qmp is not None)
                return
            if self._to_prepare and self._to_prepare != self._prepared:
                await self._prepare(self._to_prepare)
            await self._wait_changed()

    async def _prepare(self, launch: Launch) -> None:
        owner, performer = self._owner, self._performer
        view = owner.seen and owner.seen.view
        if view is None:
            return
        owner.place = Place(launch.role, _S.LAUNCHING)
        performer.describe(view, None)  # and not as the QEMU before had them
        if nameless(view, launch.role):
            self._prepared, self._to_prepare = launch, None
            owner.changed()
            return
        await load_record(performer, view, launch.role)
        if performer.known.unfinished:
            await finish_failover(performer, owner.log)
        elif await assume_role(performer, launch.role):
            await ready_images(performer, launch.role, owner.log)
            self._prepared = launch
        self._to_prepare = None
        owner.place = Place(performer.known.role, _S.LAUNCHING)
        owner.error = None
        owner.changed()

    async def _observe(self) -> None:
        """Find out where the QEMU is in its life."""
        owner, performer = self._owner, self._performer
        seen = owner.seen
        if seen is None or seen.launch is None:
            return
        if why := nameless(seen.view, seen.launch.role):
            self._tell(Event.CLEAN, why)
            return
        await load_record(performer, seen.view, seen.launch.role)
        record = performer.known
        mark = await performer.either.marked()
        performer.session = mark.session
        if mark.session:
            performer.number, performer.checkpoint_time = mark.number, mark.seconds
        owner.place = Place(record.role, _S.LAUNCHING)
        blocks = performer.secondary if record.role is Role.SECONDARY else performer.primary
        refusal = owner.refusal
        self._tell(found(record, await blocks.observe(), refused=bool(refusal)), refusal)

    # -- while it runs -------------------------------------------------------------------------------

    async def _follow_mirror(self) -> None:
        """Follow the resync until every disk is equal."""
        look, longest = _LOOK_MIN, self._performer.host.settings.config.replication.poll
        while True:
            progress = await self._performer.primary.progress()
            if progress.failed:
                raise ReplicationError(f"the resync failed: {progress.failed}")
            if progress.ready:
                self._tell(Event.MIRRORED)
                return
            self._say_progress(progress.done, progress.total)
            await self._wait_alarm(look)
            look = min(look * 2, longest)

    def _say_progress(self, done: int, total: int) -> None:
        now = trio.current_time()
        resync = resync_after(now - (self._performer.times.resync or now), done, total)
        if resync != self._performer.resync:
            self._performer.resync = resync
            self._owner.changed()
        if now >= self._progress_at:
            self._progress_at = now + _PROGRESS_EVERY
            rate, left = resync.rate, resync.left
            emit(self._owner.log, "resync.progress", done=done, total=total, rate=rate, left=left)

    async def _keep_primary(self) -> None:
        """Keep an eye on the status, and take a checkpoint at each interval."""
        await self._keep_status(self._next_checkpoint)
        if not self._owner.queued:
            self._checkpoint_at += (
                self._performer.host.settings.config.replication.checkpoint_interval
            )
            self._owner.push(Event.CHECKPOINT)

    def _next_checkpoint(self) -> float:
        """Return when the next one is due, on trio's clock; one that comes late does not bring it forward."""
        now = trio.current_time()
        interval = self._performer.host.settings.config.replication.checkpoint_interval
        if not interval:
            self._checkpoint_at = -math.inf
            return math.inf
        if not now - interval <= self._checkpoint_at <= now + interval:
            self._checkpoint_at = now + interval
        return self._checkpoint_at

    async def _keep_status(self, until: Callable[[], float] = lambda: math.inf) -> None:
        """Look at QEMU's replication status, at times and when QEMU says that something broke.

        :param until: on trio's clock; asked each time, for a reload may change it.
        """
        self._failures = 0
        while (now := trio.current_time()) < (end := until()):
            await self._performer.check()
            poll = self._performer.host.settings.config.replication.poll
            await self._wait_alarm(min(poll, end - now))

    async def _await_primary(self) -> None:
        """Give up a session whose primary stays away: its checkpoint can outlive this QEMU then."""
        record, answering = self._performer.record, self._owner.answering
        if record is None or not record.in_sync or record.settled:
            return
        grace = self._performer.host.settings.config.replication.grace
        await trio.sleep(grace)
        if answering.peer is None:
            why = f"the primary was not back within {grace:g} s"
            self._owner.push(Event.ABANDONED, why, void=lambda: answering.peer is not None)

    async def _retry(self) -> None:
        """Try again what failed, with growing pauses; what is refused waits for the nodes to change."""
        if self._owner.refusal and not self._owner.incomplete:
            return
        longest = self._performer.host.settings.config.replication.retry_max
        pause = min(_RETRY_MIN * 2**self._failures, longest)
        self._failures = min(self._failures + 1, 16)
        await trio.sleep(pause)
        self._tell(Event.RETRY)

    # -- saying --------------------------------------------------------------------------------------

    def say_done(self, todo: Step) -> None:
        """Log what a step has brought about."""
        performer, times = self._performer, self._performer.times
        log, now = self._owner.log, trio.current_time()
        generation = performer.record and performer.record.generation
        seconds = round(now - times.began, 4)
        paused = round(times.stood, 4)
        if Action.MIRROR in todo.actions:
            emit(
                log,
                "resync.started",
                peer=self._owner.reach.peer,
                total=performer.resync and performer.resync.total,
                generation=generation,
            )
        elif Action.ATTACH in todo.actions:
            performer.resync = None
            if Action.CONNECT in todo.actions:
                emit(log, "resync.skipped", peer=self._owner.reach.peer, generation=generation)
            whole = round(now - (times.resync or times.began), 4)
            emit(log, "resync.done", seconds=whole, paused=paused, generation=generation)
        elif Action.CHECKPOINT_PEER in todo.actions:
            emit(
                log,
                "checkpoint.done",
                number=performer.number,
                seconds=seconds,
                paused=paused,
                generation=generation,
            )
            self._owner.changed()
        elif Action.CHECKPOINT in todo.actions:
            emit(log, "checkpoint.taken", number=performer.number)
            self._owner.changed()
        elif Action.RECORD_SETTLED in todo.actions:
            emit(log, "checkpoint.settled", generation=generation)
            self._owner.changed()
        elif Action.RECORD_PROMOTED in todo.actions:
            emit(log, "failover.done", generation=generation, seconds=seconds)
