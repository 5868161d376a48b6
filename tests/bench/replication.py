"""What replication by the daemon costs over the bare QMP commands.

Two hosts on one machine, each with a real xenstored and a real QEMU that xencolod started, two disks, one
behind IDE and one behind SCSI. The same QEMUs in the same state are then taken through the same life once
by the daemons and once, these having been killed, by bare QMP commands over a second monitor. The rounds
alternate. The guest's writes are qemu-io's.

* *Failover*: the primary host is gone. From the command node being written to ``promoted`` being read in
  xenstore, against ``nbd-server-stop``, ``xen-set-replication`` and looking until the commit has ended.
* *Start*: the secondary listens, the primary stands alone. From the command ``resync`` being written to
  ``replicating`` being read, against the same QMP commands, from the NBD nodes to the guest's ``cont``.
* *Writes*: by one guest, in slices of time in which both daemons go on, with their looks at QEMU,
  and in which both are stopped, by turns.

What the daemon waits for and the bare commands do not: the record on disk before and after a failover,
and all nodes flushed twice. That is the same however much there is to commit, so a failover with nothing
to commit is shown beside, for information, and so is TLS.
"""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench.table import Row
from tests.e2e.host import Images
from tests.e2e.site import DISKS, DOMID, MIB, Member, Monitor, site
from xencolo.graph import nbd_node, peer_node, quorum_node, replication_node
from xencolod import keys

DEVIDS = tuple(devid for _, devid in DISKS)
EXPORTS = {devid: f"web-{vdev}" for vdev, devid in DISKS}
ROUNDS = 5
#: MiB of each disk, all of them to be copied.
SIZE = 64
#: MiB of each disk that both guests have written since the last checkpoint.
WRITTEN = SIZE
#: As the daemon is configured unless told otherwise.
POLL = 1.0
#: Of the writes: seconds of a slice, fours of slices in a window, windows; bytes of a write and of all.
#: A window has several polls in it, and the median of the windows leaves out those with a hiccup of the disk.
SLICE, FOURS, WINDOWS = 0.02, 25, 25
WRITE, AREA = 256 << 10, 8 * MIB
#: What is measured, in the order of :class:`Times`, and against what.
COMPARED = (
    ("resync → replicating", "the QMP commands"),
    ("failover → promoted", "three QMP commands"),
    ("a MiB written, replicating", "daemons stopped"),
)
_LOOK = 0.0005


class Times(NamedTuple):
    """What was measured in one life, in seconds."""

    start: float
    failover: float


class Case(NamedTuple):
    """What is measured in some rounds.

    :ivar targets: the least ratios of start, failover and writes; None for information.
    """

    words: str
    rounds: int
    targets: tuple[float | None, float | None, float | None] = (None, None, None)
    tls: bool = False
    written: bool = True


CASES = (
    Case("", ROUNDS, (1 / 1.5, 1 / 2, 0.95)),
    Case(", nothing to commit", 3, written=False),
    Case(", TLS", 2, tls=True),
)


# -- the hosts -------------------------------------------------------------------------------------


@contextmanager
def apart(directory: Path, images: Images, *, tls: bool) -> Iterator[tuple[Member, Member]]:
    """Yield a primary that stands alone, its guest running, and its secondary, which listens."""
    directory.mkdir()
    with site(directory, images) as (a, b):
        link = {}
        if tls:
            keys.make(directory / "keys.pem")
            link = {"keys": str(directory / "keys.pem"), "unencrypted_and_unauthenticated": False}
        for member in (a, b):
            member.set(link=link, replication={"poll": POLL}, daemon={"settle": 0.2})
            member.start()
        a.add(peer=b, mib=SIZE)
        a.is_("standalone")
        a.guest("cont")
        a.command("detach")
        b.add("secondary", mib=SIZE)
        b.is_("listening")
        os.sync()  # what the images' making left to be written is not what is measured
        yield a, b


def ordered(member: Member, command: str, state: str) -> float:
    """Give a command by its node; return the seconds until the state is there."""
    base = f"/libxl/{DOMID}/colo"
    began = time.perf_counter()
    member.store.write(f"{base}/command", command)
    while member.store.read(f"{base}/state") != state:
        time.sleep(_LOOK)
        if time.perf_counter() > began + 60:
            member.is_(state)
    return time.perf_counter() - began


def write_on(a: Monitor, b: Monitor) -> None:
    """Have both guests write: the secondary's active and hidden disks hold something."""
    for guest in (a, b):
        for devid in DEVIDS:
            for place in range(0, WRITTEN, 8):
                guest.write(devid, 0x5A, f"{place}M", "8M")
    os.sync()


def life(directory: Path, images: Images, case: Case, *, by_hand: bool) -> Times:
    """Take two hosts from standing apart to the survivor's promotion."""
    with apart(directory, images, tls=case.tls) as (a, b):
        if by_hand:
            a.kill()
            b.kill()
            start = timed(lambda: replicate(a, b, tls=case.tls))
        else:
            start = ordered(a, "resync", "replicating")
            b.is_("replicating")
        if case.written:
            write_on(a.guest, b.guest)
        if by_hand:
            a.lose_qemu()
            return Times(start, timed(lambda: fail_over(b.guest)))
        a.lose()
        b.is_("degraded")
        return Times(start, ordered(b, "failover", "promoted"))


# -- by hand ---------------------------------------------------------------------------------------


def timed(what: Callable[[], None]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def replicate(a: Member, b: Member, *, tls: bool) -> None:
    """Give the commands of a start."""
    primary, secondary = a.guest, b.guest
    secured = {}
    if tls:
        (directory,) = a.runtime.glob("**/ca-cert.pem")
        credentials = {"qom-type": "tls-creds-x509", "endpoint": "client", "id": "by-hand"}
        primary("object-add", **credentials, dir=str(directory.parent))
        secured = {"tls-creds": "by-hand", "tls-hostname": keys.HOSTNAME}
    server = {"type": "inet", "host": b.address, "port": str(b.nbd_port)}
    for devid in DEVIDS:
        node = {"node-name": nbd_node(devid), "export": EXPORTS[devid]}
        primary("blockdev-add", driver="nbd", server=server, **node, **secured)
    for devid in DEVIDS:
        job = {"job-id": f"by-hand-{devid}", "device": quorum_node(devid)}
        primary("blockdev-mirror", target=nbd_node(devid), sync="full", **job)
    await_(lambda: all(job["ready"] for job in primary("query-block-jobs")))
    primary("stop")
    for devid in DEVIDS:
        primary("block-job-cancel", device=f"by-hand-{devid}")
    await_(lambda: not primary("query-block-jobs"))
    secondary("xen-set-replication", enable=True, primary=False)
    for devid in DEVIDS:
        node = {"node-name": peer_node(devid), "file": nbd_node(devid)}
        primary("blockdev-add", driver="replication", mode="primary", **node)
        primary("x-blockdev-change", parent=quorum_node(devid), node=peer_node(devid))
    primary("xen-set-replication", enable=True, primary=True)
    primary("cont")


def fail_over(secondary: Monitor) -> None:
    """Give the three commands, the third until the commit has ended."""
    secondary("nbd-server-stop")
    secondary("xen-set-replication", enable=False, primary=False, failover=True)
    await_(lambda: committed(secondary))


def committed(secondary: Monitor) -> bool:
    graph = secondary("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    files = {names[e["parent"]]: names[e["child"]] for e in graph["edges"] if e["name"] == "file"}
    return all(files[replication_node(devid)] == EXPORTS[devid] for devid in DEVIDS)


def await_(check: Callable[[], bool]) -> None:
    while not check():
        time.sleep(_LOOK)


# -- writes ----------------------------------------------------------------------------------------


class Writer:
    """A guest that writes one block after the other, over and over the same part of a disk."""

    def __init__(self, guest: Monitor) -> None:
        self._guest = guest
        self._place = 0

    def write(self) -> None:
        line = f'qemu-io -d disk-{DEVIDS[0]} "write -q -P 0x77 {self._place} {WRITE}"'
        self._guest("human-monitor-command", **{"command-line": line})
        self._place = (self._place + WRITE) % AREA

    def slice_(self) -> float:
        """Write for the time of a slice; return seconds a write."""
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < SLICE:
            self.write()
            count += 1
        return passed / count


#: The daemons go on or stand: so that what slowly changes on the machine hits both alike.
_FOUR = (signal.SIGCONT, signal.SIGSTOP, signal.SIGSTOP, signal.SIGCONT)


def writes(directory: Path, images: Images, *, tls: bool) -> list[tuple[float, float]]:
    """Return the seconds a MiB of each window: with the daemons, and with them stopped."""
    with apart(directory, images, tls=tls) as (a, b):
        ordered(a, "resync", "replicating")
        b.is_("replicating")
        writer = Writer(a.guest)
        for _ in range(AREA // WRITE):
            writer.write()  # the first write of a cluster saves what was there

        def window() -> tuple[float, float]:
            spent: dict[signal.Signals, list[float]] = {signal.SIGCONT: [], signal.SIGSTOP: []}
            for number in _FOUR * FOURS:
                for member in (a, b):
                    member.signal(number)
                spent[number].append(writer.slice_() * MIB / WRITE)
            return statistics.mean(spent[signal.SIGCONT]), statistics.mean(spent[signal.SIGSTOP])

        windows = [window() for _ in range(WINDOWS)]
        for member in (a, b):
            member.is_("replicating")
    return windows


# -- all of it -------------------------------------------------------------------------------------


def measure(directory: Path, images: Images, case: Case) -> Iterator[Row]:
    directory.mkdir()
    ours: list[Times] = []
    bare: list[Times] = []
    for number in range(case.rounds):
        ours.append(life(directory / f"daemon-{number}", images, case, by_hand=False))
        bare.append(life(directory / f"hand-{number}", images, case, by_hand=True))
    for index, (what, against) in enumerate(COMPARED[:2]):
        a, b = (statistics.median(times[index] for times in each) for each in (ours, bare))
        if case.written or index:
            yield Row(what + case.words, a, against, b, case.targets[index])
    if case.written:
        what, against = COMPARED[2]
        windows = writes(directory / "writes", images, tls=case.tls)
        b = statistics.median(stopped for _, stopped in windows)
        # What counts is each window's own ratio: the windows differ by more than what is looked for.
        a = b * statistics.median(running / stopped for running, stopped in windows)
        yield Row(what + case.words, a, against, b, case.targets[2])


def run(directory: Path) -> list[Row]:
    """Take pairs of hosts through start and failover, and have a guest write between them."""
    images = Images(directory / "images")
    return [
        row
        for number, case in enumerate(CASES)
        for row in measure(directory / str(number), images, case)
    ]
