"""Any value that a node may hold, given to a real QEMU: what it opened is what the node named."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.e2e.host import free_ports
from tests.e2e.test_drives_qemu import Qemu, qemu
from xencolo.disk import Backend, Disk, Format, Role, check_export, check_image
from xencolo.drives import Form, domain_drives, image_drivers
from xencolo.errors import DiskError, QmpCommandError
from xencolo.plan import Launch
from xencolod.argv import command_line, launch_in
from xencolod.config import load

#: How many QEMUs are started for each test; `make fuzz` starts more.
QEMUS = int(os.environ.get("FUZZ_QEMUS", "10"))
few = settings(
    max_examples=QEMUS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# What has a meaning somewhere on the way: to QEMU's option parser, its JSON, its protocols, a shell.
_WORDS = [
    *(",", ",,", "=", "file=", ",if=none", ",driver=null-co", ",readonly=off", ",id=x"),
    *(
        "json:",
        'json:{"driver":"null-co"}',
        "nbd:",
        "nbd://h:1/e",
        "fat:rw:",
        "blkdebug::",
        "file:",
    ),
    *(
        "host_device:",
        "ssh://",
        "-",
        "--",
        "-drive",
        '"',
        "\\",
        "{",
        "}",
        "'",
        "$(x)",
        "`",
        "%s",
        "%",
    ),
    *(" ", ":", "..", ".", "é", "日本", "\u202e", "\u2028", "\U0001f600", "\u0085", "#", "?", "a"),
]
names = (
    st.lists(st.sampled_from(_WORDS) | st.text(max_size=4), min_size=1, max_size=6)
    .map("".join)
    .map(lambda text: text.replace("/", "_"))
    .filter(lambda name: name not in {".", ".."} and 0 < len(name.encode(errors="ignore")) < 200)
)


def usable(path: str) -> bool:
    """Whether a node may name this image."""
    try:
        check_image(path)
    except DiskError:
        return False
    return True


exports = st.from_regex(r"\A[A-Za-z][A-Za-z0-9\-._]{0,30}\Z").filter(
    lambda name: (
        not name.startswith(("quorum-", "plain-", "nbd-", "peer-", "disk-", "replication-"))
    )
)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("templates")
    made = {}
    for image_format in ("raw", "qcow2"):
        made[image_format] = directory / image_format
        argv = ["qemu-img", "create", "-q", "-f", image_format, str(made[image_format]), "1M"]
        subprocess.run(argv, check=True)
    return made


def newer(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """What today's QEMU asks for beyond the text of 2016, as libxl adds it today."""
    return tuple(
        f"{word},id=top,top-id=top" if "driver=replication" in word.split(",") else word
        for word in arguments
    )


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("form", Form)
@few
@given(
    paths=st.lists(names.filter(usable), min_size=4, max_size=4, unique=True),
    directory=names.filter(usable),
    export=exports,
)
@example(
    paths=["a,file=x", "json:{}", "x,,if=none,id=y", "-"],
    directory='json:{"driver":"null-co"}',
    export="E",
)
def test_qemu_opens_what_the_nodes_name(
    form: Form,
    role: Role,
    paths: list[str],
    directory: str,
    export: str,
    templates: dict[str, Path],
) -> None:
    with tempfile.TemporaryDirectory() as base:
        images = Path(base, directory)
        images.mkdir()
        for name, image_format in zip(paths, ("raw", "raw", "qcow2", "qcow2"), strict=True):
            shutil.copyfile(templates[image_format], images / name)
        plain, target, active, hidden = (f"{images}/{name}" for name in paths)
        disks = [
            Disk(vdev="hda", backend=Backend.QDISK, format=Format.RAW, pdev_path=plain),
            Disk(
                vdev="hdb",
                backend=Backend.QDISK,
                format=Format.RAW,
                pdev_path=target,
                colo_enable=True,
                colo_host="127.0.0.1",
                colo_port=9000,
                colo_export=export,
                active_disk=active,
                hidden_disk=hidden,
            ),
        ]
        drives = domain_drives(disks, role, form)
        assert not drives.errors
        named = {path for images in drives.images.values() for path in images.values()}
        assert set(image_drivers(drives.arguments)) == named
        with qemu(newer(drives.arguments), Path(base)) as machine:
            opened = set(machine.opened(Path(base)))
            nodes = machine("query-named-block-nodes", flat=True)
            names_in_qemu = {block["device"] for block in machine("query-block")}
    assert opened == named
    files = [node for node in nodes if node["drv"] in {"file", "host_device"}]
    assert {node["file"] for node in files} == named
    drivers = {node["drv"] for node in nodes}
    assert drivers <= {"raw", "qcow2", "quorum", "replication", "file"}
    if role is Role.PRIMARY and form is Form.TEXT_2016:
        assert export in names_in_qemu


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    with qemu((), tmp_path_factory.mktemp("machine")) as running:
        yield running


@given(name=exports | st.text(max_size=40))
@example(name="a" * 32)
@example(name="a,b")
@example(name="#block0")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_export_is_right_if_qemu_takes_it_as_the_name_of_a_node(
    machine: Qemu, name: str
) -> None:
    try:
        check_export(name)
    except DiskError:
        accepted = False
    else:
        accepted = True
    try:
        machine("blockdev-add", **{"driver": "null-co", "node-name": name})
    except QmpCommandError:
        assert not accepted
        return
    nodes = [node["node-name"] for node in machine("query-named-block-nodes", flat=True)]
    machine("blockdev-del", **{"node-name": name})
    assert nodes == [name]
    assert accepted


@given(address=st.ip_addresses(v=4, network="127.0.0.0/8"))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_host_is_where_qemu_listens_and_nowhere_else(machine: Qemu, address: object) -> None:
    host = str(address)
    if host.endswith(".0.0.0") or host == "127.255.255.255":
        return  # no address of a host
    (port,) = free_ports(1, host)
    where = {"host": host, "port": str(port)}
    machine("nbd-server-start", addr={"type": "inet", "data": where})
    try:
        with socket.create_connection((host, port), timeout=5) as client:
            assert client.getpeername() == (host, port)
            assert client.recv(8) == b"NBDMAGIC"
        other = "127.0.0.1" if host != "127.0.0.1" else "127.0.0.2"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, port), timeout=5)
    finally:
        machine("nbd-server-stop")


guests = st.text(max_size=60) | st.lists(st.sampled_from(_WORDS), max_size=8).map("".join)


@few
@given(name=guests)
@example(name="web,process=x,debug-threads=on")
@example(name=",")
def test_the_name_of_a_guest_is_only_a_name(name: str, tmp_path: Path) -> None:
    argv = _argv(name)
    shown = argv[argv.index("-name") : argv.index("-name") + 2]
    with qemu(tuple(shown), Path(tempfile.mkdtemp(dir=tmp_path))) as running:
        found = running("query-name").get("name", "")
    assert found == "".join(filter(str.isprintable, name))


@given(name=guests, paths=st.lists(names.filter(usable), min_size=1, max_size=4, unique=True))
def test_a_command_line_says_all_that_a_later_daemon_has_to_know(
    name: str, paths: list[str]
) -> None:
    vdevs = ("hda", "hdb", "hdc", "hdd")
    disks = [
        Disk(vdev=vdev, backend=Backend.QDISK, format=Format.RAW, pdev_path=f"/i/{path}")
        for vdev, path in zip(vdevs, paths, strict=False)
    ]
    for form in Form:
        launch = Launch(5, "", None, 64, Role.NONE, domain_drives(disks, Role.NONE, form).arguments)
        argv = _argv(name, launch.drives)
        assert all("\0" not in word for word in argv)
        again = launch_in(5, json.loads(json.dumps(argv)))
        assert again._replace(name="") == launch
        assert again.name == "".join(filter(str.isprintable, name))


def _argv(name: str, drives: tuple[str, ...] = ()) -> list[str]:
    config = load(Path(os.devnull), xen=False)
    launch = Launch(5, name, None, 64, Role.NONE, drives)
    return command_line(config, launch, "/run/5.pid", "0a", xen=False)
