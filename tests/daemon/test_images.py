"""Images, by the real qemu-img: judged, made, and made whole."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec.structs import replace

from tests.daemon.disk_rig import fill, names, qemu_io, run, small_disk
from tests.rigs.servers import DEADLINE
from xencolo.disk import Disk, Format
from xencolo.errors import ImageError
from xencolo.graph import FORMATS
from xencolo.record import Chain, chain_of
from xencolod import images
from xencolod.images import State, length, look, make_whole, prepare

SIZE = 8 << 20


def create(path: Path, image_format: str = "qcow2", size: int = SIZE, *options: str) -> str:
    run("qemu-img", "create", "-q", "-f", image_format, *options, str(path), str(size))
    return str(path)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A COLO disk, neither active nor hidden made yet."""
    directory = tmp_path / "images"
    directory.mkdir()
    return Disk(
        vdev="hda",
        format=Format.RAW,
        pdev_path=create(directory / "secondary", "raw"),
        colo_enable=True,
        active_disk=str(directory / "active"),
        hidden_disk=str(directory / "hidden"),
    )


def path_of(disk: Disk, field: str) -> Path:
    return Path(getattr(disk, field))


@contextmanager
def block_device(path: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", str(path)).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def used_by_qemu(path: str, image_format: str) -> Iterator[None]:
    """A QEMU that has the image open for writing, as a guest's."""
    drive = f"file={path},format={image_format},if=ide"
    argv = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none"]
    argv += ["-S", "-drive", drive, "-qmp", "stdio"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        try:
            assert qemu.stdin
            assert qemu.stdout
            assert b"QMP" in qemu.stdout.readline()
            # The greeting comes before the drives are opened, an answer after.
            qemu.stdin.write(b'{"execute":"qmp_capabilities"}\n')
            qemu.stdin.flush()
            assert qemu.stdout.readline() == b'{"return": {}}\r\n'
            yield
        finally:
            qemu.kill()


async def states(disk: Disk) -> list[State]:
    _, found = await look(disk)
    return [image.state for image in found]


# -- lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", FORMATS)
async def test_the_length_is_the_one_that_the_guest_sees(
    image_format: Format, tmp_path: Path
) -> None:
    path = create(tmp_path / "image", FORMATS[image_format], 5 << 20)
    shown = await length(path, image_format)
    # vpc has cylinders, and rounds up to them
    assert shown == 5 << 20 or (image_format is Format.VHD and 5 << 20 < shown < 6 << 20)


async def test_the_length_of_a_block_device(tmp_path: Path) -> None:
    with block_device(Path(create(tmp_path / "image", "raw"))) as device:
        assert await length(device, Format.RAW) == SIZE


async def test_the_length_while_a_qemu_uses_it(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    with used_by_qemu(path, "qcow2"):
        assert await length(path, Format.QCOW2) == SIZE


async def test_a_format_is_never_guessed(tmp_path: Path) -> None:
    path = create(tmp_path / "image", "qcow2")
    assert await length(path, Format.RAW) < SIZE
    path = create(tmp_path / "image", "raw")
    with pytest.raises(ImageError, match=rf"^{path}: Image is not in qcow2 format$"):
        await length(path, Format.QCOW2)


async def test_what_is_no_image_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opened, it would wait for ever
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match=f"^{path}: neither a regular file nor a block device"):
            await length(str(path), Format.RAW)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nonexistent/image", "there is no such image"),
        ("/etc/passwd/image", "Not a directory"),
        ("-U", "not an absolute path"),
        ("nbd:127.0.0.1:1", "not an absolute path"),
        ("", "not an absolute path"),
    ],
)
async def test_a_path_that_leads_nowhere(path: str, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        await length(path, Format.RAW)
    assert (caught.value.path, caught.value.reason) == (path, reason)


# -- check and prepare --------------------------------------------------------------------------


async def test_both_are_made(disk: Disk) -> None:
    assert await states(disk) == [State.ABSENT, State.ABSENT]
    assert await prepare(disk, make=True) == [disk.active_disk, disk.hidden_disk]
    assert await states(disk) == [State.EMPTY, State.EMPTY]
    for field in ("active_disk", "hidden_disk"):
        assert await length(getattr(disk, field), Format.QCOW2) == SIZE
        assert path_of(disk, field).stat().st_mode & 0o777 == 0o600
    assert names(path_of(disk, "active_disk").parent) == ["active", "hidden", "secondary"]
    before = path_of(disk, "active_disk").stat()
    assert await prepare(disk, make=True) == []
    assert path_of(disk, "active_disk").stat() == before  # what is right is left alone
    await prepare(disk, make=False)


@pytest.mark.parametrize("command", ["write -P 1 7M 64k", "write -z 1M 64k"])
async def test_a_used_one_is_made_anew_when_told_to(command: str, disk: Disk) -> None:
    await prepare(disk, make=True)
    qemu_io(disk.hidden_disk or "", "qcow2", command)
    assert await states(disk) == [State.EMPTY, State.USED]
    with pytest.raises(ImageError, match=f"^{disk.hidden_disk}: it is not empty; if nothing"):
        await prepare(disk, make=False)
    assert await states(disk) == [State.EMPTY, State.USED]
    await prepare(disk, make=True)
    assert await states(disk) == [State.EMPTY, State.EMPTY]


async def test_one_with_very_many_extents_is_used(disk: Disk) -> None:
    disk = replace(disk, pdev_path=create(path_of(disk, "pdev_path"), "raw", 1 << 30))
    await prepare(disk, make=True)
    writes = [f"write -z {number * 128}k 64k" for number in range(6000)]
    qemu_io(disk.active_disk or "", "qcow2", *writes)
    assert len(run("qemu-img", "map", "--output=json", disk.active_disk or "")) > 1 << 20
    assert await states(disk) == [State.USED, State.EMPTY]


WRONG = {
    "raw": "Image is not in qcow2 format",
    "shorter": f"it is {SIZE - 512} bytes long, the secondary disk {SIZE}",
    "longer": f"it is {SIZE + 512} bytes long, the secondary disk {SIZE}",
    "backing": "it has the backing file /nonexistent/base",
    "data": "it has the data file ",
    "snapshot": "it holds snapshots",
    "encrypted": "it is encrypted",
    "torn": "",
}


@pytest.mark.parametrize("kind", WRONG)
async def test_what_may_be_somebodys_disk_is_never_replaced(
    kind: str, disk: Disk, tmp_path: Path
) -> None:
    path = path_of(disk, "active_disk")
    match kind:
        case "raw":
            create(path, "raw")
        case "shorter" | "longer":
            create(path, "qcow2", SIZE + (512 if kind == "longer" else -512))
        case "backing":
            create(path, "qcow2", SIZE, "-u", "-b", "/nonexistent/base", "-F", "raw")
        case "data":
            create(path, "qcow2", SIZE, "-o", f"data_file={tmp_path / 'data'}")
        case "snapshot":
            create(path)
            run("qemu-img", "snapshot", "-c", "before", str(path))
        case "encrypted":
            secret = ("--object", "secret,id=s,data=x")
            key = "encrypt.format=aes,encrypt.key-secret=s"
            create(path, "qcow2", SIZE, *secret, "-o", key)
        case "torn":
            create(path)
            os.truncate(path, 100)
    content = path.read_bytes()
    _, (found, _) = await look(disk)
    assert found.state is State.WRONG
    assert WRONG[kind] in found.reason
    with pytest.raises(ImageError, match="; if nothing in it is needed, remove it; else name"):
        await prepare(disk, make=True)
    assert path.read_bytes() == content
    assert not path_of(disk, "hidden_disk").exists()


async def test_a_block_device_is_never_made_anew(disk: Disk, tmp_path: Path) -> None:
    await prepare(disk, make=True)
    with block_device(Path(create(tmp_path / "device", "raw", SIZE * 2))) as device:
        disk = replace(disk, active_disk=device)
        with pytest.raises(ImageError, match="Image is not in qcow2 format; if nothing"):
            await prepare(disk, make=True)
        create(Path(device))
        assert await states(disk) == [State.EMPTY, State.EMPTY]
        await prepare(disk, make=True)
        qemu_io(device, "qcow2", "write -P 1 0 64k")
        with pytest.raises(ImageError, match="it is not empty") as caught:
            await prepare(disk, make=True)
        # The remedy that the message names is one.
        run(*shlex.split(caught.value.reason.partition("make it anew: ")[2]))
        await prepare(disk, make=False)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_what_a_qemu_uses_is_left_to_it(image_format: str, disk: Disk) -> None:
    await prepare(disk, make=True)
    path = create(path_of(disk, "active_disk"), image_format)
    inode = Path(path).stat().st_ino
    with (
        used_by_qemu(path, image_format),
        pytest.raises(ImageError, match='Failed to get shared "write" lock'),
    ):
        await prepare(disk, make=True)
    assert Path(path).stat().st_ino == inode


@pytest.mark.parametrize("link", ["symbolic", "hard"])
async def test_two_names_for_one_image_are_refused(link: str, disk: Disk) -> None:
    path = path_of(disk, "hidden_disk")
    make_link = path.symlink_to if link == "symbolic" else path.hardlink_to
    make_link(disk.pdev_path or "")
    with pytest.raises(ImageError, match=f"the same image as {disk.pdev_path}; name three"):
        await prepare(disk, make=True)
    with pytest.raises(ImageError, match="the same image as"):
        await make_whole(chain_of(disk))


async def test_a_link_stays_one(disk: Disk, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    path_of(disk, "active_disk").symlink_to(target)
    await prepare(disk, make=True)
    assert path_of(disk, "active_disk").readlink() == target
    assert await states(disk) == [State.EMPTY, State.EMPTY]


async def test_nothing_is_made_without_a_secondary_disk(disk: Disk) -> None:
    path_of(disk, "pdev_path").unlink()
    with pytest.raises(ImageError, match=f"^{disk.pdev_path}: there is no such image$"):
        await prepare(disk, make=True)
    assert names(path_of(disk, "active_disk").parent) == []


async def test_a_full_disk_leaves_what_was_there(disk: Disk, tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", "1M") as directory:
        disk = replace(disk, active_disk=create(directory / "active"))
        qemu_io(disk.active_disk or "", "qcow2", "write -P 1 0 64k")
        filler = fill(directory)
        content = path_of(disk, "active_disk").read_bytes()
        with pytest.raises(ImageError, match="No space left on device"):
            await prepare(disk, make=True)
        assert names(directory) == ["active", "filler"]
        assert path_of(disk, "active_disk").read_bytes() == content
        filler.unlink()
        await prepare(disk, make=True)
        assert await states(disk) == [State.EMPTY, State.EMPTY]


@pytest.mark.parametrize("name", ["-f", "a,b=c", "nbd:x:1", 'json:{"a":1}', "%s é\"'\\", "x" * 255])
async def test_a_hostile_name_is_only_a_name(name: str, disk: Disk) -> None:
    directory = path_of(disk, "active_disk").parent
    disk = replace(
        disk,
        active_disk=str(directory / name),
        hidden_disk=str(directory / f"h{name[1:]}"),
        pdev_path=create(directory / f"s{name[1:]}", "raw"),
    )
    with pytest.raises(ImageError) as caught:
        await prepare(disk, make=False)
    # The remedy names it so that a shell takes it.
    run(*shlex.split(caught.value.reason.partition("make it: ")[2]))
    await prepare(disk, make=True)
    qemu_io(disk.active_disk or "", "qcow2", "write -P 7 0 64k")
    assert await states(disk) == [State.USED, State.EMPTY]
    await make_whole(chain_of(disk))
    assert path_of(disk, "pdev_path").read_bytes()[: 64 << 10] == b"\7" * (64 << 10)
    assert len(names(directory)) == 4  # and the secondary disk of the fixture


# -- make whole ---------------------------------------------------------------------------------

MIB = 1 << 20


def replicated(disk: Disk, below: int = 1) -> bytes:
    """Fill the three as replication does; return what the guest sees through them."""
    for field in ("active_disk", "hidden_disk"):
        create(path_of(disk, field))
    qemu_io(disk.pdev_path or "", FORMATS[disk.format], f"write -P {below} 0 6M")
    qemu_io(disk.hidden_disk or "", "qcow2", "write -P 2 1M 3M")
    qemu_io(
        disk.active_disk or "", "qcow2", "write -P 3 2M 1M", "write -z 3M 1M", "write -P 4 7M 1M"
    )
    return b"".join(bytes([part]) * MIB for part in (below, 2, 3, 0, below, below, 0, 4))


def content(disk: Disk, directory: Path) -> bytes:
    flat = directory / "flat"
    run(
        "qemu-img",
        "convert",
        "-f",
        FORMATS[disk.format],
        "-O",
        "raw",
        disk.pdev_path or "",
        str(flat),
    )
    return flat.read_bytes()[:SIZE]


@pytest.mark.parametrize("image_format", FORMATS)
async def test_the_three_become_one(image_format: Format, disk: Disk, tmp_path: Path) -> None:
    create(path_of(disk, "pdev_path"), FORMATS[image_format], SIZE, *_exact(image_format))
    disk = replace(disk, format=image_format)
    seen = replicated(disk)
    overlays = [path_of(disk, field).read_bytes() for field in ("active_disk", "hidden_disk")]
    for _ in range(2):
        await make_whole(chain_of(disk))
        assert content(disk, tmp_path) == seen
    assert overlays == [path_of(disk, f).read_bytes() for f in ("active_disk", "hidden_disk")]


def _exact(image_format: Format) -> tuple[str, ...]:
    return ("-o", "force_size=on") if image_format is Format.VHD else ()


async def test_a_block_device_becomes_whole(disk: Disk, tmp_path: Path) -> None:
    with block_device(path_of(disk, "pdev_path")) as device:
        disk = replace(disk, pdev_path=device)
        seen = replicated(disk)
        await make_whole(chain_of(disk))
        assert content(disk, tmp_path) == seen


async def test_broken_off_and_done_again(disk: Disk, tmp_path: Path) -> None:
    seen = replicated(disk)
    for milliseconds in range(0, 60, 4):
        with trio.move_on_after(milliseconds / 1000):
            await make_whole(chain_of(disk))
    await make_whole(chain_of(disk))
    assert content(disk, tmp_path) == seen


_MAKER = """
import sys, msgspec, trio
from xencolo.record import Chain
from xencolod.images import make_whole
print(flush=True)
trio.run(make_whole, msgspec.json.decode(sys.argv[1], type=Chain))
"""


@pytest.mark.parametrize("milliseconds", [0, 20, 30, 40, 50])
async def test_killed_with_its_daemon_and_done_by_the_next(
    milliseconds: int, disk: Disk, tmp_path: Path
) -> None:
    seen = replicated(disk)
    chain = chain_of(disk)
    argv = [sys.executable, "-c", _MAKER, msgspec.json.encode(chain).decode()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as maker:
        assert maker.stdout
        maker.stdout.readline()
        await trio.sleep(milliseconds / 1000)  # the moment: any will do
        maker.kill()
    # Its qemu-img goes on without it, and keeps the next one out until it has ended.
    with trio.fail_after(DEADLINE):
        while not await _made_whole(chain):
            await trio.sleep(0.01)
    assert content(disk, tmp_path) == seen


async def _made_whole(chain: Chain) -> bool:
    try:
        await make_whole(chain)
    except ImageError as error:
        if "lock" in error.reason:
            return False
        raise
    return True


async def test_a_full_disk_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    with small_disk(tmp_path / "full", "10M") as directory:
        disk = replace(disk, pdev_path=create(directory / "secondary", "raw"))
        seen = replicated(disk, below=0)
        for size in (0, SIZE):  # all of it is sparse, so there must be room for each write
            os.truncate(disk.pdev_path or "", size)
        filler = fill(directory)
        with pytest.raises(ImageError, match="No space left on device"):
            await make_whole(chain_of(disk))
        filler.unlink()
        await make_whole(chain_of(disk))
        assert content(disk, tmp_path) == seen


@pytest.mark.parametrize("field", ["pdev_path", "hidden_disk", "active_disk"])
async def test_what_a_living_qemu_uses_is_not_made_whole(
    field: str, disk: Disk, tmp_path: Path
) -> None:
    seen = replicated(disk)
    before = content(disk, tmp_path)
    image_format = "raw" if field == "pdev_path" else "qcow2"
    with (
        used_by_qemu(getattr(disk, field), image_format),
        pytest.raises(ImageError, match="lock"),
    ):
        await make_whole(chain_of(disk))
    if field != "active_disk":
        assert content(disk, tmp_path) == before
    await make_whole(chain_of(disk))
    assert content(disk, tmp_path) == seen


@pytest.mark.parametrize("field", ["hidden_disk", "active_disk"])
@pytest.mark.parametrize("kind", ["absent", "shorter", "raw"])
async def test_what_is_no_chain_is_not_touched(
    kind: str, field: str, disk: Disk, tmp_path: Path
) -> None:
    replicated(disk)
    before, path = content(disk, tmp_path), path_of(disk, field)
    path.unlink()
    if kind != "absent":
        create(path, "qcow2" if kind == "shorter" else "raw", SIZE - 512)
    with pytest.raises(ImageError) as caught:
        await make_whole(chain_of(disk))
    assert caught.value.path == str(path)
    assert content(disk, tmp_path) == before


# -- qemu-img -----------------------------------------------------------------------------------


class Hanging:
    """A qemu-img that is the real one except for a word, then it hangs, in a child of its own."""

    def __init__(self, directory: Path, word: str) -> None:
        self.file = directory / "pid"
        program = directory / "qemu-img"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = {word} ] || exec {shutil.which("qemu-img")} "$@"\n'
            f"sleep 1000 &\necho $! > {self.file}\nwait\n"
        )
        program.chmod(0o755)

    async def pid(self) -> int:
        """Wait until it hangs; return the child's pid."""
        with trio.fail_after(DEADLINE):
            while not self.file.exists() or not self.file.read_text():
                await trio.sleep(0.01)
        return int(self.file.read_text())

    async def ended(self) -> None:
        """Wait until the child is gone or a zombie."""
        status = Path(f"/proc/{await self.pid()}/stat")
        with trio.fail_after(DEADLINE):
            while status.exists() and " Z " not in status.read_text():
                await trio.sleep(0.01)


@pytest.fixture
def hanging(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Hanging:
    """The stub in `$PATH`, for the word of the test's parameter."""
    directory = tmp_path / "bin"
    directory.mkdir()
    made = Hanging(directory, request.param)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return made


@pytest.mark.parametrize("hanging", ["info"], indirect=True)
async def test_it_is_a_group_of_its_own_and_tells_how_it_was_ended(
    disk: Disk, hanging: Hanging
) -> None:
    async with trio.open_nursery() as nursery:

        async def fails() -> None:
            with pytest.raises(ImageError, match="qemu-img info ended with -15"):
                await length(disk.pdev_path or "", disk.format)

        nursery.start_soon(fails)
        group = os.getpgid(await hanging.pid())
        assert group != os.getpgid(0)
        os.killpg(group, signal.SIGTERM)


@pytest.mark.parametrize("hanging", ["create"], indirect=True)
async def test_a_cancelled_one_is_ended_with_all_its_children(disk: Disk, hanging: Hanging) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(prepare, disk, make=True))
            await hanging.pid()
            assert len(names(path_of(disk, "active_disk").parent)) == 2
            scope.cancel()
    assert scope.cancelled_caught
    await hanging.ended()
    assert names(path_of(disk, "active_disk").parent) == ["secondary"]


@pytest.mark.parametrize("hanging", ["info"], indirect=True)
async def test_storage_that_does_not_answer_has_a_deadline(
    disk: Disk, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "DEADLINE", 0.3)
    with pytest.raises(ImageError, match=r"qemu-img info took longer than 0\.3 s; is the storage"):
        await length(disk.pdev_path or "", disk.format)
    await hanging.ended()


async def test_without_qemu_img(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ImageError, match="qemu-img: No such file or directory; install qemu-utils"):
        await length(disk.pdev_path or "", disk.format)


# -- durable ------------------------------------------------------------------------------------


async def test_what_is_done_is_on_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(
            f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name.partition('-')[0]}"
        )

    def spy_rename(old: str, new: str) -> None:
        rename(old, new)
        done.append(f"rename {Path(new).name}")

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    await prepare(disk, make=True)
    assert done == [
        step
        for name in ("active", "hidden")
        for step in ("fsync .xencolo", f"rename {name}", "fsync images")
    ]
    done.clear()
    await make_whole(chain_of(disk))
    assert done == ["fsync secondary"]
