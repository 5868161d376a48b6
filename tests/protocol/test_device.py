"""Answers of xenstored → a device, or the errors that say which node is in the way."""

import errno
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.device import (
    Device,
    Listings,
    device_from_answers,
    listing_requests,
    listings,
    read_requests,
)
from xencolo.disk import COLO_FIELDS, Backend, Disk, Format
from xencolo.errors import StoreError
from xencolo.nodes import BACKEND_NODES, LIBXL_NODES, Need, add_requests
from xencolo.paths import DevicePaths
from xencolo.wire import Op, split, strings

PATHS = DevicePaths(5, 51712)
DRIVER_DOMAIN = DevicePaths(5, 51712, 3)
#: What the tables below abbreviate.
PLACES = {
    "BE": "/local/domain/0/backend/qdisk/5/51712",
    "FE": "/local/domain/5/device/vbd/51712",
    "LX": "/libxl/5/device/vbd/51712",
}
TRUSTED = frozenset({0})
#: What is asked for when nobody knows which nodes there are.
EVERYTHING = Listings()

PLAIN = Disk(vdev="xvda", pdev_path="/srv/a.img", backend=Backend.QDISK, format=Format.RAW)
COLO = msgspec.structs.replace(
    PLAIN,
    colo_enable=True,
    colo_host="192.0.2.7",
    colo_port=9000,
    colo_export="disk1",
    active_disk="/srv/active.qcow2",
    hidden_disk="/srv/hidden.qcow2",
)
CDROM = msgspec.structs.replace(
    PLAIN, is_cdrom=True, removable=True, readwrite=False, pdev_path=None, format=Format.EMPTY
)

#: None removes a node and what is below it; bytes replace or make one.
Changes = Mapping[str, bytes | None]


def place(short: str) -> str:
    first, slash, rest = short.partition("/")
    return f"{PLACES.get(first, first)}{slash}{rest}"


class Nodes:
    """The nodes that adding a disk leaves, to be spoiled and asked for."""

    def __init__(self, disk: Disk, paths: DevicePaths = PATHS) -> None:
        self.values: dict[str, bytes] = {}
        self.permissions: dict[str, bytes] = {paths.libxl: b"n0\0"}
        self.paths = paths
        for op, payload in add_requests(disk, paths):
            path, _, value = payload.partition(b"\0")
            if op == Op.SET_PERMS:
                self.permissions[path.decode()] = value
            elif op == Op.WRITE:
                self.values[path.decode()] = value
            elif op == Op.MKDIR:
                self.values[path.decode()] = b""
        self.values.setdefault(paths.libxl, b"")

    def changed(self, changes: Changes) -> "Nodes":
        for short, value in changes.items():
            path = place(short)
            if value is not None:
                self.values[path] = value
                continue
            for name in [p for p in self.values if p == path or p.startswith(f"{path}/")]:
                del self.values[name]
        return self

    def answers(self, there: Listings = EVERYTHING) -> list[bytes | StoreError]:
        asked = read_requests(self.paths, there)
        return [self._answer(op, split(payload)[0]) for op, payload in asked]

    def listings(self) -> Listings:
        asked = listing_requests(self.paths)
        return listings([self._answer(op, split(payload)[0]) for op, payload in asked])

    def _answer(self, op: int, name: bytes) -> bytes | StoreError:
        path = name.decode()
        if path not in self.values:
            return StoreError(errno.ENOENT, Op(op).name, path)
        if op == Op.READ:
            return self.values[path]
        if op == Op.DIRECTORY:
            names = {
                p[len(path) + 1 :].partition("/")[0] for p in self.values if p.startswith(path)
            }
            return strings(*sorted(names - {""}))
        inherited = self.permissions.get(path.rpartition("/")[0], b"")
        return self.permissions.get(path, inherited)

    def device(self, trusted: frozenset[int] = TRUSTED) -> Device | None:
        """Return the device; it is the same whether all nodes are asked for, or those that are there."""
        there = self.listings()
        few = device_from_answers(self.paths, self.answers(there), trusted, there)
        all_of_them = device_from_answers(self.paths, self.answers(), trusted)
        assert _comparable(few) == _comparable(all_of_them)
        return few


def _comparable(device: Device | None) -> tuple[Device, list[tuple[str, str]]] | None:
    if device is None:
        return None
    return device._replace(errors=()), [(error.kind, str(error)) for error in device.errors]


def errors_of(device: Device | None) -> list[tuple[str, str]]:
    assert device
    assert (device.disk is None) == bool(device.errors)
    return [(error.kind, error.path) for error in device.errors]


def expected(*errors: tuple[str, str]) -> list[tuple[str, str]]:
    return [(kind, place(short)) for kind, short in errors]


# -- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", [PLAIN, COLO, CDROM], ids=["plain", "COLO", "empty cdrom"])
@pytest.mark.parametrize("paths", [PATHS, DRIVER_DOMAIN], ids=["dom0", "driver domain"])
def test_what_was_written_is_read_back(disk: Disk, paths: DevicePaths) -> None:
    disk = msgspec.structs.replace(disk, backend_domid=paths.backend_domid)
    device = Nodes(disk, paths).device()
    whole = msgspec.structs.replace(disk, discard_enable=disk.readwrite)
    assert device == Device(paths, whole, disk.colo_enable, (), 1, True, ())


def test_only_nodes_that_are_there_are_asked_for() -> None:
    nodes = Nodes(PLAIN)
    asked = {request.path for request in read_requests(PATHS, nodes.listings())}
    live = {f"{PATHS.backend}/{name}" for name in ("state", "online")}
    assert asked < nodes.values.keys()
    assert live < asked
    assert not any("colo" in path or path.endswith("-disk") for path in asked)


def test_too_long_a_listing_tells_nothing() -> None:
    nodes = Nodes(PLAIN)
    there = listings([StoreError(errno.E2BIG), StoreError(errno.E2BIG)])
    assert there == EVERYTHING
    assert device_from_answers(PATHS, nodes.answers(there), TRUSTED, there) == nodes.device()


@pytest.mark.parametrize("number", [0, 1])
def test_a_listing_that_is_another_error_is_raised(number: int) -> None:
    answers: list[bytes | StoreError] = [b"", b""]
    answers[number] = StoreError(errno.EACCES)
    with pytest.raises(StoreError):
        listings(answers)


ALIKE: dict[str, tuple[Disk, Changes, dict[str, Any]]] = {
    "an unknown mode is read-only": (
        PLAIN,
        {"LX/mode": b"rw", "BE/mode": b"rw"},
        {"readwrite": False, "discard_enable": True},
    ),
    "no params in an empty cdrom": (CDROM, {"LX/params": None, "BE/params": None}, {}),
    "no discard-enable": (
        PLAIN,
        {"LX/discard-enable": None, "BE/discard-enable": None},
        {"discard_enable": None},
    ),
    "no specification": (PLAIN, {"LX/specification": None, "BE/specification": None}, {}),
    "no frontend-id": (PLAIN, {"LX/frontend-id": None, "BE/frontend-id": None}, {}),
    "no bootable": (PLAIN, {"LX/bootable": None, "BE/bootable": None}, {}),
    "a number for the vdev": (
        PLAIN,
        {"LX/dev": b"51712", "BE/dev": b"51712"},
        {"vdev": "51712"},
    ),
    "an old copy of the state": (PLAIN, {"BE/state": b"4"}, {}),
    "unknown nodes": (PLAIN, {"LX/x": b"\xff", "BE/sector-size": b"512"}, {}),
    "colons in the path": (
        PLAIN,
        {"LX/params": b"aio:/srv/a:b", "BE/params": b"aio:/srv/a:b"},
        {"pdev_path": "/srv/a:b"},
    ),
    "what looks like a protocol is a path": (
        PLAIN,
        {"LX/params": b"aio:json:{}", "BE/params": b"aio:json:{}"},
        {"pdev_path": "json:{}"},
    ),
    "options in the path": (
        PLAIN,
        {"LX/params": b"aio:a,if=none", "BE/params": b"aio:a,if=none"},
        {"pdev_path": "a,if=none"},
    ),
}


@pytest.mark.parametrize(("disk", "changes", "fields"), ALIKE.values(), ids=ALIKE)
def test_what_is_no_error(disk: Disk, changes: Changes, fields: dict[str, Any]) -> None:
    device = Nodes(disk).changed(changes).device()
    assert errors_of(device) == []
    assert device
    whole = msgspec.structs.replace(disk, discard_enable=disk.readwrite)
    assert device.disk == msgspec.structs.replace(whole, **fields)


@pytest.mark.parametrize(
    ("value", "state"), [(b"4", 4), (b"", None), (b"x", None), (b"\xb2", None), (None, None)]
)
def test_the_state_is_the_live_one(value: bytes | None, state: int | None) -> None:
    device = Nodes(PLAIN).changed({"BE/state": value}).device()
    assert device
    assert device.state == state


@pytest.mark.parametrize(("value", "online"), [(b"0", False), (b"1", True), (None, True)])
def test_a_device_that_is_being_removed_is_offline(value: bytes | None, online: bool) -> None:
    device = Nodes(PLAIN).changed({"BE/online": value}).device()
    assert device
    assert device.online is online


# -- what is missing ----------------------------------------------------------------------------

MANDATORY = [
    node.name
    for node in (*LIBXL_NODES, *BACKEND_NODES)
    if node.need is not Need.NEVER or node.name == "params"
]
COPIED = [name for name in MANDATORY if name != "backend"]


@pytest.mark.parametrize("name", MANDATORY)
def test_each_node_missing_in_both_places_is_named_in_libxls_words(name: str) -> None:
    device = Nodes(COLO).changed({f"LX/{name}": None, f"BE/{name}": None}).device()
    assert errors_of(device) == expected(("missing", f"LX/{name}"))
    assert device
    assert str(device.errors[0]) == f"Missing xenstore node {PLACES['LX']}/{name}"


@pytest.mark.parametrize("side", ["LX", "BE"])
@pytest.mark.parametrize("name", COPIED)
def test_each_node_missing_in_one_place_is_named_there(name: str, side: str) -> None:
    device = Nodes(COLO).changed({f"{side}/{name}": None}).device()
    assert errors_of(device) == expected(("missing", f"{side}/{name}"))


@pytest.mark.parametrize("pair", list(combinations(MANDATORY, 2)), ids="-".join)
def test_two_nodes_missing_are_both_named(pair: tuple[str, str]) -> None:
    gone = {f"{side}/{name}": None for side in ("LX", "BE") for name in pair}
    device = Nodes(COLO).changed(gone).device()
    named = expected(*(("missing", f"LX/{name}") for name in pair))
    if "params" in pair:  # without the others it is not known that it has to be there
        named = [error for error in named if not error[1].endswith("/params")]
    assert sorted(errors_of(device)) == sorted(named)


@pytest.mark.parametrize("left", COLO_FIELDS.values())
def test_one_colo_node_makes_a_colo_disk_that_misses_the_others(left: str) -> None:
    others = [name for name in COLO_FIELDS.values() if name != left]
    gone = {f"{side}/{name}": None for side in ("LX", "BE") for name in others}
    device = Nodes(COLO).changed(gone).device()
    assert errors_of(device) == expected(*(("missing", f"LX/{name}") for name in others))
    assert device
    assert device.is_colo


def test_without_any_colo_node_it_is_a_plain_disk() -> None:
    names = COLO_FIELDS.values()
    gone = {f"{side}/{name}": None for side in ("LX", "BE") for name in names}
    device = Nodes(COLO).changed(gone).device()
    assert device
    assert device.disk == msgspec.structs.replace(PLAIN, discard_enable=True)
    assert not device.is_colo


# -- what is there or not -----------------------------------------------------------------------


def test_neither_copy_nor_backend_is_no_device() -> None:
    assert Nodes(PLAIN).changed({"LX": None, "BE": None}).device() is None


def test_a_backend_without_the_copy_is_a_device_in_error() -> None:
    device = Nodes(COLO).changed({"LX": None}).device()
    assert errors_of(device) == expected(("missing", "LX"))


def test_a_copy_without_the_backend_is_a_device_in_error() -> None:
    device = Nodes(COLO).changed({"BE": None}).device()
    assert errors_of(device) == expected(("missing", "BE"))


@pytest.mark.parametrize(
    "elsewhere",
    [b"/local/domain/3/backend/qdisk/5/51712", b"/local/domain/0/backend/vbd/5/51712"],
)
def test_a_device_that_is_served_elsewhere_is_none_of_ours(elsewhere: bytes) -> None:
    nodes = Nodes(PLAIN).changed({"BE": None, "LX/backend": elsewhere})
    assert nodes.device() is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        b"/local/domain/3/backend/qdisk/5/51712",
        b"/local/domain/0/backend/vbd/5/51712",
        b"/local/domain/0/backend/qdisk/6/51712",
        b"/local/domain/0/backend/qdisk/5/51728",
        b"",
        b"\xff",
    ],
)
def test_another_backend_in_the_copy_is_wrong_while_this_one_stands(elsewhere: bytes) -> None:
    device = Nodes(PLAIN).changed({"LX/backend": elsewhere}).device()
    assert errors_of(device) == expected(("wrong", "LX/backend"))


# -- what is wrong ------------------------------------------------------------------------------

#: A value that can't be, written in both places.
WRONG = {
    "params": [b"", b"/srv/a.img", b"raw:/srv/a.img", b":/srv/a.img", b"aio:/a\0b", b"aio:\xff"],
    "colo-host": [b"", b"a b", b"h\n", b"\xff", b"h" * 4000],
    "colo-port": [
        b"",
        b"0",
        b"65536",
        b"99abc",
        b"-1",
        b" 9000",
        b"09000",
        b"\xef\xbc\x99",
        b"\xff",
    ],
    "colo-export": [b"", b"1st", b"a,b", b"e" * 32, b"\xff"],
    "active-disk": [b"", b"/a\nb", b"\xff"],
    "hidden-disk": [b"", b"/a\x1b[2J", b"\xff"],
    "frontend": [b"", b"/local/domain/6/device/vbd/51712", b"\xff"],
    "frontend-id": [b"", b"6", b"05", b"\xff"],
    "removable": [b"", b"2", b"true", b"\xff"],
    "dev": [b"", b"xvdb", b"51728", b"nvme0", b"xvda1", b"\xff", b"x" * 4000],
    "type": [b"", b"phy", b"vbd3", b"qdisk ", b"\xff"],
    "mode": [b"", b"\xff"],
    "device-type": [b"", b"floppy", b"\xff"],
    "direct-io-safe": [b"", b"yes", b"\xff"],
    "discard-enable": [b"", b"yes", b"\xff"],
    "specification": [b"", b"xenbus", b"\xff"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_what_cannot_be_is_the_error_of_that_node(name: str, value: bytes) -> None:
    device = Nodes(COLO).changed({f"LX/{name}": value, f"BE/{name}": value}).device()
    assert errors_of(device) == expected(("wrong", f"LX/{name}"))
    assert device
    assert device.is_colo
    text = str(device.errors[0])
    assert text.isprintable()
    assert len(text) < 600


#: A value that can be, in one place alone.
OTHERWISE = {
    "params": b"qcow2:/srv/b.img",
    "colo-host": b"198.51.100.1",
    "colo-port": b"9001",
    "colo-export": b"disk2",
    "active-disk": b"/srv/other.qcow2",
    "hidden-disk": b"/srv/other.qcow2",
    "removable": b"1",
    "mode": b"r",
    "device-type": b"cdrom",
    "direct-io-safe": b"1",
    "discard-enable": b"0",
    "specification": b"virtio",
}


@pytest.mark.parametrize(("name", "value"), OTHERWISE.items())
def test_backend_and_copy_must_say_the_same(name: str, value: bytes) -> None:
    """A backend in a driver domain must not change what the toolstack said (XSA-178)."""
    device = Nodes(COLO).changed({f"BE/{name}": value}).device()
    (error,) = errors_of(device)
    # What the copy does not have at all is missing there.
    kind, side = ("missing", "LX") if name == "direct-io-safe" else ("wrong", "BE")
    assert error == (kind, place(f"{side}/{name}"))


#: Values that can be, each for itself, and don't go together: the node that is named, and the words.
TOGETHER = {
    "hidden is active": ({"hidden-disk": b"/srv/active.qcow2"}, "hidden-disk", "three files"),
    "hidden is the target": ({"hidden-disk": b"/srv/a.img"}, "hidden-disk", "three files"),
    "active is the target": ({"active-disk": b"/srv/a.img"}, "active-disk", "three files"),
    "a script": ({"script": b"block-nbd"}, "script", "which has no script"),
    "virtio": ({"specification": b"virtio"}, "specification", "specification=xen"),
    "empty and no cdrom": ({"params": b"aio:"}, "params", "empty but no cdrom"),
}


@pytest.mark.parametrize(("values", "node", "words"), TOGETHER.values(), ids=TOGETHER)
def test_what_does_not_go_together_is_the_error_of_the_node_to_change(
    values: Changes, node: str, words: str
) -> None:
    both = {f"{side}/{name}": value for name, value in values.items() for side in ("LX", "BE")}
    device = Nodes(COLO).changed(both).device()
    assert errors_of(device) == expected(("wrong", f"LX/{node}"))
    assert device
    assert words in str(device.errors[0])


# -- who could have written it ------------------------------------------------------------------

UNTRUSTED = [b"n5\0", b"n0\0w5\0", b"n0\0b5\0", b"w0\0", b"b0\0", b"b0\0n5\0", b"n7\0r0\0"]
HARMLESS = [b"n0\0", b"r0\0", b"n0\0r5\0", b"n0\0n5\0", b"n0\0w0\0"]
GUARDED = ["LX", "LX/frontend", "LX/backend", "LX/params", "LX/colo-port", "LX/dev", "BE"]


@pytest.mark.parametrize("payload", UNTRUSTED, ids=repr)
@pytest.mark.parametrize("short", GUARDED)
def test_what_another_domain_could_have_written_is_refused(short: str, payload: bytes) -> None:
    nodes = Nodes(COLO)
    nodes.permissions[place(short)] = payload
    device = nodes.device()
    own = ("untrusted", place(short))
    # A directory's children have its permissions, unless they have their own.
    assert own in errors_of(device)
    assert {kind for kind, _ in errors_of(device)} == {"untrusted"}


@pytest.mark.parametrize("payload", [b"", b"\0", b"x5\0", b"n0\0\xff\0", b"n123456\0", b"n" * 4096])
@pytest.mark.parametrize("short", GUARDED)
def test_permissions_that_are_none_are_the_error_of_that_node(short: str, payload: bytes) -> None:
    nodes = Nodes(COLO)
    nodes.permissions = dict.fromkeys(nodes.values, b"n0\x00") | {place(short): payload}
    device = nodes.device()
    assert errors_of(device) == [("wrong", place(short))]
    assert device
    assert "not a list like n0, r5" in str(device.errors[0])
    assert len(str(device.errors[0])) < 600


@pytest.mark.parametrize("payload", HARMLESS, ids=repr)
@pytest.mark.parametrize("short", GUARDED)
def test_who_may_only_read_is_no_matter(short: str, payload: bytes) -> None:
    nodes = Nodes(COLO)
    nodes.permissions[place(short)] = payload
    assert errors_of(nodes.device()) == []


def test_a_driver_domain_may_own_its_backend_and_not_the_copy() -> None:
    disk = msgspec.structs.replace(PLAIN, backend_domid=3)
    nodes = Nodes(disk, DRIVER_DOMAIN)
    assert errors_of(nodes.device()) == []
    nodes.permissions[DRIVER_DOMAIN.libxl] = b"n3\0"
    assert ("untrusted", DRIVER_DOMAIN.libxl) in errors_of(nodes.device())


def test_the_daemons_own_domain_is_trusted() -> None:
    nodes = Nodes(PLAIN)
    nodes.permissions[PATHS.libxl] = b"n3\0"
    assert errors_of(nodes.device(frozenset({0, 3}))) == []


# -- the guest's own nodes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"/local/domain/9/backend/qdisk/5/51712", b"", b"\xff\x1b[2J", b"x" * 4096, None],
)
def test_a_frontend_that_points_elsewhere_is_told_and_not_followed(value: bytes | None) -> None:
    device = Nodes(COLO).changed({"FE/backend": value}).device()
    assert device
    assert device.disk == msgspec.structs.replace(COLO, discard_enable=True)
    (suspicion,) = device.suspicions
    assert suspicion.startswith(f"{PLACES['FE']}/backend is ")
    assert suspicion.isprintable()
    assert len(suspicion) < 600


# -- whatever comes -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(read_requests(PATHS))))
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_another_error_than_absence_is_raised(number: int, error: int) -> None:
    answers = Nodes(COLO).answers()
    answers[number] = StoreError(error)
    with pytest.raises(StoreError) as caught:
        device_from_answers(PATHS, answers, TRUSTED)
    assert caught.value.errno == error


NAMES = [node.name for node in (*LIBXL_NODES, *BACKEND_NODES)]
VALUES = (
    st.none()
    | st.binary(max_size=40)
    | st.sampled_from(sorted({v for w in WRONG.values() for v in w}))
)
SPOILED = st.dictionaries(
    st.builds("{}/{}".format, st.sampled_from(["LX", "BE", "FE"]), st.sampled_from(NAMES)),
    VALUES,
    max_size=6,
)
BOTH = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6).map(
    lambda names: {f"{side}/{name}": v for name, v in names.items() for side in ("LX", "BE")}
)


@given(st.sampled_from([PLAIN, COLO, CDROM]), SPOILED | BOTH)
def test_any_bytes_in_any_node_are_a_device_or_its_errors(disk: Disk, changes: Changes) -> None:
    nodes = Nodes(disk).changed(changes)
    device = nodes.device()
    assert device
    assert (device.disk is None) == bool(device.errors)
    for error in device.errors:
        assert str(error).isprintable()
        assert error.path.startswith((PLACES["LX"], PLACES["BE"]))
    if device.disk:
        device.disk.check()
