"""The crash sweep: what may happen at which moment of a replicated disk's life, and what must be after it.

The moments come from the transition table: a walk of it gives the actions of each side. At each, before
and after it, the daemon ends, or its QEMU, or the other side's, or both as when the host goes. Then all
that ended is started again, as systemd would, and the disks are read.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.host import Disk, end, until
from tests.e2e.site import DISKS, DOMID, MIB, Member
from xencolo.disk import Role
from xencolo.replication import Action, Event, Place, step
from xencolo.status import DomainState
from xencolod.process import lock_holder

UNIT = 16 << 10
_UNITS = MIB // UNIT
_P, _Q, _S = Role.PRIMARY, Role.SECONDARY, DomainState

#: A guest that runs and does nothing, at no cost: it halts at its first instruction.
_FIRMWARE = bytes([0xF4] * 0xFFF0) + bytes([0xF4, 0xEB, 0xFD]).ljust(16, b"\xf4")


class Victim(Enum):
    """What ends."""

    DAEMON = "daemon"
    QEMU = "QEMU"
    OTHER_QEMU = "other side's QEMU"
    HOST = "host"
    BOTH_HOSTS = "both hosts"


class Point(NamedTuple):
    """A moment in an operation, and what ends then.

    :ivar occurrence: which one of the side's actions of this kind.
    """

    side: Role
    action: Action
    occurrence: int
    when: str
    victim: Victim

    def __str__(self) -> str:
        which = f" ({self.occurrence})" if self.occurrence > 1 else ""
        return f"{self.victim.value} ends {self.when} {self.side}'s {self.action.name}{which}"


class Operation(NamedTuple):
    """What is swept: the events of each side, from a place on."""

    walks: Mapping[Role, tuple[Place, tuple[Event, ...]]]
    victims: tuple[Victim, ...] = tuple(Victim)

    def actions(self, side: Role) -> list[Action]:
        """Return what a side does, in its order."""
        place, events = self.walks[side]
        found: list[Action] = []
        for event in events:
            todo = step(place, event)
            found += todo.actions
            place = todo.then
        return found

    def points(self) -> list[Point]:
        """Return every moment, with everything that may end at it."""
        return [
            Point(side, action, occurrence, when, victim)
            for side in self.walks
            for action, occurrence in _numbered(self.actions(side))
            for when in ("before", "after")
            for victim in self.victims
        ]


def _numbered(actions: Iterable[Action]) -> Iterator[tuple[Action, int]]:
    seen: Counter[Action] = Counter()
    for action in actions:
        seen[action] += 1
        yield action, seen[action]


_JOINING = (
    Place(_Q, _S.LAUNCHING),
    (Event.CLEAN, Event.PEER_PREPARES, Event.PEER_STARTS),
)
START = Operation(
    {
        _P: (Place(_P, _S.LAUNCHING), (Event.CLEAN, Event.PEER_READY, Event.MIRRORED)),
        _Q: _JOINING,
    }
)
CHECKPOINT = Operation(
    {
        _P: (Place(_P, _S.REPLICATING), (Event.CHECKPOINT,)),
        _Q: (Place(_Q, _S.REPLICATING), (Event.PEER_CHECKPOINTS,)),
    }
)
FAILOVER = Operation(
    {_Q: (Place(_Q, _S.DEGRADED), (Event.FAILOVER,))},
    (Victim.DAEMON, Victim.QEMU, Victim.HOST),
)
SWITCH = Operation(
    {_Q: (Place(_Q, _S.REPLICATING), (Event.FAILOVER,))},
    (Victim.DAEMON, Victim.QEMU, Victim.HOST),
)
KEPT = Operation(
    {
        _Q: (
            Place(_Q, _S.DEGRADED),
            (Event.ABANDONED, Event.QEMU_GONE, Event.CLEAN, Event.FAILOVER),
        )
    },
    (Victim.DAEMON, Victim.QEMU, Victim.HOST),
)
FAILBACK = Operation(
    {_P: (Place(_P, _S.PROMOTED), (Event.PEER_READY, Event.MIRRORED)), _Q: _JOINING}
)


# -- what disks hold ------------------------------------------------------------------------------

#: For each disk a byte for each UNIT of it.
Content = Mapping[int, bytes]


class Write(NamedTuple):
    """A guest's write of one byte, over and over."""

    devid: int
    start: int
    units: int
    pattern: int


def filled(rng: random.Random) -> Content:
    """Return disks with something in every place."""
    return {
        devid: b"".join(bytes([rng.randrange(256)]) * 8 for _ in range(_UNITS // 8))
        for _, devid in DISKS
    }


def writes(rng: random.Random) -> list[Write]:
    """Return writes to every disk, that meet qcow2's clusters in part and as a whole."""
    return [
        Write(devid, rng.randrange(_UNITS - 7), rng.randrange(1, 8), rng.randrange(256))
        for _, devid in DISKS
        for _ in range(3)
    ]


def written(content: Content, done: Iterable[Write]) -> Content:
    """Return what the disks hold after the writes."""
    found = {devid: bytearray(units) for devid, units in content.items()}
    for devid, start, count, pattern in done:
        found[devid][start : start + count] = bytes([pattern]) * count
    return {devid: bytes(units) for devid, units in found.items()}


def _runs(units: bytes) -> Iterator[tuple[int, int, int]]:
    start = 0
    for index in range(1, len(units) + 1):
        if index == len(units) or units[index] != units[start]:
            yield start, index - start, units[start]
            start = index


# -- a host ---------------------------------------------------------------------------------------


class Fragile(Member):
    """A host whose daemon can be told when to end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # -P: this directory has modules that are called like Python's own.
        self.xencolod = ("-P", str(Path(__file__).with_name("crashing.py")))
        self.crash = self.directory / "crash"
        self.crash.mkdir()
        self.environment["CRASH_DIRECTORY"] = str(self.crash)
        self.up = False
        self.replication: dict[str, Any] = {}
        self.primary_of: set[int] = set()
        self._read = 0
        firmware = self.directory / "firmware"
        firmware.write_bytes(_FIRMWARE)
        quiet = ("-nodefaults", "-no-user-config", "-display", "none")
        self.set(qemu={"arguments": [*quiet, "-bios", str(firmware)]})

    # -- ending and starting

    def arm(self, point: Point, other: "Fragile | None") -> None:
        """Have something end at a moment to come."""
        both = [self, other] if other else [self]
        qemus = {
            Victim.DAEMON: [],
            Victim.QEMU: [self],
            Victim.OTHER_QEMU: both[1:],
            Victim.HOST: [self],
            Victim.BOTH_HOSTS: both,
        }[point.victim]
        daemons = {Victim.DAEMON: [self], Victim.HOST: [self], Victim.BOTH_HOSTS: both[::-1]}
        plan = {
            "when": point.when,
            "action": point.action.name,
            "occurrence": point.occurrence,
            "qemus": [str(member.pidfile) for member in qemus],
            "daemons": [member.pid for member in daemons.get(point.victim, [])],
        }
        new = self.crash / "new"
        new.write_text(json.dumps(plan))
        new.rename(self.crash / "plan")

    @property
    def pidfile(self) -> Path:
        """Which the domain's QEMU has locked."""
        return self.runtime / f"{DOMID}.pid"

    @property
    def pid_of_qemu(self) -> int | None:
        """The domain's QEMU."""
        return lock_holder(self.pidfile)

    def disarm(self) -> bool:
        """Return whether the moment came; none is to come any more."""
        (self.crash / "plan").unlink(missing_ok=True)
        struck = (self.crash / "struck").exists()
        (self.crash / "struck").unlink(missing_ok=True)
        return struck

    def trace(self) -> list[str]:
        """Return the actions since the last look."""
        path = self.crash / "trace"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def tend(self) -> None:
        """Start the daemon if it ought to run and does not."""
        if self.up and not self.alive:
            self.follow()
            self.replication = {}
            self.start(ready=False)

    def lose(self) -> None:
        """Lose daemon and QEMU at once."""
        self.up = False
        if self.alive:
            self.kill()
        self.forget_guest()
        if pid := self.pid_of_qemu:
            end(pid)

    # -- what it says

    def follow(self) -> None:
        """Read on in the log."""
        if not self.log.exists():
            return
        with self.log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            if b'"replication.state"' in line:
                self.replication = event = json.loads(line)
                if event["role"] == "primary" and event["generation"]:
                    self.primary_of.add(event["generation"])

    def is_said(self, state: str) -> bool:
        """Tell whether the daemon that runs now has come to this state, and published it."""
        self.tend()
        self.follow()
        base = f"/libxl/{DOMID}/colo"
        return (
            self.replication.get("state") == state
            and self.store.read(f"{base}/state") == state
            and self.store.read(f"{base}/qemu-pid") == str(self.pid_of_qemu)
        )

    @property
    def session(self) -> str | None:
        """The session that is published."""
        return self.store.read(f"/libxl/{DOMID}/colo/session")

    @property
    def generation(self) -> int:
        """The generation that is published."""
        return int(self.store.read(f"/libxl/{DOMID}/colo/generation") or 0)

    def record_of(self, identity: str) -> dict[str, Any]:
        """Return the domain's record as it is on disk."""
        found: dict[str, Any] = json.loads(
            (self.directory / "state" / f"{identity}.json").read_text()
        )
        return found

    # -- its domain

    def create(self, identity: str, content: Content, *, role: str | None, peer: "Fragile") -> None:
        """Create the domain with disks that hold something."""
        self.primary_of = set()
        self.store.create(DOMID, identity=identity)
        self.disks: list[Disk] = []
        for vdev, devid in DISKS:
            nodes: dict[str, Any] = {
                "colo_host": peer.address,
                "colo_port": str(peer.nbd_port),
                "colo_export": f"web-{vdev}",
            }
            disk = self.disk(DOMID, vdev, devid, **nodes)
            self.disks.append(disk)
            data = b"".join(bytes([unit]) * UNIT for unit in content[devid])
            Path(disk.image).write_bytes(data)
        # At once: a QEMU that began with one of them would be started anew.
        self.store.attach(*self.disks, role=role)

    def destroy(self) -> None:
        """Destroy the domain, and wait until nothing is left of it."""
        self.store.destroy(DOMID)
        self.forget_guest()

        def gone() -> bool:
            self.tend()
            return self.pid_of_qemu is None and not self.store.exists(f"/libxl/{DOMID}")

        if self.up:
            until(gone, "the domain is gone")
        self.trace()

    # -- its data

    def do(self, todo: Iterable[Write]) -> None:
        """Write as the guest does; nothing is flushed."""
        guest = self.guest
        for devid, start, count, pattern in todo:
            where = f"{start * UNIT >> 10}k", f"{count * UNIT >> 10}k"
            guest.write(devid, pattern, *where)

    def differs(self, content: Content) -> int:
        """Return how many bytes the guest reads that are not these."""
        guest, lost = self.guest, 0
        for devid, units in content.items():
            for start, count, pattern in _runs(units):
                if not guest.holds(
                    devid, pattern, f"{start * UNIT >> 10}k", f"{count * UNIT >> 10}k"
                ):
                    lost += sum(
                        UNIT
                        for unit in range(start, start + count)
                        if not guest.holds(
                            devid, pattern, f"{unit * UNIT >> 10}k", f"{UNIT >> 10}k"
                        )
                    )
        return lost

    def differs_on_disk(self, content: Content) -> int:
        """Return how many bytes of the image files are not these."""
        lost = 0
        for disk in self.disks:
            data = Path(disk.image).read_bytes()
            for unit, pattern in enumerate(content[disk.devid]):
                if data[unit * UNIT : (unit + 1) * UNIT] != bytes([pattern]) * UNIT:
                    lost += UNIT
        return lost
