"""The drives of a domain in a role: which disks QEMU is given, where, and which it can't be given.

Source: libxl's ``libxl_dm.c``. What each disk is made of is in :mod:`xencolo.graph`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xencolo.disk import COLO_FIELDS, Backend, Disk, Role
from xencolo.errors import DiskError, DriveError, VdevError
from xencolo.graph import (
    FORMATS,
    Drive,
    Form,
    Place,
    device_id,
    form_of,
    image_drivers,
    nbd_node,
    peer_node,
    plain_node,
    quorum_node,
    render,
    replication_node,
    text_id,
)
from xencolo.paths import VirtualDisk, parse_vdev


@dataclass(frozen=True)
class DomainDrives:
    """What QEMU is given for the disks of a domain, and which of them it can't be given.

    :ivar arguments: QEMU's arguments, by devid and so the same for the same disks in any order.
    :ivar skipped: devid → why libxl does not emulate this disk; the guest's PV driver sees it.
    :ivar errors: devid → why this disk can't be had in this role; the others are not concerned.
    :ivar images: devid → the files that QEMU will open for the disk, by the nodes that name them.
    """

    arguments: tuple[str, ...]
    skipped: Mapping[int, str]
    errors: Mapping[int, DriveError]
    images: Mapping[int, Mapping[str, str]]


def under_dev(path: str) -> bool:
    """Whether the path is in ``/dev``: the guess of a caller that has not looked."""
    return path.startswith("/dev/")


def domain_drives(
    disks: Iterable[Disk],
    role: Role,
    form: Form = Form.BLOCKDEV,
    *,
    is_block_device: Callable[[str], bool] = under_dev,
) -> DomainDrives:
    """Return the drives of a domain in a role.

    Disks that claim the same thing (a place on a bus, the name of a node, an image that is written)
    are all in error: which of them is right can't be known.

    :param disks: the domain's disks that this QEMU's own domain serves.
    :param is_block_device: whether a path is one: ``file`` refuses those, ``host_device`` the rest.
    :raises VdevError: a disk whose vdev has no devid.
    """
    placed: list[Drive] = []
    skipped: dict[int, str] = {}
    errors: dict[int, DriveError] = {}
    for disk in sorted(disks, key=lambda disk: disk.devid):
        disk_role = role if disk.colo_enable else Role.NONE
        place = _place(disk, form)
        if isinstance(place, Place):
            placed.append(Drive(disk, disk_role, place))
        elif disk_role is Role.NONE:
            skipped[disk.devid] = place
        else:
            errors[disk.devid] = DriveError(
                f"{place}; nothing of it would be replicated: choose one of hda to hdd, xvda to "
                f"xvdd or sda to sdh",
                "dev",
            )
    errors |= _clashes(placed)
    for drive in placed:
        if error := _refusal(drive):
            errors.setdefault(drive.disk.devid, error)
    good = [drive for drive in placed if drive.disk.devid not in errors]
    images = {drive.disk.devid: drive.images for drive in good}
    return DomainDrives(render(good, form, is_block_device), skipped, errors, images)


# -- places -------------------------------------------------------------------------------------

_IDE_DISKS = 4
# The lsi53c895a's; the 2016 text has another controller.
_SCSI_DISKS = 8


def _bus(disk: Disk, vdev: VirtualDisk) -> str:
    """Return the bus by libxl's rules: an xvd disk is IDE, and so is every cdrom."""
    return "scsi" if vdev.bus == "sd" and not disk.is_cdrom else "ide"


# libxl takes a partition for its whole disk: the guest would see a disk that nobody described.
_UNEMULATED: tuple[tuple[Callable[[Disk, VirtualDisk, Form], bool], str], ...] = (
    (lambda _d, v, _f: v.partition > 0, "QEMU emulates whole disks and this is a partition"),
    (
        lambda d, _v, _f: bool(d.script) or d.backend is Backend.TAP,
        "its image has no path that QEMU could open",
    ),
    (
        lambda d, v, _f: _bus(d, v) == "ide" and v.number >= _IDE_DISKS,
        "only the first four IDE and xvd disks are",
    ),
    (
        lambda d, v, f: _bus(d, v) == "scsi" and v.number >= _SCSI_DISKS and f is Form.BLOCKDEV,
        "the SCSI controller takes sda to sdh",
    ),
)


def _place(disk: Disk, form: Form) -> Place | str:
    """Return where the disk is emulated, or why it is not."""
    try:
        vdev = parse_vdev(disk.vdev)
    except VdevError as error:
        reason: str | None = str(error)
    else:
        reason = next((why for when, why in _UNEMULATED if when(disk, vdev, form)), None)
    if reason:
        return f"{disk.vdev} is not emulated, the guest's PV driver still sees it: {reason}"
    return Place(_bus(disk, vdev), vdev.number)


# -- what can't be ------------------------------------------------------------------------------


class _Refusal(NamedTuple):
    when: Callable[[Drive], bool]
    node: str
    reason: str


_REFUSALS = (
    _Refusal(
        lambda d: d.role is not Role.NONE and d.disk.is_cdrom,
        "device-type",
        "a cdrom can't be replicated: leave colo out",
    ),
    _Refusal(
        lambda d: d.role is not Role.NONE and d.disk.empty,
        "params",
        "an empty disk can't be replicated: give it a target",
    ),
    # QEMU: "Cannot export read-only node as writable", and a primary without a secondary is none
    _Refusal(
        lambda d: d.role is not Role.NONE and d.read_only,
        "mode",
        "a read-only disk can't be replicated, the secondary's is exported as writable: make it "
        "access=rw or leave colo out",
    ),
    _Refusal(
        lambda d: d.disk.empty and not d.disk.is_cdrom,
        "params",
        "only a cdrom can be empty: give it a target",
    ),
    _Refusal(
        lambda d: d.place.bus == "ide" and d.read_only and not d.disk.is_cdrom,
        "mode",
        "QEMU's IDE disks can't be read-only: make it an sd disk, a cdrom or access=rw",
    ),
    # json:, nbd:, fat:rw: are protocols to QEMU, and a relative path begins where QEMU was started
    _Refusal(
        lambda d: not d.images.get("params", "/").startswith("/"),
        "params",
        "QEMU needs paths that begin with '/': give the image's whole path",
    ),
    _Refusal(
        lambda d: not d.disk.empty and d.disk.format not in FORMATS,
        "params",
        "the format of its image is not known: give it, format=raw for example",
    ),
)


def _refusal(drive: Drive) -> DriveError | None:
    for row in _REFUSALS:
        if row.when(drive):
            return DriveError(f"{drive.disk.vdev}: {row.reason}", row.node)
    try:
        drive.disk.check()
    except DiskError as error:
        return DriveError(str(error), COLO_FIELDS.get(error.field, "params"))
    return None


# The names of a disk's nodes, those that a later resync makes too.
_NAMES = (quorum_node, replication_node, peer_node, nbd_node, plain_node, device_id)


class _Claim(NamedTuple):
    """Something that a disk needs: ``node`` says so, and another one may have it too if it is ``shared``."""

    disk: Disk
    node: str
    what: str
    remedy: str
    shared: bool = False


def _claims(drive: Drive) -> Iterator[_Claim]:
    disk, (bus, number) = drive.disk, drive.place
    yield _Claim(disk, "dev", f"{bus.upper()} disk {number}", "give each disk a place of its own")
    names = [("dev", name) for name in (*(name(disk.devid) for name in _NAMES), text_id(drive))]
    if drive.role is not Role.NONE and disk.colo_export:
        names.append(("colo-export", disk.colo_export))
    for node, name in names:
        remedy = "give each disk a colo-export of its own"
        yield _Claim(disk, node, f"the block node {name}", remedy)
    for node, path in drive.images.items():
        remedy = "QEMU writes only to an image that is used once"
        yield _Claim(disk, node, f"the image {path}", remedy, drive.read_only)


def _clashes(drives: Iterable[Drive]) -> dict[int, DriveError]:
    claimed: dict[str, list[_Claim]] = defaultdict(list)
    for drive in drives:
        for claim in _claims(drive):
            claimed[claim.what].append(claim)
    errors: dict[int, DriveError] = {}
    for what, claims in claimed.items():
        if len(claims) == 1 or all(claim.shared for claim in claims):
            continue
        vdevs = " and ".join(dict.fromkeys(claim.disk.vdev for claim in claims))
        text = f"{what} is claimed more than once, by {vdevs}: {claims[0].remedy}"
        for claim in reversed(claims):  # of one disk's, the one that another can be chosen for
            errors.setdefault(claim.disk.devid, DriveError(text, claim.node))
    return errors


__all__ = [
    "DomainDrives",
    "Form",
    "device_id",
    "domain_drives",
    "form_of",
    "image_drivers",
    "plain_node",
    "quorum_node",
    "replication_node",
    "under_dev",
]
