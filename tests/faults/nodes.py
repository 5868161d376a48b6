"""Every node of a device deleted, emptied, made long, made binary: alone and in pairs.

Which nodes there are comes from the node table, and what an error there should be from the columns of the
row: a new node is covered as soon as it has a row.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import msgspec

from tests.e2e.host import XVDA, Disk, Host, until
from tests.faults.trial import Trial, rounds
from xencolo import requests, wire
from xencolo.device import Device, device_from_answers, read_requests
from xencolo.disk import Backend, Format
from xencolo.disk import Disk as Described
from xencolo.errors import DiskError, NodeError, StoreError
from xencolo.nodes import BACKEND_NODES, FRONTEND_NODE, FRONTEND_NODES, LIBXL_NODES, Need, Node
from xencolo.nodes import add_requests as added
from xencolo.paths import DevicePaths
from xencolo.store import Store
from xencolo.wire import Packet

#: Told by the toolstack, served by the backend, shown by the guest.
TOLD, SERVED, SHOWN = "libxl", "backend", "frontend"
DIRECTORIES: Mapping[str, Sequence[Node]] = {
    TOLD: (*LIBXL_NODES, *BACKEND_NODES),
    SERVED: (FRONTEND_NODE, *BACKEND_NODES),
    SHOWN: FRONTEND_NODES,
}
#: What a node is made; None deletes it. The long one is the longest that a node of any name takes.
DAMAGES: Mapping[str, bytes | None] = {
    "deleted": None,
    "emptied": b"",
    "made long": b"/" + b"x" * 3899,
    "made binary": b"\xff\x00\x80\n",
}


class Damage(NamedTuple):
    """One node, and what becomes of it."""

    directory: str
    node: Node
    what: str

    @property
    def value(self) -> bytes | None:
        """Its new value, None for none."""
        return DAMAGES[self.what]

    def __str__(self) -> str:
        return f"{self.directory}/{self.node.name} {self.what}"


def damages() -> list[Damage]:
    """Return every damage that one node can have."""
    return [
        Damage(directory, node, what)
        for directory, nodes in DIRECTORIES.items()
        for node in nodes
        for what in DAMAGES
    ]


class Errors:
    """What the table says that is wrong with a device, node by node.

    :param values: of the whole device: directory and name to value.
    :param disk: what it is.
    """

    def __init__(
        self, values: Mapping[tuple[str, str], bytes], paths: DevicePaths, disk: Described
    ) -> None:
        self._values = values
        self._disk = disk
        self._paths = paths

    def expected(self, hurt: Sequence[Damage]) -> set[str]:
        """Return the names of the nodes that an error must name, after these damages."""
        now: dict[tuple[str, str], bytes | None] = dict(self._values)
        now |= {(d.directory, d.node.name): d.value for d in hurt}
        names = {d.node.name: d.node for d in hurt if d.directory != SHOWN}
        wrong = {name for name, node in names.items() if self._is_wrong(node, now)}
        return wrong or self._clashing(names.values(), now)

    def _clashing(
        self, nodes: Iterable[Node], now: Mapping[tuple[str, str], bytes | None]
    ) -> set[str]:
        """Return the name of the node, right alone, that does not go with the others."""
        fields: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for node in nodes:
            told = now.get((TOLD, node.name))
            if node.parse and told is not None:
                said = node.parse(told.decode(), self._paths)
                fields |= said
                sources |= dict.fromkeys(said, node.name)
        try:
            msgspec.structs.replace(self._disk, **fields).check()
        except DiskError as error:
            return {sources[error.field]}
        return set()

    def _is_wrong(self, node: Node, now: Mapping[tuple[str, str], bytes | None]) -> bool:
        if node.parse is None:
            return False
        told = now.get((TOLD, node.name))
        places = [place for place, nodes in DIRECTORIES.items() if node in nodes and place != SHOWN]
        if any(now.get((place, node.name)) != told for place in places):
            return True
        if told is None:  # everywhere
            return node.need is not Need.NEVER or node.name == "params"
        try:
            node.parse(told.decode(), self._paths)
        except Exception:  # noqa: BLE001 - whatever the row's parser says
            return True
        return False


# -- on the in-memory store, with the real reader -----------------------------------------------------


class Bench:
    """A COLO disk in a store of its own, which is damaged, read and mended."""

    def __init__(self) -> None:
        self.paths = DevicePaths(5, XVDA)
        self.disk = Described(
            vdev="xvda",
            backend=Backend.QDISK,
            format=Format.RAW,
            pdev_path="/images/web.raw",
            direct_io_safe=True,
            colo_enable=True,
            colo_host="192.0.2.2",
            colo_port=9000,
            colo_export="web",
            active_disk="/images/active.qcow2",
            hidden_disk="/images/hidden.qcow2",
        )
        self._store = Store()
        self._session = self._store.connect()
        for request in added(self.disk, self.paths):
            self._do(request)
        self.values = {
            (place, node.name): value
            for place, nodes in DIRECTORIES.items()
            for node in nodes
            if isinstance(value := self._do(requests.read(self._path(place, node))), bytes)
        }
        self.whole = self.read()
        assert self.whole.disk
        assert not self.whole.errors

    def _path(self, place: str, node: Node) -> str:
        return f"{getattr(self.paths, place)}/{node.name}"

    def _do(self, request: requests.Request) -> bytes | StoreError:
        packet = Packet(request.op, 0, 0, request.payload)
        ((_, answer),) = self._store.handle(self._session, packet)
        if answer.op == wire.Op.ERROR:
            return StoreError(wire.ERRNOS[answer.payload[:-1]], "")
        return answer.payload

    def read(self) -> Device:
        """Read it as the daemon does."""
        answers = [self._do(request) for request in read_requests(self.paths)]
        device = device_from_answers(self.paths, answers, frozenset({0}))
        assert device
        return device

    def hurt(self, damage: Damage) -> None:
        """Damage a node."""
        self._put(damage, damage.value)

    def mend(self, damage: Damage) -> None:
        """Make the node what it was."""
        self._put(damage, self.values.get((damage.directory, damage.node.name)))

    def _put(self, damage: Damage, value: bytes | None) -> None:
        path = self._path(damage.directory, damage.node)
        self._do(requests.rm(path) if value is None else requests.write(path, value))


def in_memory(trial: Trial) -> None:
    """Every node alone, and every pair of nodes: all of them, or as many pairs as there are times."""
    bench = Bench()
    errors = Errors(bench.values, bench.paths, bench.disk)
    single = damages()
    pairs = [(a, b) for a, b in combinations(single, 2) if _path_of(a) != _path_of(b)]
    if trial.times < len(pairs):
        pairs = trial.random.sample(pairs, trial.times)
    for hurt in [*((one,) for one in single), *pairs]:
        with trial.one():
            _check(bench, errors, hurt)


def _path_of(damage: Damage) -> tuple[str, str]:
    return damage.directory, damage.node.name


def _check(bench: Bench, errors: Errors, hurt: Sequence[Damage]) -> None:
    said = " and ".join(map(str, hurt))
    for damage in hurt:
        bench.hurt(damage)
    device = bench.read()
    expected = errors.expected(hurt)
    named = {error.node for error in device.errors}
    assert named == expected, f"{said}: errors of {named}, not of {expected}"
    assert bool(device.disk) == (not expected), said
    for error in device.errors:
        _check_error(bench, error, hurt)
    for damage in hurt:
        bench.mend(damage)
    assert bench.read() == bench.whole, f"{said}, and mended"


def _check_error(bench: Bench, error: NodeError, hurt: Sequence[Damage]) -> None:
    """Check that an error names the very node that was damaged, and whether it is there."""
    if any(d.node.name == error.node and _path_of(d) not in bench.values for d in hurt):
        return  # it came where none should be: then it is missing in the other directory
    told = {f"{getattr(bench.paths, d.directory)}/{d.node.name}": d for d in hurt}
    words = re.split(r"[\s:,]+", str(error))
    named = [damage for path, damage in told.items() if path in words]
    assert named, f"{error}, and damaged were {list(told)}"
    missing = [damage for damage in named if damage.value is None]
    assert (error.kind == "missing") == bool(missing), str(error)


# -- on the real xenstored, with the daemon -----------------------------------------------------------


def with_daemon(trial: Trial) -> None:
    """Some nodes and pairs of them, while the daemon runs a QEMU with the disk."""
    host = trial.host()
    host.configure(qemu={"restart": False})
    host.start()
    disk, pid = host.running(5)
    paths = DevicePaths(5, XVDA)
    values = {
        (place, name): value.encode()
        for place in DIRECTORIES
        for name in (node.name for node in DIRECTORIES[place])
        if (value := host.store.read(f"{getattr(disk, place)}/{name}")) is not None
    }
    errors = Errors(values, paths, _described(host))
    single = damages()
    right = _described(host)
    choices = _choices(trial, single)
    for _ in rounds(trial):
        hurt = next(choices)
        said, mark = " and ".join(map(str, hurt)), host.mark()
        _write(host, disk, {_path_of(d): d.value for d in hurt})
        expected = errors.expected(hurt)
        until(lambda m=mark, e=expected: _named(host, m) >= e, f"{said} is said")  # type: ignore[misc]
        host.barrier()
        assert _named(host, mark) == expected, said
        wrong = bool(expected)
        until(lambda w=wrong: host.store.exists(disk.error) == w, f"{said} is published")  # type: ignore[misc]
        assert host.qemus() == [pid], said
        _write(host, disk, {_path_of(d): values.get(_path_of(d)) for d in hurt})
        until(lambda: _is_right(host, disk), f"{said}, and mended")
        assert _described(host) == right
    assert host.qemus() == [pid]
    assert host.has_open(5, disk.image)


def _named(host: Host, mark: int) -> set[str]:
    return {event["node"] for event in host.events("device.error", since=mark)}


def _choices(trial: Trial, single: Sequence[Damage]) -> Iterator[tuple[Damage, ...]]:
    """Yield single damages and pairs in turn; singles each once before any comes again."""
    while True:
        for one in trial.random.sample(single, len(single)):
            yield (one,)
            first, second = trial.random.sample(single, 2)
            if _path_of(first) != _path_of(second):
                yield first, second


def _write(host: Host, disk: Disk, values: Mapping[tuple[str, str], bytes | None]) -> None:
    def change() -> None:
        for (place, name), value in values.items():
            path = f"{getattr(disk, place)}/{name}"
            if value is None:
                host.store.delete(path)
            else:
                host.store.write(path, value)

    host.store.together(change)


def _is_right(host: Host, disk: Disk) -> bool:
    base = f"/libxl/{disk.domid}/colo"
    return (
        host.store.read(f"{base}/device/{disk.devid}/state") == "ready"
        and host.calm(disk.domid)
        and not host.store.exists(disk.error)
    )


def _described(host: Host) -> Described:
    """Return the disk as the operator's command reads it."""
    (row,) = json.loads(host.xencolo("disk", "list", "5", "--json"))
    fields = {name: row[name] for name in Described.__struct_fields__ if name in row}
    return msgspec.convert(fields, Described)
