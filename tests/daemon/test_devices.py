"""Adding, finding, reading and removing devices: on every kind of xenstored, and under interference."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pyxs
import trio
from trio.testing import MockClock as Clock

from tests.rigs.disks import PLAIN
from xencolo import requests
from xencolo.device import Device
from xencolo.disk import Backend, Disk, Format, Role, Specification
from xencolo.errors import DeviceError, StoreError, VdevError, WireError
from xencolo.paths import DevicePaths
from xencolo.requests import Request
from xencolo.store import Session, Store
from xencolo.wire import Op, Packet, Permission
from xencolod import devices, domains
from xencolod.asks import demand, directory, permissions, read
from xencolod.embedded import serve_embedded
from xencolod.xenstore import Client, open_client

TRUSTED = frozenset({0})
COLO = msgspec.structs.replace(
    PLAIN,
    colo_enable=True,
    colo_host="192.0.2.2",
    colo_port=9000,
    colo_export="web",
    active_disk="/i/active.qcow2",
    hidden_disk="/i/hidden.qcow2",
)
PATHS = DevicePaths(5, 51712)
BE, FE, LX = PATHS.backend, PATHS.frontend, PATHS.libxl


def made(disk: Disk = PLAIN, **changes: object) -> Disk:
    return msgspec.structs.replace(disk, **changes)


@asynccontextmanager
async def guest(socket: Path) -> AsyncIterator[Client]:
    """A client of a store in which domain 5 is."""
    async with open_client(socket, connections=2) as client:
        await domains.create(client, 5, "web", xen=False)
        yield client


async def tree(client: Client, root: str = "/") -> dict[str, bytes | None]:
    """Every node below a path with its value."""
    found = {root: await read(client, root)}
    for name in await directory(client, root):
        found |= await tree(client, f"{root.rstrip('/')}/{name}")
    return found


async def found(client: Client, domid: int | None = None) -> list[Device]:
    asked = await devices.domids(client, 0) if domid is None else [domid]
    places = await devices.find(client, 0, asked)
    return [d for d in await devices.read_devices(client, places, TRUSTED) if d]


# -- written and read back ------------------------------------------------------------------------

DISKS = {
    "raw": PLAIN,
    "qcow": made(format=Format.QCOW),
    "qcow2": made(format=Format.QCOW2),
    "vhd": made(format=Format.VHD),
    "qed": made(format=Format.QED),
    "IDE": made(vdev="hdc"),
    "SCSI, read-only": made(vdev="sdp", readwrite=False),
    "a partition": made(vdev="xvda1"),
    "a high number": made(vdev="xvdaa"),
    "a bare number": made(vdev="51712"),
    "cdrom": made(vdev="hdc", is_cdrom=True, removable=True, readwrite=False),
    "an empty cdrom": made(
        vdev="hdd",
        is_cdrom=True,
        removable=True,
        readwrite=False,
        pdev_path=None,
        format=Format.EMPTY,
    ),
    "removable": made(removable=True),
    "direct io": made(direct_io_safe=True),
    "discard": made(readwrite=False, vdev="sda", discard_enable=True),
    "no discard": made(discard_enable=False),
    "virtio": made(specification=Specification.VIRTIO),
    "of a driver domain": made(backend_domid=3),
    "an odd path": made(pdev_path="/i/ä b,c=d:e'\"\\$.raw"),
    "a long path": made(pdev_path="/" + "x" * 1900),
    "COLO": COLO,
    "COLO, qcow2": made(COLO, format=Format.QCOW2, vdev="sda"),
    "COLO by address": made(COLO, colo_host="2001:db8::2", colo_port=65535),
}


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
async def test_a_disk_comes_back(disk: Disk, store_socket: Path) -> None:
    async with guest(store_socket) as client:
        paths = await devices.add(client, 5, disk)
        for asked in (5, None):
            (device,) = await found(client, asked)
            assert device.paths == paths == DevicePaths(5, disk.devid, disk.backend_domid)
            assert not device.errors
            assert not device.suspicions
            assert device.disk == made(disk, discard_enable=disk.discard)
            assert (device.is_colo, device.state, device.online) == (disk.colo_enable, 1, True)


async def test_what_the_guest_alone_is_told_does_not_come_back(store_socket: Path) -> None:
    """Whether the backend is trusted stands with the frontend, whose word is not taken."""
    async with guest(store_socket) as client:
        await devices.add(client, 5, made(trusted=False))
        assert await read(client, f"{FE}/trusted") == b"0"
        (device,) = await found(client)
        assert device.disk
        assert device.disk.trusted


#: libxl's nodes in libxl's order: FACTS, "Nodes of a disk".
BACKEND = [
    ("params", "aio:/i/a.raw"),
    ("colo-host", "192.0.2.2"),
    ("colo-port", "9000"),
    ("colo-export", "web"),
    ("active-disk", "/i/active.qcow2"),
    ("hidden-disk", "/i/hidden.qcow2"),
    ("frontend-id", "5"),
    ("online", "1"),
    ("removable", "0"),
    ("bootable", "1"),
    ("state", "1"),
    ("dev", "xvda"),
    ("type", "qdisk"),
    ("mode", "w"),
    ("device-type", "disk"),
    ("direct-io-safe", "1"),
    ("discard-enable", "1"),
    ("specification", "xen"),
]
FRONTEND = [
    ("backend", BE),
    ("backend-id", "0"),
    ("state", "1"),
    ("virtual-device", "51712"),
    ("device-type", "disk"),
    ("trusted", "1"),
]
DIRECTORIES = {
    LX: ([("frontend", FE), ("backend", BE), *BACKEND], [b"n0"]),
    FE: (FRONTEND, [b"n5", b"r0"]),
    BE: ([("frontend", FE), *BACKEND], [b"n0", b"r5"]),
}


async def test_a_foreign_client_sees_libxls_nodes(store_socket: Path) -> None:
    """And in libxl's order, where the server keeps one: oxenstored lists by name."""
    async with guest(store_socket) as client:
        await devices.add(client, 5, made(COLO, direct_io_safe=True))
        await trio.to_thread.run_sync(check_literally, store_socket)


def check_literally(socket: Path) -> None:
    with pyxs.Client(unix_socket_path=str(socket)) as client:
        for root, (nodes, owners) in DIRECTORIES.items():
            names = [name.decode() for name in client.list(root.encode())]
            written = [name for name, _ in nodes]
            assert names == (sorted(written) if "oxenstored" in str(socket) else written)
            assert client.get_perms(root.encode()) == owners
            for name, value in nodes:
                path = f"{root}/{name}".encode()
                assert client.read(path) == value.encode()
                assert client.get_perms(path) == owners


# -- what is refused, with nothing written --------------------------------------------------------

REFUSED = {
    "it exists": (5, PLAIN, DeviceError, f"xvda of domain 5 already exists: {LX} is there"),
    "no domain": (9, PLAIN, DeviceError, "domain 9 does not exist: /local/domain/9 is absent"),
    "phy": (5, made(vdev="xvdb", backend=Backend.PHY), DeviceError, "use xl block-attach"),
    "too long": (5, made(vdev="xvdb", pdev_path="/" + "x" * 4090), WireError, "4096 at most"),
}


@pytest.mark.parametrize(("domid", "disk", "error", "words"), REFUSED.values(), ids=REFUSED)
async def test_what_can_t_be_added_leaves_nothing(
    domid: int, disk: Disk, error: type[Exception], words: str, store_socket: Path
) -> None:
    async with guest(store_socket) as client:
        await devices.add(client, 5, COLO)
        before = await tree(client)
        with pytest.raises(error, match=words):
            await devices.add(client, domid, disk, Role.SECONDARY)
        assert await tree(client) == before


async def test_many_are_added_and_what_is_wrong_with_one_concerns_no_other(
    store_socket: Path,
) -> None:
    """Domains at a time, each disk as if it were added alone; the results in the order given."""
    domids = range(5, 12)
    good = [(domid, made(COLO, vdev=f"xvd{letter}")) for letter in "ab" for domid in domids]
    bad = [(99, PLAIN), (5, made(vdev="xvda")), (6, made(vdev="nonsense"))]
    async with guest(store_socket) as client:
        for domid in domids[1:]:
            await domains.create(client, domid, f"guest-{domid}", xen=False)
        results = await devices.add_all(client, [*good, *bad])
        assert results[: len(good)] == [DevicePaths(domid, disk.devid) for domid, disk in good]
        assert [type(error) for error in results[len(good) :]] == [
            DeviceError,
            DeviceError,
            VdevError,
        ]
        assert (
            sorted(d.disk.vdev for d in await found(client) if d.disk)
            == ["xvda"] * 7 + ["xvdb"] * 7
        )
        together = await tree(client, f"/libxl/7{LX.removeprefix('/libxl/5')}")
        await devices.remove(client, DevicePaths(7, 51712), force=True)
        await devices.add(client, 7, COLO)
        assert await tree(client, f"/libxl/7{LX.removeprefix('/libxl/5')}") == together


# -- in the middle of it --------------------------------------------------------------------------

Change = Callable[["Interfering"], None]


class Interfering(Store):
    """A store in which somebody else does something just before a commit.

    :ivar requests: all that was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.before_commit: list[Change] = []
        self._other = self.connect()
        self.do(requests.mkdir("/local/domain/0/backend"))

    def do(self, *batch: Request) -> None:
        """Do what the other one does."""
        for op, payload in batch:
            super().handle(self._other, Packet(op, 0, 0, payload))

    def handle(self, session: Session, packet: Packet) -> list[tuple[Session, Packet]]:
        request = Request(packet.op, packet.payload)
        self.requests.append(request)
        if request == requests.COMMIT and self.before_commit:
            self.before_commit.pop(0)(self)
        return super().handle(session, packet)


@asynccontextmanager
async def interfering(directory: Path, clock: Clock) -> AsyncIterator[tuple[Client, Interfering]]:
    """Domain 5 in such a store; what waits for time alone waits no longer."""
    assert clock.autojump_threshold == 0
    store = Interfering()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_embedded, directory / "socket", store)
        async with guest(directory / "socket") as client:
            yield client, store
        nursery.cancel_scope.cancel()


def touch_home(store: Interfering) -> None:
    store.do(requests.write("/local/domain/5", ""))


def add_the_same(store: Interfering) -> None:
    store.do(requests.write(LX, ""), requests.write(f"{LX}/dev", "theirs"))


def destroy(store: Interfering) -> None:
    store.do(requests.rm("/local/domain/5"), requests.rm("/libxl/5"))


async def test_a_conflict_is_redone_from_the_start(tmp_path: Path, autojump_clock: Clock) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        store.before_commit = [touch_home] * 3
        del store.requests[:]
        await devices.add(client, 5, COLO)
        assert store.requests.count(requests.TRANSACTION_START) == 4
        assert store.requests.count(requests.read(LX)) == 4
        (device,) = await found(client)
        assert device.disk == made(COLO, discard_enable=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [(add_the_same, "already exists"), (destroy, "domain 5 does not exist")],
)
async def test_what_has_changed_meanwhile_counts(
    change: Change,
    words: str,
    tmp_path: Path,
    autojump_clock: Clock,
) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        store.before_commit = [change]
        with pytest.raises(DeviceError, match=words):
            await devices.add(client, 5, COLO, Role.PRIMARY)
        assert await read(client, f"{LX}/dev") == (b"theirs" if change is add_the_same else None)
        for path in (f"{LX}/params", BE, FE, "/libxl/5/colo"):
            assert await read(client, path) is None


async def test_a_survey_lists_each_directory_once(tmp_path: Path, autojump_clock: Clock) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        await devices.add(client, 5, COLO)
        for asked in (5, None):
            del store.requests[:]
            (domain,) = await domains.survey(client, asked)
            assert [device.paths for device in domain.devices] == [PATHS]
            listed = [request for request in store.requests if request.op == Op.DIRECTORY]
            assert requests.directory("/libxl/5/device/vbd") in listed
            assert len(listed) == len(set(listed))


async def test_conflicts_without_end(tmp_path: Path, autojump_clock: Clock) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        before = await tree(client)
        store.before_commit = [touch_home] * 1000
        with pytest.raises(StoreError) as caught:
            await devices.add(client, 5, COLO)
        assert caught.value.errno == errno.EAGAIN
        assert await tree(client) == before


# -- removing -------------------------------------------------------------------------------------

TAKEN = requests.write(f"{BE}/online", "0")
ASKED = requests.write(f"{BE}/state", "5")
Backender = Callable[[Client], Awaitable[None]]


async def closes(client: Client) -> None:
    """Be a backend that closes 3 s after it was asked to."""
    async with client.watch(f"{BE}/state") as watch:
        while await read(client, f"{BE}/state") != b"5":
            await watch.take()
        assert await read(client, f"{BE}/online") == b"0"
        await trio.sleep(3)
        await demand(client, [requests.write(f"{BE}/state", "6")])


async def vanishes(client: Client) -> None:
    """Be a backend whose nodes are removed 2 s later."""
    await trio.sleep(2)
    await demand(client, [requests.rm(BE)])


async def hangs(client: Client) -> None:
    """Be a backend that goes on as if nothing was."""
    for state in ("4", "3", "4"):
        await trio.sleep(1)
        await demand(client, [requests.write(f"{BE}/state", state)])


async def idles(_: Client) -> None:
    """Be no backend at all."""


@pytest.mark.parametrize(
    ("backend", "force", "seconds", "forced"),
    [
        (closes, False, 3, False),
        (vanishes, False, 2, False),
        (hangs, False, 10, True),
        (idles, False, 10, True),
        (idles, True, 0, True),
    ],
)
async def test_the_backend_is_waited_for(
    backend: Backender,
    force: bool,
    seconds: int,
    forced: bool,
    tmp_path: Path,
    autojump_clock: Clock,
) -> None:
    async with (
        interfering(tmp_path, autojump_clock) as (client, store),
        trio.open_nursery() as nursery,
    ):
        before = await tree(client)
        await devices.add(client, 5, COLO)
        nursery.start_soon(backend, client)
        del store.requests[:]
        started = trio.current_time()
        assert await devices.remove(client, PATHS, force=force) == (PATHS, forced)
        assert trio.current_time() - started == pytest.approx(seconds, abs=0.1)
        assert (TAKEN in store.requests) == (ASKED in store.requests) == (not force)
        assert await tree(client) == before


#: What stands there when a device is removed, and whether its backend is asked to close.
LEFT: dict[str, tuple[list[Request], list[Request]]] = {
    "closed already": ([requests.write(f"{BE}/state", "6")], [TAKEN]),
    "no backend": ([requests.rm(BE)], []),
    "no state": ([requests.rm(f"{BE}/state")], []),
    "the backend alone": (
        [requests.rm(LX), requests.rm(FE), requests.write(f"{BE}/state", "6")],
        [TAKEN],
    ),
}


@pytest.mark.parametrize(("changes", "asked"), LEFT.values(), ids=LEFT)
async def test_what_is_closed_or_gone_is_not_waited_for(
    changes: list[Request],
    asked: list[Request],
    tmp_path: Path,
    autojump_clock: Clock,
) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        before = await tree(client)
        await devices.add(client, 5, COLO)
        await demand(client, changes)
        del store.requests[:]
        started = trio.current_time()
        assert await devices.remove(client, PATHS) == (PATHS, False)
        assert trio.current_time() - started < 0.1
        assert [request for request in store.requests if request in {TAKEN, ASKED}] == asked
        assert await tree(client) == before


@pytest.mark.parametrize("force", [False, True])
async def test_a_device_that_is_not_there_is_refused(store_socket: Path, force: bool) -> None:
    async with guest(store_socket) as client:
        await devices.add(client, 5, COLO)
        before = await tree(client)
        with pytest.raises(DeviceError, match="domain 5 has no device 51728: /libxl/5/"):
            await devices.remove(client, DevicePaths(5, 51728), force=force)
        assert await tree(client) == before


@pytest.mark.parametrize("left", [LX, BE, FE])
async def test_what_is_left_of_a_device_is_removed_by_force(store_socket: Path, left: str) -> None:
    async with guest(store_socket) as client:
        await devices.add(client, 5, COLO)
        await demand(client, [requests.rm(path) for path in (LX, BE, FE) if path != left])
        await devices.remove(client, PATHS, force=True)
        assert [path for path in await tree(client) if "51712" in path] == []


async def test_conflicts_while_it_is_removed(tmp_path: Path, autojump_clock: Clock) -> None:
    async with interfering(tmp_path, autojump_clock) as (client, store):
        before = await tree(client)
        await devices.add(client, 5, COLO)

        def closed_meanwhile(store: Interfering) -> None:
            store.do(requests.write(f"{BE}/state", "6"))

        store.before_commit = [closed_meanwhile]
        del store.requests[:]
        assert await devices.remove(client, PATHS) == (PATHS, False)
        # Redone from the start it sees that there is nothing to close any more.
        assert store.requests.count(ASKED) == 1
        assert await tree(client) == before

        await devices.add(client, 5, COLO)

        def another_device(store: Interfering) -> None:
            store.do(requests.write("/libxl/5/device/vif/0/backend", "/x"))

        store.before_commit = [another_device]
        await devices.remove(client, PATHS, force=True)
        left = await tree(client, "/libxl/5/device")
        assert list(left) == [
            f"/libxl/5/device{rest}" for rest in ("", "/vif", "/vif/0", "/vif/0/backend")
        ]


async def test_parents_that_are_left_empty_go_and_others_stay(store_socket: Path) -> None:
    async with guest(store_socket) as client:
        others = [
            requests.write("/local/domain/5/device/vif/0/state", "1"),
            requests.set_permissions("/local/domain/5/device/vif/0", [Permission("n", 5)]),
            requests.write("/local/domain/0/backend/vif/5/0/state", "1"),
        ]
        await demand(client, others)
        with_others = await tree(client)
        first = await devices.add(client, 5, COLO)
        with_first = await tree(client)
        second = await devices.add(client, 5, made(vdev="xvdb"))
        await devices.remove(client, second, force=True)
        assert await tree(client) == with_first
        await devices.remove(client, first, force=True)
        assert await tree(client) == with_others
        assert await permissions(client, "/local/domain/5/device/vif/0") == (Permission("n", 5),)
        gone = [path for path in with_first if path not in with_others]
        assert {FE, LX, BE, "/libxl/5/device", "/libxl/5/device/vbd"} < set(gone)
        assert {"/local/domain/5/device/vbd", "/local/domain/0/backend/qdisk"} < set(gone)
        assert await tree(client, "/libxl/5") == {"/libxl/5": b"", "/libxl/5/type": b"hvm"}
