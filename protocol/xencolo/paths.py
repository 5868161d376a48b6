"""Paths of a block device in xenstore, and virtual device names: both built and parsed.

Sources: Xen's ``docs/misc/xenstore-paths.pandoc`` and ``docs/man/xen-vbd-interface.7.pandoc``,
libxl's ``libxl_device.c``.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from xencolo.errors import PathError, VdevError

#: Domids from 0x7FF0 on are Xen's own (DOMID_FIRST_RESERVED).
DOMID_MAX = 0x7FEF
DEVID_MAX = (1 << 31) - 1

QDISK = "qdisk"
#: The block kinds under ``backend/``: QEMU's, blkback's (``phy``) and tapdisk's.
KINDS = (QDISK, "vbd", "vbd3")

_NUMBER = re.compile(r"0|[1-9]\d*", re.ASCII)


def parse_domid(text: str) -> int:
    """Return the domid that the text says.

    :raises PathError: not a whole number from 0 to 32751 without leading zeros.
    """
    if not _NUMBER.fullmatch(text) or len(text) > 5 or int(text) > DOMID_MAX:
        raise PathError(f"domid {text[:20]!r}: a whole number from 0 to {DOMID_MAX} is needed")
    return int(text)


def parse_devid(text: str) -> int:
    """Return the device number that the text says.

    :raises PathError: not a whole number from 0 to 2^31 - 1 without leading zeros.
    """
    if not _NUMBER.fullmatch(text) or len(text) > 10 or int(text) > DEVID_MAX:
        raise PathError(f"devid {text[:20]!r}: a whole number from 0 to {DEVID_MAX} is needed")
    return int(text)


def numbers(names: Iterable[str], parse: Callable[[str], int]) -> list[int]:
    """Return the names that are numbers of their kind, in order; the others are none of ours."""
    found = []
    for name in set(names):
        try:
            found.append(parse(name))
        except PathError:
            continue
    return sorted(found)


def domain_path(domid: int) -> str:
    """Return the domain's home, ``~`` in xenstore-paths."""
    return f"/local/domain/{domid}"


def libxl_domain_path(domid: int) -> str:
    """Return libxl's own directory for the domain, which no guest can write."""
    return f"/libxl/{domid}"


def colo_path(domid: int) -> str:
    """Return the directory in which the role is read and the state is published."""
    return f"/libxl/{domid}/colo"


def backend_root(backend_domid: int) -> str:
    """Return the directory of all backends in a domain: the one that the daemon watches."""
    return f"/local/domain/{backend_domid}/backend"


def device_model_path(domid: int, dm_domid: int = 0) -> str:
    """Return where the device model of a domain, which runs in ``dm_domid``, says how it is."""
    return f"/local/domain/{dm_domid}/device-model/{domid}"


def mark_path(own_domid: int) -> str:
    """Return where xencolod leaves its mark, by which it knows a store again."""
    return f"/local/domain/{own_domid}/xencolod"


class DevicePaths(NamedTuple):
    """Where a device is: the guest ``domid``, its ``devid``, and who backs it."""

    domid: int
    devid: int
    backend_domid: int = 0
    kind: str = QDISK

    @property
    def backend(self) -> str:
        """``/local/domain/<B>/backend/<kind>/<D>/<devid>``, owned by the backend's domain."""
        return f"/local/domain/{self.backend_domid}/backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def frontend(self) -> str:
        """``/local/domain/<D>/device/vbd/<devid>``, owned by the guest: never to be believed."""
        return f"/local/domain/{self.domid}/device/vbd/{self.devid}"

    @property
    def libxl(self) -> str:
        """``/libxl/<D>/device/vbd/<devid>``, the toolstack's copy: the one to believe (XSA-178)."""
        return f"/libxl/{self.domid}/device/vbd/{self.devid}"

    @property
    def error(self) -> str:
        """Where Xen's tools look for the error of this device."""
        return (
            f"/local/domain/{self.backend_domid}/error/backend/{self.kind}"
            f"/{self.domid}/{self.devid}/error"
        )

    @property
    def status(self) -> str:
        """Where xencolod says how it is."""
        return f"/libxl/{self.domid}/colo/device/{self.devid}"


_BACKEND = re.compile(r"/local/domain/(\d+)/backend/([a-z0-9_]+)/(\d+)/(\d+)", re.ASCII)


def parse_backend(path: str) -> DevicePaths:
    """Return the device whose backend directory the path is.

    :raises PathError: it is not one of a block device.
    """
    match = _BACKEND.fullmatch(path)
    if not match or match[2] not in KINDS:
        raise PathError(
            f"{path[:120]!r} is no block backend: "
            f"/local/domain/<domid>/backend/({'|'.join(KINDS)})/<domid>/<devid> is"
        )
    return DevicePaths(
        parse_domid(match[3]), parse_devid(match[4]), parse_domid(match[1]), match[2]
    )


class Hint(NamedTuple):
    """What a watch event may be about; None means all of them."""

    domid: int | None = None
    devid: int | None = None


def hint(path: str) -> Hint | None:
    """Return the device that a watch event's path may concern, None where it concerns no disk.

    Events are levels: only the path counts. A parent's event (``…/backend``, ``/libxl``, a domain's
    directory) concerns all below it.
    """
    match path.split("/")[1:]:
        case ["local", "domain", _, "backend", *rest]:
            inside = rest[1:] if rest and rest[0] in KINDS else ([] if not rest else None)
        case ["libxl", domid, "device", "vbd", *rest]:
            inside = [domid, *rest]
        case ["libxl", domid, "colo", "role" | "command" | "generation"]:
            inside = [domid]
        case ["libxl", domid, "device" | "type"] | ["libxl", domid]:
            inside = [domid]
        case ["local", "domain", domid]:
            inside = [domid]
        case ["libxl"]:
            inside = []
        case _:
            inside = None
    if inside is None:
        return None
    try:
        return Hint(
            *(parse(word) for parse, word in zip((parse_domid, parse_devid), inside, strict=False))
        )
    except PathError:
        return None


class VirtualDisk(NamedTuple):
    """What a devid encodes.

    :ivar bus: ``xvd``, ``hd`` or ``sd``.
    :ivar number: the disk's number on it, xvda is 0.
    :ivar partition: 0 for the whole disk.
    """

    bus: str
    number: int
    partition: int


class _Bus(NamedTuple):
    disks: int
    partitions: int


_XVD_DISKS = 1 << 20
_BUSES = {"xvd": _Bus(_XVD_DISKS, 255), "hd": _Bus(4, 63), "sd": _Bus(16, 15)}
_NAMED = re.compile(r"(xvd|hd|sd)([a-z]{1,5})([1-9]\d{0,3})?", re.ASCII)
_NUMBERED = re.compile(r"d(0|[1-9]\d{0,7})p(0|[1-9]\d{0,3})", re.ASCII)


def _letters_to_number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _number_to_letters(number: int) -> str:
    letters = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


@lru_cache(maxsize=1024)
def parse_vdev(vdev: str) -> VirtualDisk:
    """Return bus, number and partition of a vdev: ``xvda``, ``hdc1``, ``d3p0``, or a devid.

    :raises VdevError: with the rule that is broken.
    """
    if _NUMBER.fullmatch(vdev):
        return devid_to_disk(vdev_to_devid(vdev))
    if match := _NUMBERED.fullmatch(vdev):
        disk = VirtualDisk("xvd", int(match[1]), int(match[2]))
    elif match := _NAMED.fullmatch(vdev):
        disk = VirtualDisk(match[1], _letters_to_number(match[2]), int(match[3] or 0))
    else:
        raise VdevError(
            f"vdev {vdev[:40]!r}: a name like xvda, hdc, sdb1, d3p0 or a device number is needed"
        )
    bus = _BUSES[disk.bus]
    if disk.number >= bus.disks:
        last = f"{disk.bus}{_number_to_letters(bus.disks - 1)}"
        raise VdevError(f"vdev {vdev!r}: the last disk of its kind is {last}")
    if disk.partition > bus.partitions:
        raise VdevError(f"vdev {vdev!r}: a {disk.bus} disk has at most {bus.partitions} partitions")
    return disk


@lru_cache(maxsize=1024)
def vdev_to_devid(vdev: str) -> int:
    """Return the number under which xenstore keeps the device (xen-vbd-interface(7)).

    :raises VdevError: with the rule that is broken.
    """
    if _NUMBER.fullmatch(vdev):
        if len(vdev) > 10 or int(vdev) > DEVID_MAX:
            raise VdevError(f"vdev {vdev[:40]!r}: a device number is at most {DEVID_MAX}")
        return int(vdev)
    bus, number, partition = parse_vdev(vdev)
    match bus:
        case "hd":
            return (3 if number < 2 else 22) << 8 | (number & 1) << 6 | partition
        case "sd":
            return 8 << 8 | number << 4 | partition
        case _ if number <= 15 and partition <= 15:
            return 202 << 8 | number << 4 | partition
        case _:
            return 1 << 28 | number << 8 | partition


def devid_to_disk(devid: int) -> VirtualDisk:
    """Return what a devid encodes.

    :raises VdevError: no name has this number.
    """
    major, minor = devid >> 8, devid & 0xFF
    if devid >> 28 == 1:
        disk = VirtualDisk("xvd", devid >> 8 & _XVD_DISKS - 1, minor)
        if disk.number <= 15 and disk.partition <= 15:  # these have a number in major 202 instead
            raise VdevError(f"device number {devid} belongs to no xvd, hd or sd name")
        return disk
    match major:
        case 202:
            return VirtualDisk("xvd", minor >> 4, minor & 15)
        case 8:
            return VirtualDisk("sd", minor >> 4, minor & 15)
        case 3 | 22 if minor < 128:
            return VirtualDisk("hd", (2 if major == 22 else 0) + (minor >> 6), minor & 63)
        case _:
            raise VdevError(f"device number {devid} belongs to no xvd, hd or sd name")


def devid_to_vdev(devid: int) -> str:
    """Return the name of a devid, ``xvda`` for 51712.

    :raises VdevError: no name has this number.
    """
    bus, number, partition = devid_to_disk(devid)
    return f"{bus}{_number_to_letters(number)}{partition or ''}"
