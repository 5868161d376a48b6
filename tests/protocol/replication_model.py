"""Hosts that live by the table, with abstract QEMUs, disks, records and links, for the property test.

Data are numbers: each write of a guest makes a new one. What the daemon derives from what it sees comes
from :mod:`xencolo.observed`, as in the daemon; what it does is the abstraction of ``xencolod.performer``.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from xencolo.disk import Format, Role
from xencolo.errors import UnexpectedEvent
from xencolo.link import Welcome
from xencolo.observed import (
    Attachment,
    Service,
    forbidden,
    found,
    hangs_up,
    is_moot,
    is_prepared,
    is_superseded,
    may_agree,
    met,
    minds_bypass,
    rejection,
    still,
    supersedes,
)
from xencolo.record import NO_CHECKPOINT, Chain, Record, Settled, latest_generation
from xencolo.replication import Action, Event, Place, failover_event, failure, step
from xencolo.status import DomainState as State

UUID = "11111111-2222-3333-4444-555555555555"
CHAIN = Chain(devid=768, secondary="/d", format=Format.RAW, hidden="/h", active="/a")
#: A disk that is partly copied.
MIXED = -1
ALONE = {State.STANDALONE, State.DEGRADED, State.PROMOTED}
IN_SESSION = {State.REPLICATING, State.DEGRADED}
#: What a peer or the operator may ask at any time: only these may be refused as unexpected.
ASKED = {
    *(Event.PEER_PREPARES, Event.PEER_STARTS, Event.PEER_CHECKPOINTS, Event.PEER_DETACHES),
    *(Event.PEER_AGREES, Event.CHECKPOINT, Event.DETACH),
    *(Event.FAILOVER, Event.FORCE_FAILOVER, Event.FENCED),
}


class Fault(Exception):
    """An action failed."""


class LinkDown(Fault):
    """The link went while a question was asked."""


class Refused(Fault):
    """The peer refused."""


class Died(Exception):
    """A daemon was killed in the middle of an action."""


@dataclass(eq=False)
class Qemu:
    host: "Host"
    paused: bool = False
    session: str | None = None
    # as a primary
    target: "Qemu | None" = None
    mirroring: bool = False
    attached: bool = False
    # as a secondary
    serving: bool = False
    stage: str = "none"
    dead: bool = False

    @property
    def connected(self) -> bool:
        return bool(self.target and not self.target.dead and self.target.serving)

    @property
    def attachment(self) -> Attachment:
        if not (self.session or self.target):
            return Attachment.CLEAN
        whole = self.attached and self.session and self.connected and not self.paused
        return Attachment.ATTACHED if whole else Attachment.PARTIAL

    @property
    def service(self) -> Service:
        if self.stage != "none":
            return Service.REPLICATING if self.stage == "running" else Service.SPENT
        return Service.SERVING if self.serving else Service.FRESH


class Waiting(NamedTuple):
    event: Event
    begin: Callable[[], None] = lambda: None
    void: Callable[[], bool] = lambda: False


@dataclass(eq=False)
class Daemon:
    place: Place
    queue: deque["Waiting"] = field(default_factory=deque)
    record: Record | None = None
    qmp: Qemu | None = None
    session: str | None = None
    ended: str | None = None
    link: "Host | None" = None
    connection: int = 0
    peer: "Host | None" = None
    heard: int | None = None
    heard_hello: int | None = None
    refused: bool = False
    incomplete: bool = False
    lost: bool = False

    def push(
        self,
        event: Event,
        begin: Callable[[], None] = lambda: None,
        void: Callable[[], bool] = lambda: False,
    ) -> None:
        self.queue.append(Waiting(event, begin, void))


@dataclass(eq=False)
class Host:
    world: "World"
    index: int
    node: Role
    raw: int = 0
    base: int | None = None
    qemu: Qemu | None = None
    daemon: Daemon | None = None
    saved: Record | None = None
    nodes_accept: bool = True
    bypassed: bool = False
    #: The secondary disk has what its own guest wrote past QEMU.
    spoilt: bool = False

    # -- what outlives a daemon ---------------------------------------------------------------------

    @property
    def record(self) -> Record:
        assert self.saved
        return self.saved

    def save(self, **changes: object) -> None:
        self.saved = msgspec.structs.replace(self.record, **changes)
        assert self.daemon
        self.daemon.record = self.saved

    @property
    def runs(self) -> bool:
        """Whether a guest writes here as the primary's."""
        return bool(
            self.qemu
            and not self.qemu.paused
            and self.saved
            and self.saved.role is Role.PRIMARY
            and self.qemu.stage in {"none", "committed"}
        )

    @property
    def writers(self) -> "dict[int, Host]":
        """The primaries, by their data, that write to this secondary."""
        hosts = (host for host in self.world.hosts if host.qemu and self.qemu)
        return {host.raw: host for host in hosts if host.qemu and host.qemu.target is self.qemu}

    def write(self) -> None:
        qemu = self.qemu
        assert qemu
        self.raw = self.world.next_number()
        if qemu.target and qemu.connected and (qemu.mirroring or qemu.attached):
            assert not qemu.target.host.record.settled, "written to while it counts as settled"
            qemu.target.host.raw = MIXED if qemu.mirroring else self.raw

    def kill_qemu(self) -> None:
        if self.qemu:
            self.qemu.dead = True
            self.qemu = None

    def kill_daemon(self) -> None:
        self.world.drop_links(self)
        self.daemon = None

    def start_daemon(self) -> None:
        self.daemon = Daemon(Place(Role.PRIMARY, State.LAUNCHING))
        self.see()

    # -- what the reconciler does -------------------------------------------------------------------

    @property
    def why_refused(self) -> bool:
        record = self.daemon and self.daemon.record
        superseded = bool(record and is_superseded(record) and self.node is Role.PRIMARY)
        return superseded or not self.nodes_accept

    def see(self) -> None:
        daemon = self.daemon
        if not daemon:
            return
        if daemon.qmp is not self.qemu:
            if daemon.qmp:
                daemon.push(Event.QEMU_GONE)
            elif self.qemu and daemon.place.state is State.FAILED:
                daemon.push(Event.RETRY)
            daemon.qmp = self.qemu
        was, daemon.refused = daemon.refused, self.why_refused
        if daemon.refused and not was:
            daemon.push(forbidden(daemon.record))
        elif was and not daemon.refused and daemon.place.state is State.FAILED:
            daemon.push(Event.ACCEPTED)
        if self.bypassed and minds_bypass(
            daemon.place,
            daemon.record,
            session=daemon.session is not None,
            linked=bool(daemon.peer and daemon.peer.daemon),
        ):
            daemon.push(Event.BYPASSED)
        self.spoilt |= self.bypassed

    def reconcile(self) -> None:
        """End a QEMU that runs with the drives of a role that the operator has taken from it."""
        if (
            self.qemu
            and self.saved
            and self.saved.role is Role.PRIMARY
            and self.node is not Role.PRIMARY
        ):
            self.kill_qemu()
        self.see()

    # -- what is done between two events ------------------------------------------------------------

    def load_record(self) -> None:
        daemon = self.daemon
        assert daemon
        if self.saved is None:
            self.saved = Record(uuid=UUID, name="g", role=self.node, generation=1)
        daemon.record = self.saved
        if daemon.heard and supersedes(daemon.heard, self.saved):
            daemon.record = msgspec.structs.replace(self.saved, superseded_by=daemon.heard)

    def idle(self) -> None:
        """Do what the state has to do while no event is queued."""
        daemon = self.daemon
        if not daemon or daemon.queue:
            return
        if daemon.place.state is State.LAUNCHING:
            self._begin(daemon)
        elif daemon.place.state is State.FAILED and not (daemon.refused and not daemon.incomplete):
            daemon.push(Event.RETRY)
        elif daemon.place == Place(Role.PRIMARY, State.RESYNCING):
            self._follow(daemon)
        elif daemon.place.state is State.REPLICATING and daemon.qmp and self._fault(daemon.qmp):
            daemon.push(Event.QEMU_ERROR)

    def _begin(self, daemon: Daemon) -> None:
        if daemon.qmp:
            self.load_record()
            daemon.session = daemon.qmp.session
            role = self.record.role
            seen = daemon.qmp.service if role is Role.SECONDARY else daemon.qmp.attachment
            daemon.place = Place(role, State.LAUNCHING)
            assert daemon.record
            daemon.push(found(daemon.record, seen, refused=daemon.refused))
        elif daemon.refused:
            daemon.push(forbidden(daemon.record))
        else:
            self.launch(daemon)

    def launch(self, daemon: Daemon) -> None:
        self.load_record()
        record = self.record
        daemon.place = Place(record.role, State.LAUNCHING)
        if record.unfinished:
            assert self.base is not None
            self.raw = self.base
            self._promote(daemon)
            daemon.place = Place(Role.PRIMARY, State.LAUNCHING)
            return
        if record.role is Role.SECONDARY and self.node is Role.PRIMARY:
            daemon.push(Event.QEMU_ERROR)  # only a failover may bring it there
            return
        if record.role is Role.PRIMARY and self.node is Role.SECONDARY:
            self.save(
                role=Role.SECONDARY,
                generation=latest_generation(record),
                **NO_CHECKPOINT,
                **dict.fromkeys(["promoted", "detached"], False),
                **dict.fromkeys(["superseded_by", "peer"]),
            )
            daemon.place = Place(Role.SECONDARY, State.LAUNCHING)
        self.see()
        if daemon.refused:
            return
        if self.record.settled:
            assert self.base is not None
            assert self.record.in_sync
            self.raw = self.base
        elif self.record.role is Role.SECONDARY:
            self.save(**NO_CHECKPOINT)
            self.base = None
        self.qemu = daemon.qmp = Qemu(self)

    def _follow(self, daemon: Daemon) -> None:
        qemu = daemon.qmp
        if qemu and qemu.mirroring and qemu.connected:
            assert qemu.target
            qemu.target.host.raw = self.raw
            daemon.push(Event.MIRRORED)
        else:
            daemon.push(Event.QEMU_ERROR)

    @staticmethod
    def _fault(qemu: Qemu) -> bool:
        if qemu.host.record.role is Role.PRIMARY:
            return not (qemu.attached and qemu.connected)
        return qemu.stage != "running"

    def abandon(self) -> None:
        """Have a secondary wait for its primary for as long as it does."""
        daemon = self.daemon
        place = Place(Role.SECONDARY, State.DEGRADED)
        if not daemon or daemon.queue or daemon.place != place or not daemon.record:
            return
        if daemon.record.in_sync and not daemon.record.settled:
            daemon.push(Event.ABANDONED, void=lambda: bool(daemon.peer and daemon.peer.daemon))

    # -- events -------------------------------------------------------------------------------------

    def process(self) -> bool:
        """Take one event; return whether it was done whole."""
        daemon = self.daemon
        assert daemon
        event, begin, void = daemon.queue.popleft()
        before = daemon.place
        if before.role is Role.PRIMARY:
            event = still(event, daemon.record)
        if is_moot(before, event) or void():
            return False
        try:
            todo = step(before, event)
        except UnexpectedEvent:
            assert event in ASKED, f"{event} is found, and not expected where it is: {before}"
            return False
        begin()
        if before.role is Role.SECONDARY and hangs_up(event):
            self.world.hang_up(self)
        daemon.place = Place(before.role, todo.during)
        try:
            for action in todo.actions:
                self.world.tick(self)
                self.perform(action)
                self.world.tick(self)
        except Fault as fault:
            return self._failed(daemon, action, fault)
        except Died:
            return False
        left = daemon.incomplete or event in {Event.ACTION_FAILED, Event.QEMU_ERROR}
        daemon.incomplete = left and not todo.actions and todo.then.state is State.FAILED
        daemon.place = todo.then
        self.world.arrows.add((before, event))
        if (
            todo.then.state in {*ALONE, State.LAUNCHING, State.FAILED}
            and event is not Event.PEER_AGREES
        ):
            daemon.link = None
        self.see()
        return True

    def _failed(self, daemon: Daemon, action: Action, fault: Fault) -> bool:
        daemon.incomplete = True
        if daemon.qmp and daemon.qmp.dead:
            daemon.qmp = None
            what = Event.QEMU_GONE
        else:
            what = failure(daemon.place.role, action, closed=isinstance(fault, LinkDown))
            if isinstance(fault, LinkDown | Refused):
                daemon.link = None
        daemon.queue.appendleft(Waiting(what))
        return False

    def drain(self) -> None:
        for _ in range(200):
            if not self.daemon or not self.daemon.queue:
                return
            self.process()
        raise AssertionError(f"events without end: {self.daemon}")

    # -- the link -----------------------------------------------------------------------------------

    @property
    def address(self) -> "Host | None":
        record = self.record
        if record.peer:
            return self.world.hosts[int(record.peer)]
        return (
            None if record.promoted else self.world.hosts[(self.index + 1) % len(self.world.hosts)]
        )

    @property
    def may_reach(self) -> bool:
        daemon = self.daemon
        return bool(
            daemon
            and not daemon.refused
            and not self.bypassed
            and daemon.place.role is Role.PRIMARY
            and daemon.place.state in ALONE
            and daemon.qmp
            and daemon.record
            and not daemon.record.detached
            and not daemon.link
            and self.address
        )

    def hello(self, *, equal: bool) -> None:
        """Reach for the peer once."""
        daemon, peer = self.daemon, self.address
        assert daemon
        assert peer
        if daemon.session is not None:
            daemon.lost = True
        if not peer.daemon or peer is self or not self.world.reachable:
            return
        try:
            welcome = peer.welcome(self)
        except Refused as refusal:
            kind, generation = refusal.args
            if kind == "generation":
                self.superseded(generation)
            return
        except LinkDown:
            return
        assert peer.record.role is Role.SECONDARY, "a primary is welcome to a primary"
        if self.daemon is daemon and peer.daemon:
            daemon.link, daemon.lost = peer, False
            # Each connection is another one, to the same host too.
            daemon.connection = connection = self.world.next_number()
            means = met(daemon.session, welcome, equal=equal and peer.raw == self.raw)
            daemon.push(means, void=lambda: daemon.link is None or daemon.connection != connection)

    def superseded(self, generation: int) -> None:
        daemon = self.daemon
        assert daemon
        if supersedes(generation, self.record):
            daemon.heard = generation
            daemon.record = msgspec.structs.replace(self.record, superseded_by=generation)
            daemon.push(Event.SUPERSEDED)

    def welcome(self, caller: "Host") -> Welcome:
        daemon = self.daemon
        assert daemon
        assert caller.daemon
        if daemon.record is None:
            raise Refused("busy", None)
        if kind := rejection(self.record, caller.record.generation):
            if kind == "state":
                self.superseded(caller.record.generation)
            raise Refused(kind, self.record.generation)
        if daemon.refused or self.bypassed:
            raise Refused("busy", None)
        if daemon.peer and daemon.peer is not caller and daemon.peer.daemon:
            daemon.peer.daemon.link = None
            daemon.peer.daemon.push(Event.PEER_LOST)
        daemon.peer, daemon.heard_hello = caller, caller.record.generation
        may = may_agree(daemon.place, self.record, daemon.session, caller.daemon.session)
        if may and daemon.qmp and not self._fault(daemon.qmp):
            self.told(Event.PEER_AGREES, caller)
        elif daemon.place.state is State.REPLICATING:
            self.told(Event.PEER_LOST, caller)
        return Welcome(
            generation=self.record.generation,
            state=daemon.place.state.value,
            session=daemon.session,
            in_sync=self.record.in_sync,
            host="h",
            port=1,
            encrypted=True,
        )

    def told(self, event: Event, caller: "Host", begin: Callable[[], None] = lambda: None) -> None:
        """Have an event from the peer dealt with, after those before it."""
        daemon = self.daemon
        assert daemon
        while daemon.queue:
            self.process()
            if self.daemon is not daemon:
                raise LinkDown
        if daemon.peer is not caller:
            raise LinkDown
        daemon.push(event, begin)
        done = self.process()
        if self.daemon is not daemon:
            raise LinkDown
        if not done:
            raise Refused("failed", None)

    def ask(self, event: Event, session: str) -> None:
        daemon = self.daemon
        assert daemon
        peer = daemon.link
        other = peer.daemon if peer else None
        if not peer or not other or other.peer is not self:
            raise LinkDown
        if event is Event.PEER_PREPARES:
            if not is_prepared(other.place) and other.place.state not in IN_SESSION:
                raise Refused("busy", None)
            peer.told(event, self, lambda: setattr(other, "session", session))
            if not is_prepared(other.place):
                raise Refused("busy", None)
        elif other.session != session:
            raise Refused("state", None)
        else:
            peer.told(event, self)
        if daemon.link is not peer:
            raise LinkDown

    # -- actions ------------------------------------------------------------------------------------

    def perform(self, action: Action) -> None:
        daemon = self.daemon
        assert daemon
        if action in _WITHOUT_QEMU:
            _WITHOUT_QEMU[action](self, daemon)
            return
        qemu = daemon.qmp
        if qemu is None or qemu.dead:
            if qemu is None and action in {Action.PAUSE, Action.RESUME}:
                return
            if action is Action.DETACH:
                daemon.ended, daemon.session = daemon.session, None
                if qemu is None:
                    return
            raise Fault(action)
        _WITH_QEMU[action](self, daemon, qemu)

    def _promote(self, daemon: Daemon) -> None:
        assert self.raw == self.base, "what is promoted holds exactly the last checkpoint"
        self.node = Role.PRIMARY
        self.save(
            role=Role.PRIMARY, promoted=True, **NO_CHECKPOINT, unfinished=(), superseded_by=None
        )
        daemon.session = None
        if daemon.qmp:
            daemon.qmp.session = None

    def _release(self, daemon: Daemon) -> None:
        if daemon.ended and daemon.link:
            try:
                self.ask(Event.PEER_DETACHES, daemon.ended)
            except LinkDown:
                daemon.link = None

    def _prepare_peer(self, daemon: Daemon) -> None:
        daemon.session = f"{self.world.next_number():x}"
        self.ask(Event.PEER_PREPARES, daemon.session)

    def _renew(self, daemon: Daemon) -> None:
        self._stale(daemon)
        daemon.session = daemon.qmp = None
        self.kill_qemu()

    def _stale(self, daemon: Daemon) -> None:
        generation = max(daemon.heard_hello or 1, self.record.generation)
        self.save(**NO_CHECKPOINT, generation=generation)

    def _record_in_sync(self, _: Daemon) -> None:
        assert not self.writers or self.base in self.writers, "in sync with something else"
        self.save(in_sync=True)

    def _connect(self, daemon: Daemon, qemu: Qemu) -> None:
        assert qemu.target is None, "a stale node stands"
        assert not qemu.attached, "a stale node stands"
        peer = daemon.link
        if not peer or not peer.qemu or not peer.qemu.serving:
            raise Fault
        qemu.target = peer.qemu

    def _mirror(self, _: Daemon, qemu: Qemu) -> None:
        if not qemu.connected or not qemu.target:
            raise Fault
        assert not qemu.target.host.record.in_sync, "overwritten while it counts as a checkpoint"
        qemu.mirroring, qemu.target.host.raw = True, MIXED
        qemu.target.host.spoilt = qemu.target.host.bypassed

    def _finish_mirror(self, _: Daemon, qemu: Qemu) -> None:
        if not qemu.mirroring or not qemu.connected or not qemu.target:
            raise Fault
        assert qemu.paused, "the guest writes while the mirror ends"
        qemu.mirroring, qemu.target.host.raw = False, self.raw

    def _attach(self, _: Daemon, qemu: Qemu) -> None:
        assert not qemu.attached, "a stale node stands"
        if not qemu.connected or not qemu.target:
            raise Fault
        assert qemu.paused, "attached while the guest writes"
        assert qemu.target.stage == "running", "attached to what does not replicate"
        assert qemu.target.host.base == self.raw, "attached to disks that differ"
        qemu.attached = True

    @staticmethod
    def _detach(_: "Host", daemon: Daemon, qemu: Qemu) -> None:
        daemon.ended, daemon.session = daemon.session, None
        qemu.attached = qemu.mirroring = False
        qemu.target = qemu.session = None

    def _check(self, _: Daemon, qemu: Qemu) -> None:
        if self._fault(qemu):
            raise Fault

    def _checkpoint(self, _: Daemon, qemu: Qemu) -> None:
        if self.record.role is Role.PRIMARY:
            return
        if qemu.stage != "running":
            raise Fault
        assert not any(host.runs for host in self.writers.values()), "the guest writes meanwhile"
        assert not self.writers or self.raw in self.writers, "a checkpoint of something else"
        self.base = self.raw

    def _record_settled(self, daemon: Daemon, qemu: Qemu) -> None:
        assert not qemu.serving, "the primary writes on"
        assert self.record.in_sync
        assert self.base is not None
        qemu.session = daemon.session = None
        self.save(settled=Settled(disks=(CHAIN,)))

    def _start(self, _: Daemon, qemu: Qemu) -> None:
        if qemu.stage == "running":
            return
        if qemu.service is not Service.SERVING:
            raise Fault
        qemu.stage, self.base = "running", self.raw

    def _failover(self, _: Daemon, qemu: Qemu) -> None:
        if qemu.stage == "none":
            raise Fault
        assert self.record.unfinished, "a failover that is not recorded"
        assert not qemu.serving, "the primary writes on"
        if qemu.stage == "running":
            assert self.base is not None
            qemu.stage, self.raw = "stopped", self.base

    def _await_commit(self, _: Daemon, qemu: Qemu) -> None:
        assert qemu.stage in {"stopped", "committed"}
        qemu.stage = "committed"

    def _flush(self, _: Daemon, qemu: Qemu) -> None:
        over = not self.record.unfinished or qemu.stage == "committed"
        assert over, "promoted before all is written"


def _set(name: str, *, value: bool) -> Callable[[Host, Daemon, Qemu], None]:
    return lambda _host, _daemon, qemu: setattr(qemu, name, value)


def _asking(event: Event) -> Callable[[Host, Daemon], None]:
    return lambda host, daemon: host.ask(event, daemon.session or "")


_WITHOUT_QEMU: dict[Action, Callable[[Host, Daemon], None]] = {
    Action.PREPARE_PEER: Host._prepare_peer,
    Action.START_PEER: _asking(Event.PEER_STARTS),
    Action.CHECKPOINT_PEER: _asking(Event.PEER_CHECKPOINTS),
    Action.RELEASE_PEER: Host._release,
    Action.RENEW: Host._renew,
    Action.RECORD_STALE: Host._stale,
    Action.RECORD_IN_SYNC: Host._record_in_sync,
    Action.RECORD_SUPERSEDED: lambda h, d: h.save(superseded_by=d.heard or h.record.superseded_by),
    Action.RECORD_FAILOVER: lambda h, d: h.save(
        generation=latest_generation(h.record, d.heard_hello) + 1, unfinished=(CHAIN,)
    ),
    Action.RECORD_PROMOTED: Host._promote,
}
_WITH_QEMU: dict[Action, Callable[[Host, Daemon, Qemu], None]] = {
    Action.PAUSE: _set("paused", value=True),
    Action.RESUME: _set("paused", value=False),
    Action.MARK: lambda _, daemon, qemu: setattr(qemu, "session", daemon.session),
    Action.CHECK: Host._check,
    Action.CHECKPOINT: Host._checkpoint,
    Action.CONNECT: Host._connect,
    Action.MIRROR: Host._mirror,
    Action.FINISH_MIRROR: Host._finish_mirror,
    Action.ATTACH: Host._attach,
    Action.DETACH: Host._detach,
    Action.SERVE: _set("serving", value=True),
    Action.UNSERVE: _set("serving", value=False),
    Action.START: Host._start,
    Action.FAILOVER: Host._failover,
    Action.AWAIT_COMMIT: Host._await_commit,
    Action.FLUSH: Host._flush,
    Action.RECORD_SETTLED: Host._record_settled,
}


#: What breaks, in which order: here, or on both other hosts.
FAULTS: dict[str, tuple[Callable[[Host], None], ...]] = {
    "action": (),
    "daemon": (Host.kill_daemon,),
    "qemu": (Host.kill_qemu,),
    "link": (lambda host: host.world.drop_links(host),),
    "host": (Host.kill_qemu, Host.kill_daemon),
    "other daemons": (Host.kill_daemon,),
    "other qemus": (Host.kill_qemu,),
}
HERE = {"action", "daemon", "qemu", "link", "host"}


class World:
    """Three hosts: a primary, its secondary, and one more for failback."""

    def __init__(self) -> None:
        roles = (Role.PRIMARY, Role.SECONDARY, Role.SECONDARY)
        self.number = 0
        self.reachable = True
        self.fuse: tuple[int, str] | None = None
        self.arrows: set[tuple[Place, Event]] = set()
        self.hosts = [Host(self, index, role) for index, role in enumerate(roles)]
        for host in self.hosts:
            host.start_daemon()

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def tick(self, host: Host) -> None:
        """Let the fault that is prepared happen, when it is its time."""
        if self.fuse is None:
            return
        left, kind = self.fuse
        self.fuse = (left - 1, kind) if left else None
        if left:
            return
        if kind == "action":
            raise Fault
        for hit in [host] if kind in HERE else [other for other in self.hosts if other is not host]:
            for what in FAULTS[kind]:
                what(hit)
        if host.daemon is None:
            raise Died

    def hang_up(self, host: Host) -> None:
        """End the connection on which a secondary's primary speaks."""
        daemon = host.daemon
        if daemon and daemon.peer:
            caller, daemon.peer = daemon.peer, None
            if caller.daemon and caller.daemon.link is host:
                caller.daemon.link = None
                caller.daemon.push(Event.PEER_LOST)

    def drop_links(self, host: Host, event: Event = Event.PEER_LOST) -> None:
        """End every link of a host."""
        for other in self.hosts:
            for near, far in ((host, other), (other, host)):
                if near.daemon and near.daemon.link is far:
                    near.daemon.link = None
                    near.daemon.push(event)
                if near.daemon and near.daemon.peer is far and far is not near:
                    near.daemon.peer = None
                    if near.daemon.place.state in {State.LISTENING, *IN_SESSION}:
                        near.daemon.push(event)

    def fail_over(self, host: Host, *, force: bool) -> None:
        event = failover_event(in_sync=host.record.in_sync, force=force)
        if host.daemon and event:
            host.daemon.push(event)
