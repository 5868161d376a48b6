"""Where images may be: the directories that the configuration allows, symbolic links resolved.

What a path leads to is looked at when the nodes are read and once more when a QEMU is about to be
spawned. Between that and QEMU's own open(2) a link can still be changed, by who may write in a
directory on the way: daemon/SECURITY.md says what that leaves.
"""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import trio

from xencolo.device import Device
from xencolo.disk import Disk
from xencolo.drives import under_dev
from xencolo.errors import ForbiddenImage
from xencolo.plan import Domain

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def forbidden(path: str, directories: Sequence[str]) -> str | None:
    """Return why an image may not be used, None where it may; looks at the file system.

    :param directories: the allowed ones; none allows everything.
    """
    if not directories:
        return None
    allowed = [Path(os.path.realpath(directory)) for directory in directories]
    real = os.path.realpath(path)
    names = [real, _name_of_device(path, real)]
    if any(Path(name).is_relative_to(directory) for name in names for directory in allowed):
        return None
    leads = "" if real == path else f", which leads to {real},"
    return f"{path}{leads} is in none of images.directories ({', '.join(directories)})"


def _name_of_device(path: str, real: str) -> str:
    """Return the name by which a block device is known: /dev/vg0/web leads to a /dev/dm-3.

    The links in such a directory are root's, so they are as good as the devices.
    """
    directory = os.path.realpath(Path(path).parent)
    named = under_dev(f"{directory}/") and under_dev(real)
    if not named or not is_block_device(real):
        return real
    if Path(directory).stat().st_mode & _OTHERS_WRITE:
        return real
    return f"{directory}/{Path(path).name}"


def is_block_device(path: str) -> bool:
    """Whether the path leads to a block device; what can't be looked at is said elsewhere.

    ``Path.is_block_device`` raises for a name that is too long, or where not everybody may look.
    """
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False


def first_forbidden(paths: Iterable[str], directories: Sequence[str]) -> str | None:
    """Return why one of the images may not be used, None where all may."""
    return next(filter(None, (forbidden(path, directories) for path in paths)), None)


async def only_allowed(views: dict[int, Domain], directories: Sequence[str]) -> dict[int, Domain]:
    """Return the domains, with an error in place of each disk that has an image elsewhere."""
    if not directories:
        return views
    return await trio.to_thread.run_sync(_judge, views, directories)


def any_forbidden(view: Domain) -> bool:
    """Whether an image of the domain is elsewhere; no watch tells when a link has been mended."""
    return any(isinstance(e, ForbiddenImage) for d in view.devices.values() for e in d.errors)


def _judge(views: Mapping[int, Domain], directories: Sequence[str]) -> dict[int, Domain]:
    return {
        domid: view._replace(
            devices={devid: _judged(d, directories) for devid, d in view.devices.items()}
        )
        for domid, view in views.items()
    }


def _judged(device: Device, directories: Sequence[str]) -> Device:
    errors = tuple(
        ForbiddenImage(device.paths.libxl, node, reason)
        for node, path in _images(device.disk)
        if path and (reason := forbidden(path, directories))
    )
    return device._replace(disk=None, errors=errors) if errors else device


def _images(disk: Disk | None) -> tuple[tuple[str, str | None], ...]:
    if disk is None:
        return ()
    return (
        ("params", disk.pdev_path),
        ("active-disk", disk.active_disk),
        ("hidden-disk", disk.hidden_disk),
    )
