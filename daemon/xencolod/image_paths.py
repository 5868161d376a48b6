"""What the paths of images lead to, and whether QEMU can be given that."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from xencolo.drives import under_dev
from xencolod.places import is_block_device


class Wanted(NamedTuple):
    """The images of a disk that QEMU is to open.

    :ivar image: must be there already.
    :ivar buffers: active and hidden disk, which may be made later.
    """

    domid: int
    devid: int
    image: str
    buffers: tuple[str, ...]


class Found(NamedTuple):
    """What the paths of images lead to.

    :ivar missing: domid → devid → why QEMU can't be given the image.
    :ivar block_devices: the paths of those that are one.
    """

    missing: Mapping[int, Mapping[int, str]]
    block_devices: frozenset[str]


def look_at(wanted: Iterable[Wanted], *, make: bool) -> Found:
    """Return what the images are. Looks at the file system: call it in a thread.

    :param make: a buffer that is absent is made later.
    """
    missing: dict[int, dict[int, str]] = {}
    devices: set[str] = set()
    for domid, devid, image, buffers in wanted:
        for path in (image, *buffers):
            why = _unusable(path, absent_ok=make and path != image)
            if why and devid not in missing.get(domid, {}):
                missing.setdefault(domid, {})[devid] = f"the image {path} {why}"
        devices |= {path for path in (image, *buffers) if is_block_device(path)}
    return Found(missing, frozenset(devices))


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
