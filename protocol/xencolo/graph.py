"""The block graph of one disk in one role, and its two renderings.

The graph is a list of QEMU's BlockdevOptions, each node before the one that refers to it:
``blockdev`` is the list as it stands, ``2016`` the ``-drive`` text that the 2016 change to libxl
specifies. Sources: QEMU's ``qapi/block-core.json`` and ``docs/block-replication.txt``, libxl's
``libxl_dm.c``.

What is left to QEMU, as libxl leaves it. cache=writeback: it is what ``-blockdev`` has unless told
otherwise (host page cache used, flushes honoured, the device's write cache on). direct-io-safe:
libxl heeds it in the PV backend alone, an emulated drive always uses the page cache.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from xencolo.disk import Backend, Disk, Format, Role

#: How the names of :func:`peer_node` begin.
PEER_NODE = "peer-"


class Form(StrEnum):
    """How drives are written."""

    BLOCKDEV = "blockdev"
    TEXT_2016 = "2016"


def form_of(arguments: Iterable[str]) -> Form:
    """Return how these arguments of QEMU's are written."""
    return Form.TEXT_2016 if "-drive" in arguments else Form.BLOCKDEV


def has_disk(arguments: Sequence[str], disk: Disk) -> bool:
    """Return whether these arguments of QEMU's give it the COLO disk, and the images that it names now."""
    names = f'"node-name":"{quorum_node(disk.devid)}"', f",id={disk.colo_export},"
    if not any(name in argument for argument in arguments for name in names):
        return False
    images = {disk.pdev_path}
    if any('"mode":"secondary"' in argument for argument in arguments):
        images |= {disk.active_disk, disk.hidden_disk}
    return images <= image_drivers(arguments).keys()


def colo_disks(arguments: Iterable[str]) -> int:
    """Return how many COLO disks these arguments of QEMU's give it."""
    quorums = '"node-name":"quorum-', ",driver=quorum,"
    texts = [argument.replace(",,", "") for argument in arguments]
    return sum(any(quorum in text for quorum in quorums) for text in texts)


def image_drivers(arguments: Iterable[str]) -> dict[str, str]:
    """Return the images in arguments that :func:`render` made: path → ``file`` or ``host_device``.

    The text of 2016 names no driver: it is empty there, and QEMU looks at what the path leads to.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        if argument.startswith("{"):
            _collect(json.loads(argument), found)
        else:
            found |= dict.fromkeys(_named_in_text(argument), "")
    return found


def _named_in_text(argument: str) -> Iterator[str]:
    for option in argument.replace(",,", "\0").split(","):
        key, _, value = option.partition("=")
        if key == "file" or key.endswith(".filename"):
            yield value.replace("\0", ",")


def _collect(node: Any, found: dict[str, str]) -> None:  # noqa: ANN401 - JSON
    if isinstance(node, list):
        for item in node:
            _collect(item, found)
    if isinstance(node, dict):
        if "filename" in node:
            found[node["filename"]] = node["driver"]
        _collect(list(node.values()), found)


def quorum_node(devid: int) -> str:
    """Return the name of a COLO disk's topmost node, the one that the device uses."""
    return f"quorum-{devid}"


def replication_node(devid: int) -> str:
    """Return the name of a disk's replication node."""
    return f"replication-{devid}"


def peer_node(devid: int) -> str:
    """Return the name of the node through which a primary's quorum writes to the secondary.

    It is a replication node in mode primary, and stands beside :func:`replication_node` in a QEMU that
    was a secondary and is a primary now.
    """
    return f"{PEER_NODE}{devid}"


def nbd_node(devid: int) -> str:
    """Return the name of the node that is a disk of the secondary, reached over NBD."""
    return f"nbd-{devid}"


def plain_node(devid: int) -> str:
    """Return the name of the only node of a disk without COLO."""
    return f"plain-{devid}"


def device_id(devid: int) -> str:
    """Return the id of the emulated device."""
    return f"disk-{devid}"


class Place(NamedTuple):
    """A disk's place in the machine: ``ide`` or ``scsi``, and its number there."""

    bus: str
    number: int


class Drive(NamedTuple):
    """A disk that is emulated, and its role: none for a disk without COLO."""

    disk: Disk
    role: Role
    place: Place

    @property
    def images(self) -> Mapping[str, str]:
        """The files that QEMU opens for it, by the nodes that name them."""
        paths = {"params": self.disk.pdev_path}
        if self.role is Role.SECONDARY:
            paths |= {"active-disk": self.disk.active_disk, "hidden-disk": self.disk.hidden_disk}
        return {node: path for node, path in paths.items() if path}

    @property
    def read_only(self) -> bool:
        """Whether nothing may write to its images."""
        return self.disk.is_cdrom or not self.disk.readwrite


# -- the graph ----------------------------------------------------------------------------------

#: QEMU's names of the formats.
FORMATS = {
    Format.RAW: "raw",
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.VHD: "vpc",
    Format.QED: "qed",
}


# QEMU's BlockdevOptions, and the keys in the order of the 2016 text.
_Node = dict[str, Any]


def _graph(drive: Drive, is_block_device: Callable[[str], bool]) -> list[_Node]:
    """Return the nodes for the role, the one for the device last; none for an empty drive."""

    def file(path: str | None) -> _Node:
        # the driver is named, else QEMU would guess it from the path
        driver = "host_device" if is_block_device(path or "") else "file"
        return {"driver": driver, "filename": path}

    def quorum(child: _Node | str) -> _Node:
        return {
            "driver": "quorum",
            "node-name": quorum_node(disk.devid),
            "children": [child],
            "read-pattern": "fifo",
            "vote-threshold": 1,
        }

    disk = drive.disk
    image = {"file": file(disk.pdev_path), "driver": _driver(disk)}
    match drive.role:
        case Role.PRIMARY:
            nodes = [quorum(image)]
        case Role.SECONDARY:
            hidden = {
                "driver": "qcow2",
                "file": file(disk.hidden_disk),
                "backing": disk.colo_export,
            }
            active = {"driver": "qcow2", "file": file(disk.active_disk), "backing": hidden}
            replication: _Node = {
                "driver": "replication",
                "node-name": replication_node(disk.devid),
                "mode": "secondary",
                "top-id": quorum_node(disk.devid),
                "file": active,
            }
            # the quorum on top has nothing to do until the secondary becomes a primary
            nodes = [
                image | {"node-name": disk.colo_export},
                replication,
                quorum(replication_node(disk.devid)),
            ]
        case _:
            nodes = [] if disk.empty else [image | {"node-name": plain_node(disk.devid)}]
    if drive.read_only:
        return [_read_only(node) for node in nodes]
    # As QEMU's PV backend does with discard-enable. Nodes inside others have it from QEMU.
    return [node | {"discard": "unmap"} for node in nodes] if disk.discard else nodes


def _driver(disk: Disk) -> str:
    if disk.empty:
        return ""
    # what another backend serves is a block device already
    return FORMATS[disk.format if disk.backend in _QEMU_READS_FORMAT else Format.RAW]


_QEMU_READS_FORMAT = {Backend.QDISK, Backend.UNKNOWN}


def _read_only(node: Any) -> Any:  # noqa: ANN401 - JSON
    """Return the node with each node in it made read-only (XSA-142, XSA-266)."""
    if isinstance(node, list):
        return [_read_only(item) for item in node]
    if isinstance(node, dict):
        return {key: _read_only(item) for key, item in node.items()} | {"read-only": True}
    return node


# -- as -blockdev and -device -------------------------------------------------------------------


# Made once: json.dumps makes an encoder for each call that is given options.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _blockdev(drive: Drive, nodes: list[_Node]) -> Iterator[str]:
    for node in nodes:
        yield "-blockdev"
        yield _to_json(node)
    bus, number = drive.place
    model = "ide-cd" if drive.disk.is_cdrom else f"{bus}-hd"
    medium = f"drive={nodes[-1]['node-name']}," if nodes else ""
    where = f"bus=ide.{number // 2},unit={number % 2}" if bus == "ide" else _SCSI_ID.format(number)
    yield "-device"
    yield f"{model},{medium}{where},id={device_id(drive.disk.devid)}"


_SCSI_ID = "bus=lsi.0,scsi-id={}"


# -- as the text of 2016 ------------------------------------------------------------------------

# What the text leaves to QEMU: names, drivers of files, and what later QEMUs ask for.
_UNSAID = {"node-name", "top-id", "read-only", "discard"}
_FILE_DRIVERS = {"file", "host_device"}

_Options = list[tuple[str, object]]


def text_id(drive: Drive) -> str:
    """Return the id of a drive: libxl's for a cdrom, the one QEMU makes up for a plain disk."""
    bus, number = drive.place
    if drive.disk.is_cdrom:
        return f"ide-{drive.disk.devid}"
    return f"ide{number // 2}-hd{number % 2}" if bus == "ide" else f"scsi0-hd{number}"


def _text_2016(drive: Drive, nodes: list[_Node]) -> Iterator[str]:
    for options in _text_drives(drive, nodes):
        yield "-drive"
        yield ",".join(f"{key}={str(value).replace(',', ',,')}" for key, value in options)


def _text_drives(drive: Drive, nodes: list[_Node]) -> Iterator[_Options]:
    disk = drive.disk
    bus, number = drive.place
    path, export = ("file", disk.pdev_path), ("id", disk.colo_export)
    read_only: _Options = [("readonly", "on")] if drive.read_only else []
    where: _Options = [("if", "ide"), ("index", number)]
    if disk.is_cdrom:
        yield [
            *where,
            *read_only,
            ("media", "cdrom"),
            ("id", text_id(drive)),
            *([path, ("format", _driver(disk))] if nodes else []),
        ]
        return
    where = [*where, ("media", "disk")]
    if bus == "scsi":
        where = [("if", "scsi"), ("bus", 0), ("unit", number)]
    cache = ("cache", "writeback")
    match drive.role:
        case Role.PRIMARY:
            driver, *rest = _flat(nodes[0])
            yield [*where, cache, driver, export, *rest, *read_only]
        case Role.SECONDARY:
            yield [("if", "none"), ("driver", nodes[0]["driver"]), path, export, *read_only]
            yield [*where, cache, *_flat(nodes[1]), *read_only]
        case _:
            yield [path, *where, ("format", nodes[0]["driver"]), cache, *read_only]


def _flat(node: _Node, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the options of a node and of those in it, with dots between the levels."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{key}.{number}.")
        elif key not in _UNSAID and not (key == "driver" and value in _FILE_DRIVERS):
            yield prefix + key, value


# -- both ---------------------------------------------------------------------------------------

# The 2016 text has QEMU make its own controllers.
_SCSI_CONTROLLER = ("-device", "lsi53c895a,id=lsi")


def render(
    drives: Iterable[Drive], form: Form, is_block_device: Callable[[str], bool]
) -> tuple[str, ...]:
    """Return QEMU's arguments for the drives of a domain, in their order."""
    drives = list(drives)
    renderer = _blockdev if form is Form.BLOCKDEV else _text_2016
    arguments = [word for d in drives for word in renderer(d, _graph(d, is_block_device))]
    if form is Form.BLOCKDEV and any(drive.place.bus == "scsi" for drive in drives):
        return (*_SCSI_CONTROLLER, *arguments)
    return tuple(arguments)
