"""The images of a replicated disk, by qemu-img: looked at, made, and made whole after a failover.

No format is ever guessed: each image is named to qemu-img as QEMU's own options, with its format and what is
below it. QEMU's file locks hold here too: what a QEMU uses can't be changed, nor what a qemu-img uses that a
killed daemon left behind.
"""

import hashlib
import json
import math
import os
import shlex
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from xencolo.disk import Disk, Format
from xencolo.errors import ImageError, RecordError
from xencolo.graph import FORMATS
from xencolo.record import Chain, chain_of
from xencolod.records import sync_directory

#: Seconds for what reads or writes no more than an image's metadata.
DEADLINE = 30.0
# What is read of qemu-img's output: the map of an empty image is one line, that of a full one has no end.
_OUTPUT_MAX = 1 << 20

_Node = dict[str, Any]
_T = TypeVar("_T")


class State(StrEnum):
    """How an active or hidden disk is found."""

    ABSENT = "absent"
    EMPTY = "empty"
    USED = "used"
    WRONG = "wrong"


class ImageState(NamedTuple):
    """An active or hidden disk as it was found.

    :ivar reason: what is wrong with it; empty for an empty one.
    """

    path: str
    state: State
    reason: str = ""


async def length(path: str, image_format: Format) -> int:
    """Return how many bytes the guest sees of an image or block device; a QEMU may be using it.

    :raises ImageError: it is absent, is not of that format, or can't be read.
    """
    information = await _information(path, FORMATS[image_format], share=True)
    return int(information["virtual-size"])


async def look(disk: Disk) -> tuple[int, tuple[ImageState, ImageState]]:
    """Return a COLO disk's length in bytes, and how its active and hidden disk are found, in this order.

    :raises ImageError: one can't be judged: the secondary disk can't be read, or a QEMU uses one of them.
    """
    chain = _chain(disk)
    await _three_files(chain)
    size = await length(chain.secondary, chain.format)
    return size, (await _state(chain.active, size), await _state(chain.hidden, size))


async def prepare(disk: Disk, *, make: bool) -> list[str]:
    """See to it that active and hidden disk are there, empty, and as long as the secondary disk.

    Return the paths of those that were made.

    With ``make``, an absent one is made and a used one replaced, which throws away what it held: never
    while the record has a failover of this disk that is not finished. What is no such image is never
    replaced: it may be somebody's disk. The secondary disk is only read.

    :raises ImageError: one is not as it must be, and may not or could not be made so.
    """
    size, found = await look(disk)
    made = []
    for path, state, reason in found:
        if state is State.EMPTY:
            continue
        if not make or state is State.WRONG or await _driver(path) == "host_device":
            raise ImageError(path, f"{reason}; {_remedy(path, state, size)}")
        await _make(path, size)
        made.append(path)
    return made


async def make_whole(chain: Chain, *, active: bool = True) -> None:
    """Put what hidden and active disk hold into the secondary disk; after it, the disk is whole and on disk.

    For the failover that a QEMU did not survive. Hidden, then active, is committed into the secondary disk:
    each step only copies, so it can be broken off anywhere and done again. Active and hidden keep what they
    hold. It takes as long as there is to copy, so it has no deadline.

    Without `active` the disk is the last checkpoint after it: what its guest wrote since, which went on in
    the QEMU that is gone, is left out.

    Not for a disk whose guest has run since QEMU's own commit ended: that guest wrote into the secondary
    disk, and the older data in active and hidden would be put over it.

    :raises ImageError: an image is absent, has another length, or is in use; nothing is lost, try again.
    """
    await _three_files(chain)
    size = await length(chain.secondary, chain.format)
    overlays = (chain.hidden, chain.active) if active else (chain.hidden,)
    for path in overlays:
        own = await length(path, Format.QCOW2)
        if own != size:
            raise ImageError(path, f"{own} bytes long, and {chain.secondary} {size}: not a pair")
    secondary = await _node(chain.secondary, FORMATS[chain.format])
    for path in overlays:
        overlay = await _node(path, "qcow2") | {"backing": secondary}
        await _qemu_img(path, "commit", "-q", "-d", _named(overlay), bounded=False)
    await _in_thread(chain.secondary, _sync, Path(chain.secondary))


def _chain(disk: Disk) -> Chain:
    try:
        return chain_of(disk)
    except RecordError as error:
        raise ImageError(disk.vdev, error.reason) from None


# -- one image ----------------------------------------------------------------------------------


async def _state(path: str, size: int) -> ImageState:
    driver = await _driver(path)
    if driver is None:
        return ImageState(path, State.ABSENT, "there is no such image")
    # As raw anything can be opened, so this fails when a QEMU uses it, and the next when it is no qcow2.
    await _information(path, "raw")
    try:
        information = await _information(path, "qcow2")
    except ImageError as error:
        return ImageState(path, State.WRONG, error.reason)
    for fault in _faults(information, size):
        return ImageState(path, State.WRONG, fault)
    if await _is_empty(path):
        return ImageState(path, State.EMPTY)
    return ImageState(path, State.USED, "it is not empty")


def _faults(information: dict[str, Any], size: int) -> Iterator[str]:
    more = information["format-specific"]["data"]
    if information["virtual-size"] != size:
        yield f"it is {information['virtual-size']} bytes long, the secondary disk {size}"
    if "backing-filename" in information:
        yield f"it has the backing file {information['backing-filename']}"
    if "data-file" in more:
        yield f"it has the data file {more['data-file']}"
    if information.get("encrypted"):
        yield "it is encrypted"
    if information.get("snapshots"):
        yield "it holds snapshots"
    if more.get("corrupt"):
        yield "QEMU has marked it as corrupt"


async def _is_empty(path: str) -> bool:
    node = await _node(path, "qcow2") | {"backing": None}
    output = await _qemu_img(path, "map", "--output=json", _named(node))
    if len(output) >= _OUTPUT_MAX:
        return False
    # Before QEMU 6.1 there is no "present", and a cluster of written zeros looks like none.
    return not any(extent.get("present", extent["data"]) for extent in json.loads(output))


async def _information(path: str, driver: str, *, share: bool = False) -> dict[str, Any]:
    node = await _node(path, driver)
    options = ["-U"] if share else []
    output = await _qemu_img(path, "info", "--output=json", *options, _named(node))
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise ImageError(path, f"qemu-img info said {len(output)} bytes that are no JSON") from None
    return result


def _remedy(path: str, state: State, size: int) -> str:
    """Say what the operator can do, who alone knows whose data it is."""
    made = f"qemu-img create -f qcow2 {shlex.quote(path)} {size}"
    return {
        State.ABSENT: f"make it: {made}",
        State.USED: f"if nothing in it is needed, make it anew: {made}",
        State.WRONG: "if nothing in it is needed, remove it; else name another path",
    }[state]


async def _make(path: str, size: int) -> None:
    """Make an empty image beside, then give it the name: there is never half an image there."""
    target = Path(path).resolve()
    new = target.with_name(f".xencolo-{hashlib.sha256(target.name.encode()).hexdigest()[:16]}")
    try:
        await _in_thread(path, _create, new)
        await _qemu_img(path, "create", "-q", "-f", "qcow2", str(new), str(size))
        await _in_thread(path, _put, new, target)
    finally:
        with trio.CancelScope(shield=True):  # the removal of a name, no wait
            await _in_thread(path, partial(new.unlink, missing_ok=True))


def _create(path: Path) -> None:
    """Make an empty file for root alone, in place of what an earlier try left."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _put(new: Path, target: Path) -> None:
    _sync(new)
    new.rename(target)
    sync_directory(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- how images are named -----------------------------------------------------------------------


async def _node(path: str, driver: str) -> _Node:
    """Return QEMU's options for an image that is there.

    :raises ImageError: it is absent, or neither a regular file nor a block device.
    """
    file_driver = await _driver(path)
    if file_driver is None:
        raise ImageError(path, "there is no such image")
    return {"driver": driver, "file": {"driver": file_driver, "filename": path}}


def _named(node: _Node) -> str:
    # Like this no character of a path has a meaning, and a leading dash can't be.
    return f"json:{json.dumps(node)}"


async def _driver(path: str) -> str | None:
    """Return QEMU's driver for what is at a path, None if nothing is there.

    :raises ImageError: something is there that is no image: opening a FIFO would wait for ever.
    """
    if not path.startswith("/"):
        raise ImageError(path, "not an absolute path")
    found = await _in_thread(path, _stat, path)
    if found is None:
        return None
    mode = found.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ImageError(path, "neither a regular file nor a block device; name another path")
    return "host_device" if stat.S_ISBLK(mode) else "file"


def _stat(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None


async def _three_files(chain: Chain) -> None:
    """Check that no two names, by way of links, are one image."""
    seen: dict[tuple[int, int], str] = {}
    for path in (chain.secondary, chain.hidden, chain.active):
        found = await _in_thread(path, _stat, path)
        other = seen.setdefault(_identity(found), path) if found else path
        if other != path:
            raise ImageError(path, f"the same image as {other}; name three")


def _identity(found: os.stat_result) -> tuple[int, int]:
    # A block device may have several nodes: its number is what it is.
    block = stat.S_ISBLK(found.st_mode)
    return (-1, found.st_rdev) if block else (found.st_dev, found.st_ino)


# -- doing it -----------------------------------------------------------------------------------


async def _in_thread(path: str, work: Callable[..., _T], *arguments: object) -> _T:
    """Do in a thread what storage may take its time for.

    :raises ImageError: the system refused it.
    """
    try:
        return await trio.to_thread.run_sync(work, *arguments)
    except OSError as error:
        raise ImageError(path, str(error.strerror)) from error


async def _qemu_img(path: str, *arguments: str, bounded: bool = True) -> bytes:
    """Return what qemu-img prints, the first `_OUTPUT_MAX` bytes of it; cancelled, it is killed.

    :param path: the image that this is about.
    :param bounded: whether it has no more to do than `DEADLINE` allows.
    :raises ImageError: it failed, with its own words, or was too slow.
    """
    seconds = DEADLINE if bounded else math.inf
    try:
        process = await trio.lowlevel.open_process(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the daemon's signals are not for it
        )
    except OSError as error:
        raise ImageError(path, f"qemu-img: {error.strerror}; install qemu-utils") from error
    try:
        with trio.fail_after(seconds):
            output, complaint = await _said(process)
            if len(output) < _OUTPUT_MAX:
                await process.wait()
    except trio.TooSlowError:
        raise ImageError(
            path, f"qemu-img {arguments[0]} took longer than {seconds:g} s; is the storage there?"
        ) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):  # it is dead as soon as the kernel lets go of it
                await process.wait()
    if process.returncode and len(output) < _OUTPUT_MAX:
        words = _words(complaint.decode("utf-8", "backslashreplace"), arguments[-1])
        raise ImageError(path, words or f"qemu-img {arguments[0]} ended with {process.returncode}")
    return output


async def _said(process: trio.Process) -> tuple[bytes, bytes]:
    """Return what it says on stdout and on stderr, the first `_OUTPUT_MAX` bytes of each."""
    output, complaint = bytearray(), bytearray()
    async with trio.open_nursery() as nursery:
        for stream, into in ((process.stdout, output), (process.stderr, complaint)):
            if stream:
                nursery.start_soon(_read, stream, into)
    return bytes(output), bytes(complaint)


async def _read(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async with stream:
        while len(into) < _OUTPUT_MAX and (data := await stream.receive_some(1 << 16)):
            into += data


def _words(complaint: str, name: str) -> str:
    """Return qemu-img's words without its own name and the name that it was given."""
    said = complaint.strip().replace(f"Could not open '{name}': ", "")
    return " / ".join(line.removeprefix("qemu-img: ") for line in said.splitlines())
