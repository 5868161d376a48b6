"""What the paths of images lead to, and whether QEMU can be given that."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from xencolo.drives import under_dev
from xencolo.plan import BadImage
from xencolod.places import is_block_device

#: The one that must be there already; active and hidden disk may be made later.
_IMAGE = "params"


class Wanted(NamedTuple):
    """The images of a disk that QEMU is to open, by the nodes that name them."""

    domid: int
    devid: int
    images: Mapping[str, str]


class Found(NamedTuple):
    """What the paths of images lead to.

    :ivar missing: domid → devid → the first image that QEMU can't be given.
    :ivar block_devices: the paths of those that are one.
    """

    missing: Mapping[int, Mapping[int, BadImage]]
    block_devices: frozenset[str]


def look_at(wanted: Iterable[Wanted], *, make: bool) -> Found:
    """Return what the images are. Looks at the file system: call it in a thread.

    :param make: an active or hidden disk that is absent is made later.
    """
    missing: dict[int, dict[int, BadImage]] = {}
    devices: set[str] = set()
    for domid, devid, images in wanted:
        if bad := _first_bad(images, make=make):
            missing.setdefault(domid, {})[devid] = bad
        devices.update(filter(is_block_device, images.values()))
    return Found(missing, frozenset(devices))


def _first_bad(images: Mapping[str, str], *, make: bool) -> BadImage | None:
    for node, path in images.items():
        if why := _unusable(path, absent_ok=make and node != _IMAGE):
            return BadImage(node, f"the {'image' if node == _IMAGE else node} {path} {why}")
    return None


def _unmakeable(path: Path) -> str | None:
    folder = path.parent
    return None if folder.is_dir() else f"can't be made: {folder} is no directory"


def _unusable(path: str, *, absent_ok: bool) -> str | None:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return _unmakeable(Path(path)) if absent_ok else "does not exist"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    if not os.access(path, os.R_OK):
        return "can't be read"
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return "is neither a regular file nor a block device"
    if under_dev(path) and not stat.S_ISBLK(mode):
        return "is no block device, and in /dev nothing else is an image"
    return None
