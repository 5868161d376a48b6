"""The crash sweep, run: see ``sweeping``. ``XENCOLO_SWEEP=whole`` takes every point, else a spread part."""

import os
import queue
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.e2e.host import Images, end
from tests.e2e.site import DOMID, site_of
from tests.e2e.sweeping import (
    CHECKPOINT,
    FAILBACK,
    FAILOVER,
    KEPT,
    START,
    SWITCH,
    Content,
    Fragile,
    Operation,
    Point,
    Victim,
    filled,
    writes,
    written,
)
from tests.rigs.servers import DEADLINE
from xencolo.disk import Role
from xencolo.replication import Action

#: Sites at a time: a case waits more than it works.
_SITES = int(os.environ.get("XENCOLO_SWEEP_SITES", "3"))


class Rig:
    """Three hosts, and the operation that is swept on them."""

    operation: Operation

    def __init__(self, members: Sequence[Fragile]) -> None:
        self.a, self.b, self.c = members
        self.all = members
        self.identity = ""
        self.rng = random.Random()
        self.content: Content = {}
        self.refused = 0
        self.lost = 0

    @property
    def sides(self) -> Mapping[Role, Fragile]:
        """Who is what."""
        return {Role.PRIMARY: self.a, Role.SECONDARY: self.b}

    def case(self, point: Point | None) -> None:
        """Go through one operation, with what ends in it."""
        raise NotImplementedError

    def arm(self, point: Point | None) -> None:
        """From here on the operation goes: have something end in it."""
        for member in self.sides.values():
            member.trace()
        if point:
            others = [member for side, member in self.sides.items() if side is not point.side]
            self.sides[point.side].arm(point, others[0])

    # -- what the cases are made of

    def until(self, check: Callable[[], bool], what: str) -> None:
        """Wait for it; what has ended is started again meanwhile."""
        deadline = time.monotonic() + DEADLINE
        while True:
            for member in self.all:
                member.tend()
            if check():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not so after {DEADLINE:g} s: {what}\n{self.story()}")
            time.sleep(0.01)

    def story(self) -> str:
        """Return what the hosts say."""
        lines = []
        for member in self.all:
            if member.up:
                shown = {
                    k.rpartition("/")[2]: v for k, v in member.store.tree("/libxl/5/colo").items()
                }
                lines += [f"--- {member.address}: {shown} QEMUs {member.qemus(DOMID)}"]
                lines += [
                    str(event) for event in member.events()[-60:] if event["event"] not in _DULL
                ][-25:]
                lines += [member.stderr()[-2000:]]
        return "\n".join(lines)

    def start_daemons(self, *members: Fragile) -> None:
        """Have these daemons run from now on."""
        for member in members:
            member.up = True
            member.tend()

    def clear(self) -> None:
        """Leave no domain anywhere."""
        for member in self.all:
            member.disarm()
            member.destroy()
        self.identity = str(uuid.uuid4())

    def replicating(self, primary: Fragile, secondary: Fragile) -> None:
        """Wait until both are, in one session."""

        def check() -> bool:
            return (
                all(m.is_said("replicating") for m in (primary, secondary))
                and primary.session is not None
                and primary.session == secondary.session
            )

        self.until(check, f"{primary.address} and {secondary.address} are replicating")

    def command(self, member: Fragile, text: str) -> str:
        """Give a command; return the answer."""
        base = f"/libxl/{DOMID}/colo"
        member.store.write(f"{base}/answer", "")
        member.store.write(f"{base}/command", text)
        answer = ""

        def answered() -> bool:
            nonlocal answer
            answer = member.store.read(f"{base}/answer") or ""
            return answer.startswith(f"{text.split(maxsplit=1)[0]} ") and not answer.endswith(
                " running"
            )

        self.until(answered, f"{text} is answered")
        return answer

    def right(self, member: Fragile, content: Content, what: str) -> None:
        """Count what a guest reads that is not right."""
        if lost := member.differs(content):
            self.lost += lost
            raise AssertionError(f"{member.address}: {lost} bytes are not {what}\n{self.story()}")

    def right_on_disk(self, member: Fragile, content: Content, what: str) -> None:
        """Count what is not right in the images."""
        if lost := member.differs_on_disk(content):
            self.lost += lost
            raise AssertionError(
                f"{member.address}: {lost} bytes on disk are not {what}\n{self.story()}"
            )

    def checkpoint(self, primary: Fragile, secondary: Fragile) -> None:
        """Write and take a checkpoint: replication works."""
        todo = writes(self.rng)
        primary.do(todo)
        self.content = written(self.content, todo)
        answer = self.command(primary, "checkpoint")
        assert answer.startswith("checkpoint done"), f"{answer}\n{self.story()}"
        self.right(secondary, self.content, "the checkpoint")
        self.right_on_disk(primary, self.content, "what the guest wrote")

    def whole(self, *members: Fragile) -> None:
        """Check that one QEMU runs for each, its guest too, and no two were primaries of one generation."""
        for member in members:
            assert len(member.qemus(DOMID)) == 1, f"{member.address}: {member.qemus(DOMID)}"
            status = member.guest("query-status")["status"]
            assert status == "running", f"{member.address}: guest is {status}\n{self.story()}"
        generations = [g for member in self.all for g in member.primary_of]
        assert len(generations) == len(set(generations)), self.story()

    def struck(self, point: Point | None, *members: Fragile) -> None:
        """Check that the moment came."""
        came = [member.disarm() for member in members]
        assert any(came) == (point is not None), f"{point} never came\n{self.story()}"

    def started(self) -> None:
        """Bring up a primary and a secondary."""
        self.clear()
        self.start_daemons(self.a, self.b)
        self.content = filled(self.rng)
        self.b.create(self.identity, filled(self.rng), role="secondary", peer=self.b)
        self.until(lambda: self.b.is_said("listening"), "the secondary listens")
        self.a.create(self.identity, self.content, role=None, peer=self.b)
        self.replicating(self.a, self.b)


_DULL = {"reconcile.done", "device.found", "domain.state", "images.made", "link.insecure"}


class StartRig(Rig):
    operation = START

    def case(self, point: Point | None) -> None:
        a, b = self.a, self.b
        self.clear()
        self.start_daemons(a, b)
        mark = a.mark()
        self.content = filled(self.rng)
        order = [b, a]
        if point and point.victim is Victim.OTHER_QEMU and point.side is Role.SECONDARY:
            order = [a, b]  # there is a QEMU to end
        self.arm(point)
        for member in order:
            if member is a:
                a.create(self.identity, self.content, role=None, peer=b)
                state = "standalone"
            else:
                b.create(self.identity, filled(self.rng), role="secondary", peer=b)
                state = "listening"
            if member is order[0]:
                self.until(lambda m=member, s=state: m.is_said(s), state)  # type: ignore[misc]
        self.replicating(a, b)
        self.struck(point, a, b)
        self.right(b, self.content, "what the primary holds")
        self.right_on_disk(a, self.content, "what the guest wrote")
        self.checkpoint(a, b)
        self.whole(a, b)
        assert (a.generation, b.generation) == (1, 1)
        if point is None or point.victim is Victim.DAEMON:
            ended = a.events("qemu.ended", since=mark) + a.events("qemu.died", since=mark)
            assert not ended, f"only the daemon ended\n{self.story()}"


#: Where a primary's guest stands, and the secondary may have been asked.
_STANDING = {
    (Role.PRIMARY, Action.PAUSE, "after"),
    *((Role.PRIMARY, Action.CHECK, when) for when in ("before", "after")),
    *((Role.PRIMARY, Action.CHECKPOINT_PEER, when) for when in ("before", "after")),
    *((Role.PRIMARY, Action.CHECKPOINT, when) for when in ("before", "after")),
    (Role.PRIMARY, Action.RESUME, "before"),
}


class CheckpointRig(Rig):
    operation = CHECKPOINT

    def case(self, point: Point | None) -> None:
        a, b = self.a, self.b
        if not self.identity:
            self.started()
        before, todo = self.content, writes(self.rng)
        a.do(todo)
        self.content = written(before, todo)
        was = a.session, a.pid_of_qemu, b.pid_of_qemu
        self.arm(point)
        answer = self.command(a, "checkpoint")
        stood = point is not None and (point.side, point.action, point.when) in _STANDING
        if not stood and (point is None or point.victim is Victim.DAEMON):
            done = answer.startswith("checkpoint done")
            if b.differs(before):
                self.right(b, self.content, "the last checkpoint nor the one before")
            elif done:
                self.right(b, self.content, "the checkpoint that was said to be done")
        self.replicating(a, b)
        self.struck(point, a, b)
        if point is None or point.victim is Victim.DAEMON:
            now = a.session, a.pid_of_qemu, b.pid_of_qemu
            # Whether a secondary that was asked, or may have been, takes it yet, its primary can't know where
            # it has no answer: it begins a new session.
            given_up = stood or (point is not None and point.side is Role.SECONDARY)
            assert (was == now) is not given_up, f"only the daemon ended\n{self.story()}"
            assert was[1] == now[1], "the primary's QEMU goes on"
        if b.differs(self.content):
            assert not answer.startswith("checkpoint done"), answer
            self.right(b, before, "the last checkpoint nor the one before")
        self.checkpoint(a, b)
        self.whole(a, b)


class FailoverRig(Rig):
    operation = FAILOVER

    def case(self, point: Point | None) -> None:
        a, b = self.a, self.b
        self.started()
        a.do(writes(self.rng))  # after the checkpoint: lost with the primary
        todo = writes(self.rng)
        b.do(todo)
        self.content = written(self.content, todo)
        self.begin()
        pid = b.pid_of_qemu
        self.arm(point)
        self.command(b, "failover")
        self.until(lambda: any(map(b.is_said, _OVER)), "it is seen how far it came")
        self.struck(point, b)
        if not b.record_of(self.identity)["promoted"]:
            assert not b.record_of(self.identity)["unfinished"]
            if point and point.victim is not Victim.DAEMON:
                self.nothing_to_take_over()
                return
            self.again()
        self.until(lambda: b.is_said("promoted"), "the secondary is promoted")
        assert b.generation == 2
        self.right_on_disk(b, self.content, "the last checkpoint and what its guest wrote")
        self.right(b, self.content, "the last checkpoint and what its guest wrote")
        if point is None or point.victim is Victim.DAEMON:
            assert b.pid_of_qemu == pid, "only the daemon ended"
        self.whole(b)
        self.superseded()

    def begin(self) -> None:
        """Lose the primary."""
        self.a.lose()
        self.until(lambda: self.b.is_said("degraded"), "the secondary has lost its primary")

    def again(self) -> None:
        """Give the command once more: nothing was recorded of the first."""
        answer = self.command(self.b, "failover")
        assert answer.startswith("failover done"), f"{answer}\n{self.story()}"

    def nothing_to_take_over(self) -> None:
        """Both QEMUs were lost before the failover had begun: that is said, and nothing is guessed."""
        answer = self.command(self.b, "failover")
        assert answer.startswith("failover failed"), answer
        assert "no checkpoint" in answer, answer
        self.refused += 1
        self.whole(self.b)

    def superseded(self) -> None:
        """Have the old primary come back: its guest must not run, under another daemon neither."""
        a = self.a
        self.start_daemons(a)
        self.stands(a)
        a.kill()
        self.stands(a)
        assert self.b.is_said("promoted")

    def stands(self, member: Fragile) -> None:
        """Check that a superseded primary's guest stands still, and goes on to."""

        def still() -> bool:
            return bool(member.guest("query-status")["status"] != "running")

        self.until(lambda: member.is_said("failed"), "the old primary is superseded")
        self.until(still, "its guest stands")
        member.barrier()
        assert still(), self.story()


_OVER = ("promoted", "degraded", "listening", "replicating")


class SwitchRig(FailoverRig):
    """The operator takes over from a primary that lives."""

    operation = SWITCH

    def begin(self) -> None:
        """Leave the primary alone."""

    def again(self) -> None:
        self.until(
            lambda: self.b.is_said("replicating") or self.b.is_said("degraded"), "it goes on"
        )
        super().again()

    def nothing_to_take_over(self) -> None:
        self.replicating(self.a, self.b)
        self.whole(self.a, self.b)

    def superseded(self) -> None:
        self.stands(self.a)


class KeptRig(FailoverRig):
    """The primary stays away, the secondary's QEMU is lost too, and then the operator takes over."""

    operation = KEPT

    def __init__(self, members: Sequence[Fragile]) -> None:
        super().__init__(members)
        self.b.set(replication={"grace": 0.2, "retry_max": 0.3})

    def case(self, point: Point | None) -> None:
        a, b = self.a, self.b
        self.started()
        self.checkpoint(a, b)
        a.do(writes(self.rng))
        b.do(writes(self.rng))
        self.arm(point)
        a.lose()
        self.until(self.waits_no_longer, "the session is over")
        b.forget_guest()
        if b.is_said("degraded") and (pid := b.pid_of_qemu):
            end(pid)
        self.until(lambda: b.is_said("listening"), "it listens")
        if not b.record_of(self.identity)["in_sync"]:
            self.struck(point, b)
            self.nothing_to_take_over()
            return
        self.command(b, "failover")
        self.until(lambda: any(map(b.is_said, _OVER)), "it is seen how far it came")
        self.struck(point, b)
        if not b.record_of(self.identity)["promoted"]:
            self.again()
        self.until(lambda: b.is_said("promoted"), "the secondary is promoted")
        assert b.generation == 2
        self.right_on_disk(b, self.content, "the last checkpoint")
        self.right(b, self.content, "the last checkpoint")
        self.whole(b)
        self.superseded()

    def waits_no_longer(self) -> bool:
        """Tell whether the checkpoint is settled, or the QEMU that held it is gone."""
        b = self.b
        settled = bool(b.record_of(self.identity)["settled"])
        return b.is_said("listening") or (b.is_said("degraded") and settled)


class FailbackRig(Rig):
    operation = FAILBACK

    @property
    def sides(self) -> Mapping[Role, Fragile]:
        return {Role.PRIMARY: self.b, Role.SECONDARY: self.c}

    def case(self, point: Point | None) -> None:
        b, c = self.b, self.c
        if not self.identity:
            self.promoted()
        if c.up:
            c.destroy()
        self.start_daemons(c)
        self.arm(point)
        c.create(self.identity, filled(self.rng), role="secondary", peer=c)
        self.until(lambda: c.is_said("listening"), "the third host listens")
        alone = ("promoted", "standalone")
        self.until(lambda: any(map(b.is_said, alone)), "the primary is alone")
        pid = b.pid_of_qemu
        todo = writes(self.rng)
        b.do(todo)
        self.content = written(self.content, todo)
        answer = self.command(b, f"resync to={c.address}")
        self.replicating(b, c)
        self.struck(point, b, c)
        assert answer.startswith("resync done"), answer
        self.right(c, self.content, "what the primary holds")
        self.right_on_disk(b, self.content, "what the guest wrote")
        self.checkpoint(b, c)
        self.whole(b, c)
        assert (b.generation, c.generation) == (2, 2)
        if point is None or point.victim is Victim.DAEMON:
            assert b.pid_of_qemu == pid, f"only the daemon ended\n{self.story()}"
        answer = self.command(b, "detach")
        assert answer.startswith("detach done"), f"{answer}\n{self.story()}"
        if b.pid_of_qemu != pid:
            self.identity = ""  # it is a primary's from its start by now

    def promoted(self) -> None:
        """Bring up a primary that was a secondary."""
        self.started()
        self.a.lose()
        self.until(lambda: self.b.is_said("degraded"), "the secondary has lost its primary")
        assert self.command(self.b, "failover").startswith("failover done")
        self.until(lambda: self.b.is_said("promoted"), "the secondary is promoted")


# -- running them ---------------------------------------------------------------------------------


class Tally:
    """What became of the points."""

    def __init__(self) -> None:
        self.tried = self.refused = self.lost = 0
        self.failures: list[str] = []


def sweep(
    kind: type[Rig], points: Sequence[Point | None], directory: Path, images: Images
) -> Tally:
    """Try these points, on several sites at a time."""
    for fmt in ("raw", "qcow2"):
        images.make(directory / fmt, fmt)
    todo: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
    for point in points:
        todo.put(point)
    tally, lock = Tally(), threading.Lock()

    def work(number: int) -> None:
        rounds = 0
        while not todo.empty():
            rounds += 1
            own = directory / f"{number}-{rounds}"
            with site_of(Fragile, own, images, 3) as members:
                rig = kind(members)
                _run(rig, todo, tally, lock)

    workers = [
        threading.Thread(target=work, args=(number,)) for number in range(min(_SITES, len(points)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return tally


def _run(
    rig: Rig, todo: "queue.SimpleQueue[Point | None]", tally: Tally, lock: threading.Lock
) -> None:
    """Try points until one fails: the site is of no use then."""
    while not todo.empty():
        try:
            point = todo.get_nowait()
        except queue.Empty:
            return
        try:
            rig.case(point)
            failure = ""
        except Exception as error:  # noqa: BLE001 - told of by the thread that runs the test
            failure = f"=== {point}: {error or repr(error)}"
        with lock:
            tally.tried += 1
            tally.refused += rig.refused
            tally.lost += rig.lost
            rig.refused = rig.lost = 0
            if failure:
                tally.failures.append(failure)
        if failure:
            return


def chosen(points: list[Point], at_most: int) -> list[Point]:
    """Return all points, or some that are spread over them and take each victim in turn."""
    if os.environ.get("XENCOLO_SWEEP") == "whole":
        return points
    if word := os.environ.get("XENCOLO_SWEEP"):
        return [point for point in points if word in str(point)]
    stride = len(points) / at_most
    return [points[int(index * stride)] for index in range(at_most)]


#: How many points a quick run takes.
_SPREAD: dict[type[Rig], int] = {
    StartRig: 7,
    CheckpointRig: 5,
    FailoverRig: 6,
    SwitchRig: 3,
    KeptRig: 5,
    FailbackRig: 6,
}


def _name(kind: type[Rig]) -> str:
    return kind.__name__.removesuffix("Rig").lower()


@pytest.mark.parametrize("kind", _SPREAD, ids=_name)
def test_sweep(
    kind: type[Rig],
    tmp_path: Path,
    images: Images,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = chosen(kind.operation.points(), _SPREAD[kind])
    began = time.monotonic()
    tally = sweep(kind, points, tmp_path, images)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{_name(kind)}: {tally.tried} points tried of {len(kind.operation.points())}, "
            f"{tally.tried - len(tally.failures)} survived, {tally.lost} bytes lost, {tally.refused} "
            f"refused for want of a checkpoint, {time.monotonic() - began:.1f} s "
        )
    assert not tally.failures, "\n".join(tally.failures)
    assert (tally.tried, tally.lost) == (len(points), 0)


@pytest.mark.parametrize("kind", _SPREAD, ids=_name)
def test_what_is_performed_is_what_is_swept(
    kind: type[Rig], tmp_path: Path, images: Images
) -> None:
    with site_of(Fragile, tmp_path, images, 3) as members:
        rig = kind(members)
        rig.case(None)
        for side in kind.operation.walks:
            wanted = [action.name for action in kind.operation.actions(side)]
            assert rig.sides[side].trace()[: len(wanted)] == wanted
