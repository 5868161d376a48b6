"""The nodes of a disk: ONE table, from which writing, reading, the errors and the reference page come.

Sources: libxl's ``device_disk_add`` and ``libxl__disk_from_xenstore``, Xen's xenstore-paths and
``xen/include/public/io/blkif.h``. The order of the table is the order in which libxl writes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from xencolo import requests
from xencolo.disk import (
    Backend,
    Disk,
    Format,
    Specification,
    check_export,
    check_host,
    check_image,
    parse_port,
)
from xencolo.errors import DiskError
from xencolo.paths import DevicePaths, vdev_to_devid
from xencolo.requests import Request
from xencolo.wire import Permission

Fields = Mapping[str, Any]


class Need(Enum):
    """When a node must be there for the disk to be read."""

    ALWAYS = "mandatory"
    COLO = "mandatory for COLO"
    NEVER = "optional"


class Node(NamedTuple):
    """A row of the table.

    :ivar name: the node's name in its directory.
    :ivar values: what it holds, in the notation of xenstore-paths.
    :ivar meaning: for the reference page.
    :ivar render: the value for a disk; None where the node is not written.
    :ivar parse: the fields of :class:`~xencolo.disk.Disk` in a value; raises ValueError, DiskError or
        VdevError with the reason. None where the node is no part of the description.
    """

    name: str
    values: str
    meaning: str
    render: Callable[[Disk, DevicePaths], str | None]
    parse: Callable[[str, DevicePaths], Fields] | None = None
    need: Need = Need.NEVER


# -- parsing ------------------------------------------------------------------------------------

_PREFIXES = {
    Format.RAW: "aio",
    Format.EMPTY: "aio",
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.VHD: "vhd",
    Format.QED: "qed",
}
_FORMATS = {prefix: fmt for fmt, prefix in _PREFIXES.items() if fmt is not Format.EMPTY}
_TYPES = {
    Backend.QDISK: "qdisk",
    Backend.PHY: "phy",
    Backend.TAP: "vbd3",
    Backend.STANDALONE: "standalone",
}
_BACKENDS = {name: backend for backend, name in _TYPES.items()}
_KINDS = {"qdisk": Backend.QDISK, "vbd": Backend.PHY, "vbd3": Backend.TAP}


def _one_of(value: str, words: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the words' own type
    try:
        return words[value]
    except KeyError:
        raise ValueError(f"{value[:40]!r} is not {' or '.join(words)}") from None


_BOOLEANS = {"0": False, "1": True}


def _boolean(field: str) -> Callable[[str, DevicePaths], Fields]:
    return lambda value, _: {field: _one_of(value, _BOOLEANS)}


def _text(field: str, check: Callable[[str], object]) -> Callable[[str, DevicePaths], Fields]:
    def parse(value: str, _: DevicePaths) -> Fields:
        check(value)
        return {field: value}

    return parse


def _same(expected: Callable[[DevicePaths], str]) -> Callable[[str, DevicePaths], Fields]:
    """Parse a node that only repeats where it stands: no field, but it must be right."""

    def parse(value: str, paths: DevicePaths) -> Fields:
        if value != expected(paths):
            raise ValueError(f"{value[:120]!r} is not {expected(paths)}")
        return {}

    return parse


def _params(value: str, paths: DevicePaths) -> Fields:
    prefix, colon, path = value.partition(":")
    if paths.kind == "vbd":  # blkback's params have no prefix; a path may have a colon of its own
        return {"pdev_path": check_image(value), "format": Format.RAW}
    if not colon:
        raise ValueError(f"{value[:80]!r} has no format before its path, like aio:/path")
    if not path:
        return {"pdev_path": None, "format": Format.EMPTY}
    return {"pdev_path": check_image(path), "format": _one_of(prefix, _FORMATS)}


def _render_params(disk: Disk, paths: DevicePaths) -> str:
    path = disk.pdev_path or ""
    return path if paths.kind == "vbd" else f"{_PREFIXES[disk.format]}:{path}"


def _type(value: str, paths: DevicePaths) -> Fields:
    backend = _one_of(value, _BACKENDS)
    if backend is not _KINDS[paths.kind]:
        raise ValueError(f"{value!r} does not go with a backend of kind {paths.kind}")
    return {"backend": backend}


def _dev(value: str, paths: DevicePaths) -> Fields:
    if vdev_to_devid(value) != paths.devid:
        raise ValueError(f"{value!r} is device {vdev_to_devid(value)}, not {paths.devid}")
    return {"vdev": value}


def _mode(value: str, _: DevicePaths) -> Fields:
    if not value:
        raise ValueError("it is empty, w or r is needed")
    return {"readwrite": value == "w"}


def _port(value: str, _: DevicePaths) -> Fields:
    return {"colo_port": parse_port(value)}


# -- rendering ----------------------------------------------------------------------------------


def _always(value: str) -> Callable[[Disk, DevicePaths], str]:
    return lambda _disk, _paths: value


def _flag(field: str) -> Callable[[Disk, DevicePaths], str]:
    return lambda disk, _: str(int(getattr(disk, field)))


def _colo(field: str) -> Callable[[Disk, DevicePaths], str | None]:
    return lambda disk, _: str(getattr(disk, field)) if disk.colo_enable else None


def _device_type(disk: Disk, _: DevicePaths) -> str:
    return "cdrom" if disk.is_cdrom else "disk"


_DEVICE_TYPE_VALUES = '("disk" | "cdrom")'
_BOOLEAN_VALUES = '("0" | "1")'
_INITIALISING = "1"

# -- the table -----------------------------------------------------------------------------------

#: What the guest owns and may change: written, never believed.
FRONTEND_NODES = (
    Node(
        "backend",
        "PATH",
        "The backend's directory. Another value is reported, and not followed (XSA-175).",
        lambda _, paths: paths.backend,
    ),
    Node(
        "backend-id",
        "INTEGER",
        "Domid of the backend's domain.",
        lambda _, paths: str(paths.backend_domid),
    ),
    Node("state", "INTEGER", "XenbusState of the frontend, 1 at first.", _always(_INITIALISING)),
    Node("virtual-device", "INTEGER", "The devid again.", lambda _, paths: str(paths.devid)),
    Node("device-type", _DEVICE_TYPE_VALUES, "What the guest shows.", _device_type),
    Node(
        "trusted",
        _BOOLEAN_VALUES,
        "Whether the guest may trust its backend (xl's trusted, untrusted).",
        _flag("trusted"),
    ),
)

#: In the backend's directory and in the toolstack's copy, first in both.
FRONTEND_NODE = Node(
    "frontend",
    "PATH",
    "The guest's directory.",
    lambda _, paths: paths.frontend,
    _same(lambda paths: paths.frontend),
    Need.ALWAYS,
)

#: In the toolstack's copy before the nodes of the backend's directory.
LIBXL_NODES = (
    FRONTEND_NODE,
    Node(
        "backend",
        "PATH",
        "The backend's directory: which domain serves the disk, and how.",
        lambda _, paths: paths.backend,
        _same(lambda paths: paths.backend),
        Need.ALWAYS,
    ),
)

#: In the backend's directory after ``frontend``, and again in the toolstack's copy.
BACKEND_NODES = (
    Node(
        "params",
        "STRING",
        "Format and path, `<prefix>:<path>`: `aio` for raw, else `qcow`, `qcow2`, `vhd` or `qed`. "
        "An empty path is an empty drive; the node may be absent from one.",
        _render_params,
        _params,
    ),
    Node(
        "script",
        "STRING",
        "Hotplug script of a `phy` disk; never with qdisk.",
        lambda disk, _: disk.script,
        _text("script", check_image),
    ),
    Node(
        "colo-host",
        "STRING",
        "Host of the secondary's NBD server. It makes the disk a COLO disk; libxl takes a disk "
        "without it for a plain one, xencolo reports it as missing if another COLO node is there.",
        _colo("colo_host"),
        _text("colo_host", check_host),
        Need.COLO,
    ),
    Node(
        "colo-port",
        "INTEGER",
        "TCP port of the secondary's NBD server, 1 to 65535.",
        _colo("colo_port"),
        _port,
        Need.COLO,
    ),
    Node(
        "colo-export",
        "STRING",
        "Name of the NBD export, and of the block node in the secondary's QEMU.",
        _colo("colo_export"),
        _text("colo_export", check_export),
        Need.COLO,
    ),
    Node(
        "active-disk",
        "STRING",
        "Path of the qcow2 image that takes the secondary guest's writes.",
        _colo("active_disk"),
        _text("active_disk", check_image),
        Need.COLO,
    ),
    Node(
        "hidden-disk",
        "STRING",
        "Path of the qcow2 image that keeps what the primary overwrites.",
        _colo("hidden_disk"),
        _text("hidden_disk", check_image),
        Need.COLO,
    ),
    Node(
        "frontend-id",
        "INTEGER",
        "Domid of the guest.",
        lambda _, paths: str(paths.domid),
        _same(lambda paths: str(paths.domid)),
    ),
    Node("online", _BOOLEAN_VALUES, "0 when the device is being removed.", _always("1")),
    Node(
        "removable",
        _BOOLEAN_VALUES,
        "Whether the medium can be changed.",
        _flag("removable"),
        _boolean("removable"),
        Need.ALWAYS,
    ),
    Node("bootable", _BOOLEAN_VALUES, "Always 1.", _always("1")),
    Node(
        "state",
        "INTEGER",
        "XenbusState of the backend, 1 at first: live in the backend's directory only, in the copy "
        "it stays 1.",
        _always(_INITIALISING),
    ),
    Node(
        "dev",
        "STRING",
        "The vdev, `xvda`; it must encode to $DEVID.",
        lambda disk, _: disk.vdev,
        _dev,
        Need.ALWAYS,
    ),
    Node(
        "type",
        '("qdisk" | "phy" | "vbd3")',
        "Who serves the disk; it must go with the backend's kind.",
        lambda disk, _: _TYPES[disk.backend],
        _type,
        Need.ALWAYS,
    ),
    Node(
        "mode",
        '("w" | "r")',
        "`w` is read-write, anything else read-only.",
        lambda disk, _: "w" if disk.readwrite else "r",
        _mode,
        Need.ALWAYS,
    ),
    Node(
        "device-type",
        _DEVICE_TYPE_VALUES,
        "What the guest sees.",
        _device_type,
        lambda value, _: {"is_cdrom": _one_of(value, {"disk": False, "cdrom": True})},
        Need.ALWAYS,
    ),
    Node(
        "direct-io-safe",
        _BOOLEAN_VALUES,
        "Whether the backend may use O_DIRECT; absent is 0.",
        lambda disk, _: "1" if disk.direct_io_safe else None,
        _boolean("direct_io_safe"),
    ),
    Node(
        "discard-enable",
        _BOOLEAN_VALUES,
        "Whether discard requests reach the image; absent is libxl's default, on when read-write.",
        lambda disk, _: str(int(disk.discard)),
        _boolean("discard_enable"),
    ),
    Node(
        "specification",
        '("xen" | "virtio")',
        "What the guest's driver speaks; absent is xen.",
        lambda disk, _: disk.specification.value,
        lambda value, _: {
            "specification": _one_of(value, {word.value: word for word in Specification})
        },
    ),
)

# -- writing -------------------------------------------------------------------------------------


def _tree(directory: str, nodes: Iterable[Node], disk: Disk, paths: DevicePaths) -> list[Request]:
    rendered = ((node.name, node.render(disk, paths)) for node in nodes)
    return requests.writes_below(directory, [(n, v) for n, v in rendered if v is not None])


def _owned_tree(
    directory: str, owner: int, reader: int, nodes: Iterable[Node], disk: Disk, paths: DevicePaths
) -> Iterator[Request]:
    """Make a directory for its owner first: the children inherit its permissions."""
    yield requests.rm(directory)
    yield requests.mkdir(directory)
    yield requests.set_permissions(directory, [Permission("n", owner), Permission("r", reader)])
    yield from _tree(directory, nodes, disk, paths)


def add_requests(disk: Disk, paths: DevicePaths) -> list[Request]:
    """Return what libxl writes to add the device, in its order, for one transaction.

    The ``RM`` requests may answer ENOENT. That the device is not there yet must have been checked in
    the same transaction.

    :raises DiskError: the fields don't go together, or don't say yet who serves what.
    :raises VdevError: the vdev can't be.
    :raises WireError: a value is too long for xenstore.
    """
    disk.check()
    if disk.backend is not _KINDS[paths.kind]:
        raise DiskError(
            f"{disk.vdev} has backend {disk.backend}, which is not what {paths.backend} is for",
            "backend",
        )
    if disk.format not in _PREFIXES:
        raise DiskError(f"{disk.vdev} has format {disk.format}: say which, raw is usual", "format")
    guest, server = paths.domid, paths.backend_domid
    return [
        requests.rm(paths.libxl),
        *_tree(paths.libxl, LIBXL_NODES, disk, paths),
        *_owned_tree(paths.frontend, guest, server, FRONTEND_NODES, disk, paths),
        *_owned_tree(paths.backend, server, guest, (FRONTEND_NODE, *BACKEND_NODES), disk, paths),
        *_tree(paths.libxl, BACKEND_NODES, disk, paths),
    ]
