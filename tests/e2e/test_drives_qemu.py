"""The drives of :mod:`xencolo.drives` given to a real QEMU: what it opens is what the disks name."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.servers import DEADLINE
from xencolo.disk import Disk, Role
from xencolo.diskspec import parse
from xencolo.drives import (
    Form,
    device_id,
    domain_drives,
    plain_node,
    quorum_node,
    replication_node,
)
from xencolo.errors import QmpCommandError
from xencolo.graph import FORMATS
from xencolo.qmp import Reply, Session

SIZE = 1 << 20
QEMU = [
    "qemu-system-x86_64",
    *("-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-m", "64"),
]


class Qemu:
    """A QEMU under way, spoken to over QMP."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self.session = Session()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        number, line = self.session.command(command, arguments)
        self.connection.sendall(line)
        while True:
            data = self.connection.recv(1 << 16)
            assert data, "QEMU closed the connection"
            for message in self.session.feed(data):
                if isinstance(message, Reply) and message.id == number:
                    if message.error:
                        raise message.error
                    return message.value

    def opened(self, directory: Path) -> dict[str, bool]:
        """Return the files that it has open there, by the kernel's word, and whether for writing."""
        files: dict[str, bool] = {}
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith(f"{directory}/"):
                flags = Path(f"/proc/{self.pid}/fdinfo/{link.name}").read_text().split()[3]
                writable = int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
                files[target] = files.get(target, False) or writable
        return files

    def tops(self) -> dict[str, str | None]:
        """Return the topmost node of each device, None where it has no medium."""
        return {
            block["qdev"]: block.get("inserted", {}).get("node-name")
            for block in self("query-block")
        }


@contextmanager
def qemu(arguments: tuple[str, ...], directory: Path) -> Iterator[Qemu]:
    """Run QEMU with these drives; it connects to us, so there is nothing to poll."""
    path = directory / "qmp"
    argv = [*QEMU, "-qmp", f"unix:{path}", *arguments]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(DEADLINE)
        with subprocess.Popen(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(DEADLINE)
                    yield Qemu(process.pid, connection)
            except (TimeoutError, AssertionError) as error:
                process.kill()
                error.add_note(str(process.communicate(timeout=DEADLINE)[1]))
                raise
            finally:
                process.kill()


def refusal(arguments: tuple[str, ...]) -> str:
    """Return what QEMU says as it refuses these drives."""
    ended = subprocess.run([*QEMU, *arguments], capture_output=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 1
    return ended.stderr.decode()


def image(path: Path, image_format: str = "raw") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if image_format == "raw":
        with path.open("wb") as file:
            file.write(bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())  # so that its blocks can be counted
    else:
        argv = ["qemu-img", "create", "-q", "-f", image_format, str(path), str(SIZE)]
        subprocess.run(argv, check=True, timeout=DEADLINE)
    return str(path)


def disk(directory: Path, vdev: str, words: str = "", *, colo: bool = False) -> Disk:
    """Make a disk and its images."""
    target = image(directory / f"{vdev}.img")
    if colo:
        active = image(directory / f"{vdev}.active", "qcow2")
        hidden = image(directory / f"{vdev}.hidden", "qcow2")
        words += (
            f"colo,colo-host=127.0.0.1,colo-port=9000,colo-export=export-{vdev},"
            f"active-disk={active},hidden-disk={hidden},"
        )
    return parse(f"vdev={vdev},{words}target={target}")


def arguments(disks: list[Disk], role: Role, form: Form = Form.BLOCKDEV) -> tuple[str, ...]:
    drives = domain_drives(disks, role, form)
    assert not drives.errors
    assert not drives.skipped
    return drives.arguments


@pytest.mark.parametrize("vdevs", [["hda"], ["sda"], ["xvdb", "sdh"]])
@pytest.mark.parametrize("role", Role)
def test_a_colo_disk_in_every_role(role: Role, vdevs: list[str], tmp_path: Path) -> None:
    disks = [disk(tmp_path, vdev, colo=True) for vdev in vdevs]
    drives = domain_drives(disks, role)
    top = plain_node if role is Role.NONE else quorum_node
    with qemu(drives.arguments, tmp_path) as machine:
        assert machine.tops() == {device_id(d.devid): top(d.devid) for d in disks}
        nodes = {n["node-name"]: n for n in machine("query-named-block-nodes", flat=True)}
        # cache=writeback, in every node
        assert all(
            node["cache"] == {"writeback": True, "direct": False, "no-flush": False}
            for node in nodes.values()
        )
        if role is Role.SECONDARY:
            _replicate(machine, disks, tmp_path)
        opened = machine.opened(tmp_path)
    assert set(opened) == {path for images in drives.images.values() for path in images.values()}
    written = {d.pdev_path for d in disks} | {
        d.active_disk for d in disks if role is Role.SECONDARY
    }
    assert {path for path in written if path and not opened[path]} == set()


def _replicate(machine: Qemu, disks: list[Disk], directory: Path) -> None:
    """Start the replication: top-id and the nodes below it are right."""
    address = {"type": "unix", "data": {"path": str(directory / "nbd")}}
    machine("nbd-server-start", addr=address)
    for d in disks:
        export = {"type": "nbd", "id": f"nbd-{d.devid}", "node-name": d.colo_export}
        machine("block-export-add", **export, name=d.colo_export, writable=True)
    machine("xen-set-replication", enable=True, primary=False)
    assert machine("query-xen-replication-status") == {"error": False}
    nodes = {node["node-name"] for node in machine("query-named-block-nodes", flat=True)}
    assert nodes >= {replication_node(d.devid) for d in disks}


def test_read_only_scsi_writes_nowhere(tmp_path: Path) -> None:
    """Nor can QEMU export it as a secondary's disk must be, which is why drives refuses that."""
    drive = disk(tmp_path, "sda", "access=ro,", colo=True)
    with qemu(arguments([drive], Role.NONE), tmp_path) as machine:
        nodes = machine("query-named-block-nodes", flat=True)
        opened = machine.opened(tmp_path)
        address = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        machine("nbd-server-start", addr=address)
        export = {"type": "nbd", "id": "e", "node-name": plain_node(drive.devid), "name": "e"}
        with pytest.raises(QmpCommandError, match="Cannot export read-only node as writable"):
            machine("block-export-add", **export, writable=True)
    assert opened
    assert not any(opened.values())
    assert all(node["ro"] for node in nodes)


def test_cdroms(tmp_path: Path) -> None:
    full = disk(tmp_path, "hdc", "cdrom,")
    empty = parse("vdev=hdd,cdrom")
    with qemu(arguments([full, empty], Role.PRIMARY), tmp_path) as machine:
        assert machine.tops() == {"disk-5632": plain_node(5632), "disk-5696": None}
        assert machine.opened(tmp_path)[str(tmp_path / "hdc.img")] is False


def test_every_format(tmp_path: Path) -> None:
    vdevs = dict(zip(FORMATS, ["hda", "hdb", "xvdc", "xvdd", "sda"], strict=True))
    disks = [
        parse(f"vdev={vdev},format={name},target={image(tmp_path / name, FORMATS[name])}")
        for name, vdev in vdevs.items()
    ]
    with qemu(arguments(disks, Role.NONE), tmp_path) as machine:
        nodes = {n["node-name"]: n["drv"] for n in machine("query-named-block-nodes", flat=True)}
        opened = machine.opened(tmp_path)
    assert [nodes[plain_node(d.devid)] for d in disks] == list(FORMATS.values())
    assert all(opened[str(tmp_path / name)] for name in FORMATS)


HOSTILE = [
    "a,if=none,file=x",
    "json:{}",
    'json:{"driver":"null-co"}',
    "nbd:127.0.0.1:10809",
    "fat:rw:x",
    "a b\\c'd\"e",
    "%s-é-%n",
    "x,id=y,,z,",
]


@pytest.mark.parametrize(
    ("form", "role"),
    [
        (Form.BLOCKDEV, Role.NONE),
        (Form.BLOCKDEV, Role.PRIMARY),
        (Form.BLOCKDEV, Role.SECONDARY),
        (Form.TEXT_2016, Role.NONE),
        (Form.TEXT_2016, Role.PRIMARY),
    ],
)
def test_a_hostile_path_is_only_a_path(form: Form, role: Role, tmp_path: Path) -> None:
    images = tmp_path / "a,driver=null-co:b"
    specs = []
    for vdev, name in zip(("hda", "hdb", "hdc", "hdd"), HOSTILE[:4], strict=True):
        specs.append(f"vdev={vdev},target={image(images / name)}")
    colo = "colo,colo-host=h,colo-port=1,colo-export=E,"
    secondary = f"active-disk={image(tmp_path / 'json:a', 'qcow2')},hidden-disk="
    secondary += f"{image(tmp_path / 'nbd: h', 'qcow2')},"
    specs[0] = specs[0].replace("target=", f"{colo}{secondary}target=", 1)
    for vdev, name in zip(("sda", "sdb", "sdc", "sdd"), HOSTILE[4:], strict=True):
        if form is Form.BLOCKDEV:  # today's QEMU has no if=scsi
            specs.append(f"vdev={vdev},target={image(images / name)}")
    drives = domain_drives(map(parse, specs), role, form)
    assert not drives.errors
    with qemu(drives.arguments, tmp_path) as machine:
        opened = machine.opened(tmp_path)
    assert set(opened) == {path for images in drives.images.values() for path in images.values()}


def test_discard_reaches_the_image_unless_told_not_to(tmp_path: Path) -> None:
    disks = [disk(tmp_path, "hda"), disk(tmp_path, "hdb", "no-discard,")]
    kept: list[str] = []
    punched: list[str] = []
    with qemu(arguments(disks, Role.NONE), tmp_path) as machine:
        for d in disks:
            command = f'qemu-io -d disk-{d.devid} "discard 0 {SIZE}"'
            machine("human-monitor-command", **{"command-line": command})
            blocks = Path(d.pdev_path or "").stat().st_blocks
            (kept if blocks * 512 >= SIZE else punched).append(d.vdev)
    assert (punched, kept) == (["hda"], ["hdb"])


def test_the_text_of_2016_that_qemu_still_takes(tmp_path: Path) -> None:
    disks = [
        disk(tmp_path, "hda"),
        disk(tmp_path, "hdb", colo=True),
        disk(tmp_path, "hdc", "cdrom,"),
    ]
    disks.append(parse("vdev=hdd,cdrom"))
    with qemu(arguments(disks, Role.PRIMARY, Form.TEXT_2016), tmp_path) as machine:
        blocks = {block["device"]: block.get("inserted") for block in machine("query-block")}
        opened = machine.opened(tmp_path)
    assert set(blocks) == {"ide0-hd0", "export-hdb", "ide-5632", "ide-5696"}
    assert blocks["export-hdb"]["drv"] == "quorum"
    assert blocks["ide0-hd0"]["file"] == disks[0].pdev_path
    assert blocks["ide-5696"] is None
    assert {path for path, writable in opened.items() if writable} == {
        disks[0].pdev_path,
        disks[1].pdev_path,
    }


@pytest.mark.parametrize(
    ("vdev", "role", "words"),
    [
        ("hda", Role.SECONDARY, "Missing the option top-id"),
        ("sda", Role.NONE, "machine type does not support if=scsi"),
        ("sda", Role.PRIMARY, "machine type does not support if=scsi"),
        ("sda", Role.SECONDARY, "Missing the option top-id"),
    ],
)
def test_the_text_of_2016_that_qemu_refuses(
    vdev: str, role: Role, words: str, tmp_path: Path
) -> None:
    drive = disk(tmp_path, vdev, colo=True)
    assert words in refusal(arguments([drive], role, Form.TEXT_2016))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("ide-hd,drive=n,bus=ide.0,unit=0", "Block node is read-only"),
        ("scsi-hd,drive=n,bus=lsi.0,scsi-id=8", "bad scsi device id"),
    ],
)
def test_why_some_disks_are_refused(device: str, words: str, tmp_path: Path) -> None:
    read_only = "true" if device.startswith("ide") else "false"
    path = image(tmp_path / "x")
    node = f'{{"driver":"file","node-name":"n","read-only":{read_only},"filename":"{path}"}}'
    lsi = ("-device", "lsi53c895a,id=lsi")
    assert words in refusal((*lsi, "-blockdev", node, "-device", device))
