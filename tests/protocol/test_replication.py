"""The table of a replicated disk's life: its rules row by row, its shape, and hosts that live by it."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.protocol.replication_model import FAULTS, Host, World
from xencolo.diagram import EVENT_MEANINGS, diagram
from xencolo.disk import Role
from xencolo.errors import UnexpectedEvent
from xencolo.link import Hello, Welcome
from xencolo.observed import (
    Attachment,
    Service,
    found,
    hangs_up,
    is_moot,
    is_prepared,
    is_stranger,
    may_agree,
    met,
    minds_bypass,
    needs_fencing,
    rejection,
    still,
)
from xencolo.record import Chain, Record
from xencolo.reference import page
from xencolo.replication import (
    TABLE,
    Action,
    Event,
    Place,
    expected,
    failover_event,
    failure,
    step,
)
from xencolo.status import DomainState as State

P, Q = Role.PRIMARY, Role.SECONDARY
PLACES = sorted({Place(role, state) for role, state, _ in TABLE} | {s.then for s in TABLE.values()})
FAILOVERS = (Event.FAILOVER, Event.FORCE_FAILOVER, Event.FENCED)

# -- rules -------------------------------------------------------------------------------------------

TAKEN_IN: dict[tuple[Role, Event], set[State]] = {
    (P, Event.CHECKPOINT): {State.REPLICATING},
    (P, Event.DETACH): {
        *(State.STANDALONE, State.RESYNCING, State.REPLICATING, State.DEGRADED, State.PROMOTED),
    },
    (P, Event.FAILOVER): set(),
    (P, Event.FORCE_FAILOVER): set(),
    (P, Event.FENCED): set(),
    (Q, Event.CHECKPOINT): set(),
    (Q, Event.DETACH): set(),
    (Q, Event.FAILOVER): {State.LISTENING, State.REPLICATING, State.DEGRADED},
    (Q, Event.FORCE_FAILOVER): {State.LISTENING, State.REPLICATING, State.DEGRADED},
    (Q, Event.FENCED): {State.REPLICATING, State.DEGRADED},
    (P, Event.PEER_READY): {State.STANDALONE, State.DEGRADED, State.PROMOTED},
    (P, Event.PEER_EQUAL): {State.STANDALONE, State.DEGRADED, State.PROMOTED},
    (P, Event.PEER_AGREES): {State.DEGRADED},
    (Q, Event.PEER_AGREES): {State.REPLICATING, State.DEGRADED},
    (Q, Event.ABANDONED): {State.DEGRADED},
    (Q, Event.PEER_STARTS): {State.LISTENING},
    (Q, Event.PEER_CHECKPOINTS): {State.REPLICATING},
}


@pytest.mark.parametrize(("role", "event"), TAKEN_IN)
def test_where_an_event_is_taken(role: Role, event: Event) -> None:
    taken = {state for r, state, e in TABLE if (r, e) == (role, event)}
    assert taken == TAKEN_IN[role, event]


@pytest.mark.parametrize(
    ("place", "event"),
    [(place, event) for place in PLACES for event in Event if event not in expected(place)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_a_state_does_not_expect_is_an_error_that_names_it(place: Place, event: Event) -> None:
    with pytest.raises(UnexpectedEvent) as caught:
        step(place, event)
    assert (caught.value.role, caught.value.state, caught.value.event) == (*place, event)


@pytest.mark.parametrize(
    ("in_sync", "force", "event"),
    [
        (True, False, Event.FAILOVER),
        (True, True, Event.FAILOVER),
        (False, True, Event.FORCE_FAILOVER),
        (False, False, None),
    ],
)
def test_failover_event(in_sync: bool, force: bool, event: Event | None) -> None:
    assert failover_event(in_sync=in_sync, force=force) is event


def test_a_primary_that_does_not_know_of_a_checkpoint_ends_the_session() -> None:
    for action in Action:
        asked = action is Action.CHECKPOINT_PEER
        lost = failure(P, action, closed=True)
        assert lost is (Event.ACTION_FAILED if asked else Event.PEER_LOST)
        assert failure(P, action, closed=False) is Event.ACTION_FAILED
        assert failure(Q, action, closed=True) is Event.ACTION_FAILED
    assert Action.DETACH in step(Place(P, State.REPLICATING), Event.ACTION_FAILED).actions


def test_only_several_disks_of_a_secondary_can_take_a_checkpoint_in_part() -> None:
    torn = [
        (r, a)
        for r in (P, Q)
        for a in Action
        if failure(r, a, closed=False, in_part=True) is Event.TORN
    ]
    assert torn == [(Q, Action.CHECKPOINT)]
    assert Action.RECORD_STALE in step(Place(Q, State.REPLICATING), Event.TORN).actions


def test_a_failover_is_recorded_first_flushed_and_recorded_again_before_the_guest_runs() -> None:
    done = step(Place(Q, State.DEGRADED), Event.FAILOVER)
    assert done.actions == (
        *(Action.UNSERVE, Action.PAUSE, Action.FLUSH, Action.RECORD_FAILOVER),
        *(Action.PAUSE, Action.FAILOVER, Action.AWAIT_COMMIT, Action.FLUSH),
        *(Action.RECORD_PROMOTED, Action.RESUME),
    )
    assert done.during is State.FAILING_OVER
    assert done.then == Place(P, State.PROMOTED)


def test_what_never_replicated_is_started_before_it_is_recorded_as_unfinished() -> None:
    actions = step(Place(Q, State.LISTENING), Event.FORCE_FAILOVER).actions
    assert actions.index(Action.START) < actions.index(Action.RECORD_FAILOVER)
    # what is unfinished goes on without it
    assert Action.START not in step(Place(Q, State.LAUNCHING), Event.UNFINISHED).actions


@pytest.mark.parametrize("state", [State.REPLICATING, State.DEGRADED])
def test_a_primary_whose_own_disk_failed_stands_still(state: State) -> None:
    done = step(Place(P, state), Event.DISK_FAILED)
    assert done.actions[-3:] == step(Place(P, state), Event.SUPERSEDED).actions
    assert done.during is done.then.state is State.FAILED, (
        "no failure leads to a guest that runs on"
    )
    assert (Action.CHECKPOINT_PEER in done.actions) is (state is State.REPLICATING)


def test_a_disk_that_fails_without_a_second_copy_is_the_guests_to_know() -> None:
    taken = {place for place in PLACES if not is_moot(place, Event.DISK_FAILED)}
    assert taken == {Place(P, State.REPLICATING), Place(P, State.DEGRADED)}


@pytest.mark.parametrize("state", sorted({state for role, state, _ in TABLE if role is P}))
def test_a_superseded_primary_stands_still(state: State) -> None:
    done = step(Place(P, state), Event.SUPERSEDED)
    assert done.actions == (Action.DETACH, Action.PAUSE, Action.RECORD_SUPERSEDED)
    assert done.during is done.then.state is State.FAILED


# -- shape -------------------------------------------------------------------------------------------


def _rows(*actions: Action) -> Iterator[tuple[Role, State, Event]]:
    return (key for key, done in TABLE.items() if set(actions) & set(done.actions))


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
def test_every_state_has_a_way_in_and_a_way_out(place: Place) -> None:
    others = {key: done for key, done in TABLE.items() if (key[0], key[1]) != place}
    begins = place.state is State.LAUNCHING
    assert begins or any(
        done.then == place or (key[0], done.during) == place for key, done in others.items()
    )
    plain = {Event.QEMU_GONE, Event.REFUSED, Event.SUPERSEDED}
    assert any(
        done.then != place
        for (r, s, event), done in TABLE.items()
        if (r, s) == place and event not in plain
    )


@pytest.mark.parametrize("action", Action)
def test_every_action_is_used(action: Action) -> None:
    assert list(_rows(action))


@pytest.mark.parametrize("event", Event)
def test_every_event_is_expected_somewhere(event: Event) -> None:
    assert any(event is e for _, _, e in TABLE)


@pytest.mark.parametrize("key", TABLE, ids=" ".join)
def test_an_action_that_fails_is_expected_where_it_is_performed(
    key: tuple[Role, State, Event],
) -> None:
    done = TABLE[key]
    if done.actions:
        assert Event.ACTION_FAILED in expected(Place(key[0], done.during))


def test_only_a_failover_makes_a_primary_and_only_it_stops_a_replication() -> None:
    promoting = {key for key, done in TABLE.items() if done.then.role is not key[0]}
    assert promoting == set(_rows(Action.FAILOVER)) == set(_rows(Action.RECORD_PROMOTED))
    assert {event for _, _, event in promoting} == {*FAILOVERS, Event.UNFINISHED}
    # what else ends a replication ends its QEMU, and the checkpoint with it, which that records first
    renewed = {key: TABLE[key].actions for key in _rows(Action.RENEW)}
    assert set(renewed.values()) == {(Action.RENEW,)}
    assert {key[2] for key in renewed} == {Event.SPENT, Event.PEER_PREPARES, Event.PEER_DETACHES}


@pytest.mark.parametrize("key", list(_rows(Action.CONNECT)), ids=" ".join)
def test_nodes_are_added_only_after_those_of_before_are_gone(
    key: tuple[Role, State, Event],
) -> None:
    actions = TABLE[key].actions
    assert Action.DETACH in actions[: actions.index(Action.CONNECT)]


def test_what_is_attached_was_connected_in_the_state_before() -> None:
    """Who comes to ``resyncing`` has connected, and only that state attaches without connecting."""
    attaching = [key for key in _rows(Action.ATTACH) if Action.CONNECT not in TABLE[key].actions]
    assert attaching == [(P, State.RESYNCING, Event.MIRRORED)]
    into = [done for done in TABLE.values() if done.then == (P, State.RESYNCING)]
    assert into
    assert all(done.actions[-2:] == (Action.CONNECT, Action.MIRROR) for done in into)


@pytest.mark.parametrize("key", list(_rows(Action.PAUSE)), ids=" ".join)
def test_a_paused_guest_is_resumed_on_each_way(key: tuple[Role, State, Event]) -> None:
    """In the step itself; and where an action fails, by the steps that its failure leads to."""
    done = TABLE[key]
    if key[2] not in {Event.SUPERSEDED, Event.DISK_FAILED}:
        assert Action.RESUME in done.actions[done.actions.index(Action.PAUSE) :]
    failed = TABLE[key[0], done.during, Event.ACTION_FAILED]
    # `failed` is left by looking at the QEMU again, and from there each way out resumes or is superseded
    assert Action.RESUME in failed.actions or failed.then.state is State.FAILED


FOUND_AGAIN = [
    *((P, event) for event in (Event.CLEAN, Event.TAKEN_OVER, Event.PARTIAL, Event.ATTACHED)),
    *((Q, event) for event in (Event.CLEAN, Event.IN_SESSION, Event.UNFINISHED)),
]


@pytest.mark.parametrize(("role", "event"), FOUND_AGAIN)
def test_a_guest_that_a_killed_daemon_had_paused_is_resumed(role: Role, event: Event) -> None:
    assert Action.RESUME in step(Place(role, State.LAUNCHING), event).actions


# -- the page ----------------------------------------------------------------------------------------

#: What the page says in words of the arrows that it does not draw: to where, from where.
NOT_DRAWN: dict[Event, dict[State, set[State] | None]] = {
    Event.QEMU_GONE: {State.LAUNCHING: None},
    Event.REFUSED: {State.FAILED: None},
    Event.SUPERSEDED: {State.FAILED: None},
    Event.ACTION_FAILED: {
        State.DEGRADED: {State.RESYNCING, State.REPLICATING},
        State.FAILED: None,
    },
    Event.QEMU_ERROR: {
        State.DEGRADED: {State.RESYNCING, State.REPLICATING},
        State.FAILED: {State.LAUNCHING},
    },
}


@pytest.mark.parametrize("event", NOT_DRAWN)
def test_what_is_not_drawn_is_as_the_page_says(event: Event) -> None:
    wheres = NOT_DRAWN[event]
    named = {state for states in wheres.values() for state in states or ()}
    for (role, state, e), done in TABLE.items():
        if e is event and done.then != (role, state):
            assert done.then.role is role
            assert state in (wheres[done.then.state] or {state} - named)


def test_all_other_arrows_are_drawn() -> None:
    drawn = diagram()
    for (role, state, event), done in TABLE.items():
        if event not in NOT_DRAWN and done.then != (role, state):
            shown = done.then if done.then.role is role else Place(role, done.during)
            ends = [f"{r}_{s}".replace("-", "_") for r, s in ((role, state), shown)]
            (line,) = [line for line in drawn.splitlines() if f"{' --> '.join(ends)}:" in line]
            assert event in line.partition(": ")[2].split(", ")


def test_every_event_has_one_meaning_on_the_page() -> None:
    text = page()
    assert list(EVENT_MEANINGS) == list(Event)
    for event, meaning in EVENT_MEANINGS.items():
        assert text.count(f"| `{event}` | {meaning} |") == 1
    assert len(set(EVENT_MEANINGS.values())) == len(Event)
    for role, state, event in TABLE:
        assert f"\n| {role} | `{state}` | `{event}` | " in text


# -- what is seen and heard --------------------------------------------------------------------------

CHAIN = Chain(devid=0, secondary="/d", format="raw", hidden="/h", active="/a")  # type: ignore[arg-type]


def _record(**fields: Any) -> Record:
    given = {"uuid": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "name": "g", "generation": 2}
    return Record(**{**given, "role": P, **fields})


FOUND = [
    ({}, Attachment.CLEAN, False, Event.CLEAN),
    ({}, Attachment.PARTIAL, False, Event.PARTIAL),
    ({}, Attachment.ATTACHED, False, Event.ATTACHED),
    ({"promoted": True}, Attachment.CLEAN, False, Event.TAKEN_OVER),
    ({"promoted": True, "peer": "b"}, Attachment.CLEAN, False, Event.CLEAN),
    ({"promoted": True}, Attachment.ATTACHED, False, Event.ATTACHED),
    ({}, Attachment.ATTACHED, True, Event.REFUSED),
    ({"superseded_by": 3}, Attachment.CLEAN, False, Event.SUPERSEDED),
    ({"superseded_by": 3}, Attachment.CLEAN, True, Event.SUPERSEDED),
    ({"spoiled": True}, Attachment.ATTACHED, False, Event.SUPERSEDED),
    ({"role": Q}, Service.FRESH, False, Event.CLEAN),
    ({"role": Q}, Service.PARTIAL, False, Event.PARTIAL),
    ({"role": Q}, Service.SERVING, False, Event.SERVING),
    ({"role": Q}, Service.REPLICATING, False, Event.IN_SESSION),
    ({"role": Q}, Service.SPENT, False, Event.SPENT),
    ({"role": Q}, Service.SPENT, True, Event.REFUSED),
    ({"role": Q, "unfinished": (CHAIN,)}, Service.REPLICATING, False, Event.UNFINISHED),
    ({"role": Q, "unfinished": (CHAIN,)}, Service.SPENT, True, Event.UNFINISHED),
]


@pytest.mark.parametrize(("fields", "seen", "refused", "event"), FOUND)
def test_found(
    fields: dict[str, Any], seen: Attachment | Service, refused: bool, event: Event
) -> None:
    record = _record(**fields)
    assert found(record, seen, refused=refused) is event
    assert event in expected(Place(record.role, State.LAUNCHING))


@pytest.mark.parametrize(
    ("session", "state", "theirs", "equal", "event"),
    [
        ("s", "replicating", "s", False, Event.PEER_AGREES),
        ("s", "replicating", "s", True, Event.PEER_AGREES),
        ("s", "degraded", "s", False, Event.PEER_READY),  # it has a complaint of its own
        ("s", "replicating", "t", False, Event.PEER_READY),
        (None, "replicating", None, False, Event.PEER_READY),
        (None, "listening", None, False, Event.PEER_READY),
        (None, "listening", None, True, Event.PEER_EQUAL),
    ],
)
def test_met(
    session: str | None, state: str, theirs: str | None, equal: bool, event: Event
) -> None:
    welcome = Welcome(
        generation=1, state=state, session=theirs, in_sync=True, host="h", port=1, encrypted=True
    )
    assert met(session, welcome, equal=equal) is event


@pytest.mark.parametrize(
    ("fields", "generation", "kind"),
    [
        ({"role": Q}, 2, None),
        ({"role": Q}, 3, None),
        ({"role": Q}, 1, "generation"),
        ({"role": Q, "unfinished": (CHAIN,)}, 2, "generation"),
        ({}, 1, "generation"),
        ({}, 2, "state"),
        ({}, 3, "state"),
    ],
)
def test_rejection(fields: dict[str, Any], generation: int, kind: str | None) -> None:
    assert rejection(_record(**fields), generation) == kind


@pytest.mark.parametrize(
    ("fields", "diverged", "stranger"),
    [
        ({"in_sync": True}, False, True),
        ({"in_sync": True}, True, False),
        ({}, False, False),
    ],
)
def test_who_has_never_replicated_is_not_whose_checkpoint_this_is(
    fields: dict[str, Any], diverged: bool, stranger: bool
) -> None:
    hello = Hello(uuid="0" * 8 + "-0000-0000-0000-" + "0" * 12, name="g", generation=2)
    hello = msgspec.structs.replace(hello, diverged=diverged)
    assert is_stranger(_record(role=Q, **fields), hello) is stranger


@pytest.mark.parametrize(
    ("event", "fields", "means"),
    [
        (Event.PEER_AGREES, {}, Event.PEER_AGREES),
        (Event.REFUSED, {}, Event.REFUSED),
        (Event.REFUSED, {"superseded_by": 3}, Event.SUPERSEDED),
    ],
)
def test_what_an_event_still_means_when_its_turn_has_come(
    event: Event, fields: dict[str, Any], means: Event
) -> None:
    assert still(event, _record(**fields)) is means


def test_what_is_for_certain_places_only() -> None:
    lost = {Event.PEER_LOST, Event.PEER_SILENT, Event.IN_SESSION}
    fencing = {(place, event) for place in PLACES for event in Event if needs_fencing(place, event)}
    assert fencing == {(Place(Q, State.DEGRADED), event) for event in lost}
    assert {place for place in PLACES if is_prepared(place)} == {Place(Q, State.LISTENING)}
    sound, spoilt = _record(role=Q, in_sync=True), _record(role=Q)
    agreeing = {place for place in PLACES if may_agree(place, sound, "s", "s")}
    assert agreeing == {Place(Q, State.DEGRADED), Place(Q, State.REPLICATING)}
    others = ((None, None), ("s", "t"))
    assert not any(may_agree(p, sound, *pair) for p in PLACES for pair in others)
    assert not any(may_agree(place, spoilt, "s", "s") for place in PLACES)


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
def test_where_a_bypass_matters(place: Place) -> None:
    sound, spoilt = _record(role=Q, in_sync=True), _record(role=Q)
    suspended = {
        record: minds_bypass(place, record, session=True, linked=False)
        for record in (None, spoilt, sound)
    }
    if place.role is P:
        matters = place.state not in {State.LAUNCHING, State.FAILED}
        assert set(suspended.values()) == {matters}
        alone = matters and place.state is not State.DEGRADED
        assert minds_bypass(place, sound, session=False, linked=False) is alone
    else:
        holds = place.state is not State.FAILING_OVER
        assert suspended == {None: False, spoilt: False, sound: holds}
        linked = minds_bypass(place, spoilt, session=True, linked=True)
        assert linked is (place.state is State.LISTENING)
    if any(minds_bypass(place, sound, session=s, linked=s) for s in (True, False)):
        assert Event.BYPASSED in expected(place)
    assert {event for event in Event if hangs_up(event)} >= {*FAILOVERS, Event.ABANDONED}


# -- hosts that live by the table --------------------------------------------------------------------

INDEX = st.integers(0, 2)


def go_on(hosts: Iterable[Host], *, hello: bool = True) -> None:
    """Let every daemon do what it would do by itself."""
    for host in hosts:
        host.reconcile()
        if host.daemon:
            host.drain()
            host.idle()
            host.drain()
        if hello and host.may_reach:
            host.hello(equal=False)
        elif host.daemon and host.daemon.lost and not host.daemon.link:
            host.daemon.lost = False
            if host.daemon.session is not None:
                host.daemon.push(Event.PEER_SILENT)


def replicates(world: World) -> bool:
    states = [host.daemon.place for host in world.hosts if host.daemon]
    return {Place(P, State.REPLICATING), Place(Q, State.REPLICATING)} <= set(states)


def recover(world: World) -> bool:
    """Heal every fault; then do what the errors that are shown ask the operator for."""
    world.fuse, world.reachable = None, True
    for host in world.hosts:
        host.nodes_accept, host.bypassed = True, False
        if not host.daemon:
            host.start_daemon()
    for turn in range(60):
        go_on(world.hosts)
        if replicates(world):
            return True
        if turn >= 10 and not turn % 5:
            operate(world, turn // 5)
    return False


def operate(world: World, turn: int) -> None:
    for host in world.hosts:
        if host.saved and host.saved.superseded_by is not None:
            host.node = Q
    primaries = [host for host in world.hosts if host.saved and host.saved.role is P]
    latest = max(host.record.generation for host in world.hosts)
    if not any(host.node is P for host in world.hosts):
        best = max(world.hosts, key=lambda host: (host.record.generation, host.record.in_sync))
        world.fail_over(best, force=True)
    for host in primaries:
        if host.record.generation == latest and host.daemon and host.node is P:
            other = world.hosts[(host.index + 1 + turn % 2) % 3]
            host.save(peer=str(other.index), detached=False)


def _start(host: Host) -> None:
    if not host.daemon:
        host.start_daemon()


def _lose(host: Host) -> None:
    host.kill_qemu()
    host.kill_daemon()


def _fence(host: Host) -> None:
    """Kill the other hosts, as a fencing command does, and take over."""
    if (
        host.daemon
        and host.daemon.place == (Q, State.DEGRADED)
        and host.saved
        and host.saved.in_sync
    ):
        others = [other for other in host.world.hosts if other is not host]
        if all(other.saved and other.saved.generation <= host.saved.generation for other in others):
            for other in others:
                _lose(other)
            host.daemon.push(Event.FENCED)


def _say_error(host: Host) -> None:
    seen_in = {State.RESYNCING, State.REPLICATING, State.LAUNCHING}
    if host.daemon and not host.daemon.queue and host.daemon.place.state in seen_in:
        host.daemon.push(Event.QEMU_ERROR)


def _cut_or_join(host: Host) -> None:
    world = host.world
    world.reachable = not world.reachable
    for other in world.hosts:
        world.drop_links(other)


DISTURBANCES: dict[str, Callable[[Host], None]] = {
    "link dropped": lambda host: host.world.drop_links(host),
    "link silent": lambda host: host.world.drop_links(host, Event.PEER_SILENT),
    "net cut or joined": _cut_or_join,
    "daemon killed": Host.kill_daemon,
    "daemon started": _start,
    "QEMU killed": Host.kill_qemu,
    "host lost": _lose,
    "primary fenced off": _fence,
    "QEMU reports an error": _say_error,
    "nodes refuse or accept": lambda host: setattr(host, "nodes_accept", not host.nodes_accept),
    "bypassed or not": lambda host: setattr(host, "bypassed", not host.bypassed),
}


class Hosts(RuleBasedStateMachine):
    """Any order of events, commands and faults on three hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        go_on(self.world.hosts, hello=False)

    def host(self, index: int) -> Host:
        return self.world.hosts[index]

    @initialize(times=st.sampled_from([0, 2, 8]))
    def begin(self, times: int) -> None:
        self.go_on(times)

    # -- what happens by itself

    @rule(index=INDEX)
    def take_one(self, index: int) -> None:
        host = self.host(index)
        if host.daemon and host.daemon.queue:
            host.process()

    @rule(index=INDEX)
    def do_what_the_state_does(self, index: int) -> None:
        self.host(index).reconcile()
        self.host(index).idle()

    @rule(index=INDEX, equal=st.booleans())
    def reach(self, index: int, equal: bool) -> None:
        host = self.host(index)
        if host.may_reach:
            host.hello(equal=equal)
            if equal and host.daemon:  # they are so only as long as nobody writes
                host.drain()

    @rule(times=st.sampled_from([1, 2, 4, 8]))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            go_on(self.world.hosts)

    @rule(index=INDEX)
    def write(self, index: int) -> None:
        if self.host(index).runs:
            self.host(index).write()

    # -- faults

    @rule(left=st.integers(0, 30), kind=st.sampled_from(list(FAULTS)))
    def prepare_fault(self, left: int, kind: str) -> None:
        self.world.fuse = left, kind

    @rule(index=INDEX, kind=st.sampled_from(list(DISTURBANCES)))
    def disturb(self, index: int, kind: str) -> None:
        DISTURBANCES[kind](self.host(index))
        self.host(index).see()

    # -- the operator

    @rule(times=st.sampled_from([6, 10]))
    def heal(self, times: int) -> None:
        """Have a quiet time, in which it may come to replicate."""
        self.world.reachable, self.world.fuse = True, None
        for host in self.world.hosts:
            host.nodes_accept, host.bypassed = True, False
            _start(host)
            host.see()
        self.go_on(times)

    @rule(index=INDEX)
    def checkpoint(self, index: int) -> None:
        if daemon := self.host(index).daemon:
            daemon.push(Event.CHECKPOINT)

    @rule(index=INDEX)
    def detach(self, index: int) -> None:
        host = self.host(index)
        if host.daemon and host.daemon.record and Event.DETACH in expected(host.daemon.place):
            host.save(detached=True)
            host.daemon.push(Event.DETACH)

    @rule(index=INDEX, other=INDEX)
    def resync(self, index: int, other: int) -> None:
        host = self.host(index)
        daemon = host.daemon
        if not daemon or daemon.refused or not daemon.record or other == index:
            return
        if daemon.place.role is P and daemon.place.state not in {
            State.REPLICATING,
            State.RESYNCING,
        }:
            host.save(peer=str(other), detached=False)
            daemon.link = None

    @rule(index=INDEX, force=st.booleans())
    def fail_over(self, index: int, force: bool) -> None:
        """No operator takes over with a host that was not resynced since another one took over."""
        host = self.host(index)
        taken = [h.saved for h in self.world.hosts if h is not host and h.saved]
        newest = max([r.generation for r in taken if r.promoted or r.unfinished], default=0)
        if host.saved and host.saved.generation >= newest:
            self.world.fail_over(host, force=force)
            if host.daemon:
                host.drain()

    @rule(
        index=INDEX,
        others=st.sampled_from([Host.kill_daemon, _lose]),
        after=st.sampled_from([None, Host.kill_qemu, _lose]),
        quiet=st.integers(0, 2),
    )
    def stay_away(
        self,
        index: int,
        others: Callable[[Host], None],
        after: Callable[[Host], None] | None,
        quiet: int,
    ) -> None:
        """Have a secondary wait for its primary till it waits no longer; then, perhaps, it is lost too."""
        if quiet:
            self.heal(6 * quiet)
        host = self.host(index)
        for other in self.world.hosts:
            if other is not host:
                others(other)
        if host.daemon:
            host.drain()
            host.abandon()
            host.drain()
        if after:
            after(host)
            host.see()

    @precondition(lambda self: any(h.saved and h.saved.superseded_by for h in self.world.hosts))
    @rule()
    def make_the_superseded_secondary(self) -> None:
        for host in self.world.hosts:
            if host.saved and host.saved.superseded_by:
                host.node = Q

    @rule(
        index=INDEX,
        command=st.sampled_from(["checkpoint", "detach", "fail_over", "go_on"]),
        left=st.integers(0, 16),
        kind=st.sampled_from(list(FAULTS)),
        quiet=st.integers(0, 2),
    )
    def break_in_the_middle(
        self, index: int, command: str, left: int, kind: str, quiet: int
    ) -> None:
        """Have a fault at one moment of a command, or of a start, as the crash sweep has on real QEMUs."""
        if quiet:
            self.heal(6 * quiet)
        self.world.fuse = left, kind
        host = self.host(index)
        commands: dict[str, Callable[[], None]] = {
            "checkpoint": lambda: self.checkpoint(index),
            "detach": lambda: self.detach(index),
            "fail_over": lambda: self.fail_over(index, force=True),
            "go_on": lambda: self.go_on(2),
        }
        commands[command]()
        if host.daemon:
            host.drain()

    # -- what must hold

    @invariant()
    def generations_have_one_primary(self) -> None:
        """Two hosts may be primaries until they have spoken to each other, but never of one generation."""
        saved = [host.saved for host in self.world.hosts if host.saved]
        primaries = [record.generation for record in saved if record.role is P]
        assert len(primaries) == len(set(primaries))

    @invariant()
    def superseded_guests_stand(self) -> None:
        for host in self.world.hosts:
            daemon = host.daemon
            at_rest = daemon and not daemon.queue and not daemon.incomplete
            seen = daemon and host.qemu is daemon.qmp
            if at_rest and seen and host.saved and host.saved.superseded_by:
                assert not host.runs

    @invariant()
    def who_says_replicating_is_attached_and_agreed_with(self) -> None:
        for host in self.world.hosts:
            daemon = host.daemon
            if not daemon or daemon.queue or daemon.place != (P, State.REPLICATING):
                continue
            qemu = daemon.qmp
            if qemu and not qemu.dead and host.qemu is qemu:
                assert qemu.attached
                assert qemu.session == daemon.session
                assert daemon.link
                assert daemon.link.daemon
                assert daemon.link.daemon.session == daemon.session

    @invariant()
    def what_a_guest_has_written_into_is_no_checkpoint(self) -> None:
        for host in self.world.hosts:
            daemon = host.daemon
            at_rest = daemon and not daemon.queue and not daemon.incomplete
            if at_rest and host.spoilt and daemon and daemon.record and host.record.role is Q:
                assert not host.record.in_sync
                assert daemon.place.state is not State.REPLICATING

    @invariant()
    def guests_run_again(self) -> None:
        """At rest, in a state in which the guest runs, it does not stand because of the daemon."""
        for host in self.world.hosts:
            daemon, qemu = host.daemon, host.qemu
            if daemon and qemu and daemon.qmp is qemu and not daemon.queue:
                running = daemon.place.state not in {State.LAUNCHING, State.FAILED}
                assert not (running and daemon.place.role is P and qemu.paused)

    def teardown(self) -> None:
        world = copy.deepcopy(self.world)
        assert recover(world), [(h.index, h.node, h.saved, h.daemon, h.qemu) for h in world.hosts]


def test_a_welcome_means_nothing_on_another_link() -> None:
    """One waits to be dealt with when the operator names another host, which welcomes too."""
    hosts = Hosts()
    hosts.begin(8)
    hosts.break_in_the_middle(index=0, command="checkpoint", left=0, kind="action", quiet=1)
    hosts.reach(index=0, equal=False)
    hosts.resync(index=0, other=2)
    hosts.reach(index=0, equal=False)
    hosts.teardown()


Hosts.TestCase.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, derandomize=True
)
TestHosts = Hosts.TestCase
