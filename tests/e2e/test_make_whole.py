"""A secondary's QEMU is killed in the middle of a failover: the disk is made whole from its images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.daemon.disk_rig import run
from tests.e2e.test_drives_qemu import Qemu, arguments, qemu
from tests.rigs.servers import DEADLINE
from xencolo.disk import Disk, Role
from xencolo.diskspec import parse
from xencolo.graph import device_id
from xencolo.record import chain_of
from xencolod.images import make_whole

MIB = 1 << 20
SIZE = 32 * MIB
# What the secondary's guest sees at the failover, MiB by MiB: what was in the last checkpoint, and what it
# wrote since; what the primary wrote since is gone.
SEEN = b"".join(
    bytes([value]) * MIB * count
    for value, count in ((1, 6), (3, 2), (1, 1), (0, 1), (1, 4), (3, 4), (1, 6), (0, 8))
)
CHECKPOINT = bytes([1]) * 24 * MIB + bytes(8 * MIB)


def colo_disk(directory: Path, image_format: str, socket: Path) -> Disk:
    directory.mkdir()
    for name, layout in (("disk", image_format), ("active", "qcow2"), ("hidden", "qcow2")):
        run("qemu-img", "create", "-q", "-f", layout, str(directory / name), str(SIZE))
    return parse(
        f"vdev=hda,format={image_format},colo,colo-host={socket.name},colo-port=1,colo-export=disk,"
        f"active-disk={directory}/active,hidden-disk={directory}/hidden,target={directory}/disk"
    )


def guest(machine: Qemu, disk: Disk, command: str) -> None:
    words = f'qemu-io -d {device_id(disk.devid)} "{command}"'
    assert machine("human-monitor-command", **{"command-line": words}) == ""


@contextmanager
def replicating(tmp_path: Path, image_format: str) -> Iterator[tuple[Qemu, Disk]]:
    """A secondary under way, with data in all of its images; it is killed at the end."""
    nbd = tmp_path / "nbd"
    first = colo_disk(tmp_path / "primary", "raw", nbd)
    second = colo_disk(tmp_path / "secondary", image_format, nbd)
    with (
        qemu(arguments([first], Role.PRIMARY), tmp_path / "primary") as primary,
        qemu(arguments([second], Role.SECONDARY), tmp_path / "secondary") as secondary,
    ):
        secondary("nbd-server-start", addr={"type": "unix", "data": {"path": str(nbd)}})
        export = {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True}
        secondary("block-export-add", **export)
        secondary("xen-set-replication", enable=True, primary=False)
        server = {"type": "unix", "path": str(nbd)}
        remote = {"driver": "nbd", "node-name": "nbd", "server": server, "export": "disk"}
        primary("blockdev-add", **remote)
        replication = {"driver": "replication", "mode": "primary", "file": "nbd"}
        primary("blockdev-add", **replication, **{"node-name": "replication"})
        primary("x-blockdev-change", parent=f"quorum-{first.devid}", node="replication")
        primary("xen-set-replication", enable=True, primary=True)
        guest(primary, first, "write -P 1 0 24M")
        for machine in (secondary, primary):
            machine("xen-colo-do-checkpoint")
        guest(primary, first, "write -P 2 4M 18M")
        for command in ("write -P 3 6M 2M", "write -z 9M 1M", "write -P 3 14M 4M"):
            guest(secondary, second, command)
        yield secondary, second


def fail_over(secondary: Qemu, disk: Disk, moment: str | float) -> None:
    """Do what a failover does, up to the moment."""
    secondary("stop")  # QEMU flushes every node
    if moment == "before":
        return
    secondary("nbd-server-stop")
    failover = {"enable": False, "primary": False, "failover": True}
    if moment == "asked":
        secondary.connection.sendall(secondary.session.command("xen-set-replication", failover)[1])
        return
    secondary("xen-set-replication", **failover)
    if isinstance(moment, float):
        sleep(moment)
        return
    deadline = monotonic() + DEADLINE
    while not committed(secondary, disk):
        assert monotonic() < deadline


def committed(secondary: Qemu, disk: Disk) -> bool:
    """Tell whether QEMU's own commit has ended: it lets go of the active disk."""
    files = {node["file"] for node in secondary("query-named-block-nodes", flat=True)}
    return disk.active_disk not in files


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("moment", ["before", "asked", 0.0, 0.001, 0.004, 0.016, "committed"])
async def test_no_data_is_lost(moment: str | float, image_format: str, tmp_path: Path) -> None:
    with replicating(tmp_path, image_format) as (secondary, disk):
        fail_over(secondary, disk, moment)
    for _ in range(2):
        await make_whole(chain_of(disk))
        flat, path = tmp_path / "flat", disk.pdev_path or ""
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", path, str(flat))
        assert flat.read_bytes() == SEEN


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_the_last_checkpoint_alone(image_format: str, tmp_path: Path) -> None:
    """Flushed when its primary can write no more, it outlives a QEMU whose guest writes on."""
    with replicating(tmp_path, image_format) as (secondary, disk):
        secondary("nbd-server-stop")
        secondary("stop")
        guest(secondary, disk, "write -P 3 20M 2M")
    for _ in range(2):
        await make_whole(chain_of(disk), active=False)
        flat, path = tmp_path / "flat", disk.pdev_path or ""
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", path, str(flat))
        assert flat.read_bytes() == CHECKPOINT
