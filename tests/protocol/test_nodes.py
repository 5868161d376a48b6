"""The table of a disk's nodes, what it writes, and the page that is made from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xencolo import requests
from xencolo.disk import Backend, Disk, Format, Specification
from xencolo.errors import DiskError, VdevError, WireError
from xencolo.nodes import BACKEND_NODES, FRONTEND_NODES, LIBXL_NODES, Need, add_requests
from xencolo.paths import DevicePaths
from xencolo.reference import page
from xencolo.requests import Request
from xencolo.status import STATUS_NODES
from xencolo.wire import Op, Permission

PAGE = Path(__file__).parents[2] / "protocol" / "NODES.md"

FE = "/local/domain/5/device/vbd/51712"
BE = "/local/domain/0/backend/qdisk/5/51712"
LX = "/libxl/5/device/vbd/51712"
PATHS = DevicePaths(5, 51712)

PLAIN = Disk(
    vdev="xvda", pdev_path="/srv/a.img", backend=Backend.QDISK, format=Format.RAW, removable=False
)
COLO = {
    "colo_enable": True,
    "colo_host": "192.0.2.7",
    "colo_port": 9000,
    "colo_export": "disk1",
    "active_disk": "/srv/active.qcow2",
    "hidden_disk": "/srv/hidden.qcow2",
}
# What libxl 4.17 writes, in its order (FACTS, "Nodes of a disk").
COLO_ROWS = [
    ("colo-host", "192.0.2.7"),
    ("colo-port", "9000"),
    ("colo-export", "disk1"),
    ("active-disk", "/srv/active.qcow2"),
    ("hidden-disk", "/srv/hidden.qcow2"),
]


def disk(**changed: object) -> Disk:
    return msgspec.structs.replace(PLAIN, **changed)


@dataclass
class Case:
    """A disk, and how its rows differ from those of a plain raw read-write disk."""

    changed: dict[str, Any] = field(default_factory=dict)
    params: str = "aio:/srv/a.img"
    after_params: list[tuple[str, str]] = field(default_factory=list)
    removable: str = "0"
    mode: str = "w"
    device_type: str = "disk"
    trusted: str = "1"
    direct_io_safe: list[tuple[str, str]] = field(default_factory=list)
    discard: str = "1"
    specification: str = "xen"

    def backend_rows(self) -> list[tuple[str, str]]:
        return [
            ("params", self.params),
            *self.after_params,
            ("frontend-id", "5"),
            ("online", "1"),
            ("removable", self.removable),
            ("bootable", "1"),
            ("state", "1"),
            ("dev", "xvda"),
            ("type", "qdisk"),
            ("mode", self.mode),
            ("device-type", self.device_type),
            *self.direct_io_safe,
            ("discard-enable", self.discard),
            ("specification", self.specification),
        ]

    def requests(self) -> list[Request]:
        rows = self.backend_rows()
        return [
            requests.rm(LX),
            requests.write(f"{LX}/frontend", FE),
            requests.write(f"{LX}/backend", BE),
            requests.rm(FE),
            requests.mkdir(FE),
            requests.set_permissions(FE, [Permission("n", 5), Permission("r", 0)]),
            requests.write(f"{FE}/backend", BE),
            requests.write(f"{FE}/backend-id", "0"),
            requests.write(f"{FE}/state", "1"),
            requests.write(f"{FE}/virtual-device", "51712"),
            requests.write(f"{FE}/device-type", self.device_type),
            requests.write(f"{FE}/trusted", self.trusted),
            requests.rm(BE),
            requests.mkdir(BE),
            requests.set_permissions(BE, [Permission("n", 0), Permission("r", 5)]),
            requests.write(f"{BE}/frontend", FE),
            *(requests.write(f"{BE}/{name}", value) for name, value in rows),
            *(requests.write(f"{LX}/{name}", value) for name, value in rows),
        ]


CASES = {
    "plain": Case(),
    "COLO": Case(COLO, after_params=COLO_ROWS),
    "COLO keys of a disk that is not for COLO": Case({**COLO, "colo_enable": False}),
    "cdrom": Case(
        {"is_cdrom": True, "removable": True, "readwrite": False},
        removable="1",
        mode="r",
        device_type="cdrom",
        discard="0",
    ),
    "empty cdrom": Case(
        {
            "is_cdrom": True,
            "removable": True,
            "readwrite": False,
            "pdev_path": None,
            "format": Format.EMPTY,
        },
        params="aio:",
        removable="1",
        mode="r",
        device_type="cdrom",
        discard="0",
    ),
    "read-only": Case({"readwrite": False}, mode="r", discard="0"),
    "read-only with discard": Case({"readwrite": False, "discard_enable": True}, mode="r"),
    "no discard": Case({"discard_enable": False}, discard="0"),
    "qcow": Case({"format": Format.QCOW}, params="qcow:/srv/a.img"),
    "qcow2": Case({"format": Format.QCOW2}, params="qcow2:/srv/a.img"),
    "vhd": Case({"format": Format.VHD}, params="vhd:/srv/a.img"),
    "qed": Case({"format": Format.QED}, params="qed:/srv/a.img"),
    "direct-io-safe": Case({"direct_io_safe": True}, direct_io_safe=[("direct-io-safe", "1")]),
    "untrusted": Case({"trusted": False}, trusted="0"),
    "virtio": Case({"specification": Specification.VIRTIO}, specification="virtio"),
    "colon and comma in the path": Case({"pdev_path": "/srv/a:b,c"}, params="aio:/srv/a:b,c"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_written_is_what_libxl_writes(case: Case) -> None:
    assert add_requests(disk(**case.changed), PATHS) == case.requests()


def test_a_backend_in_a_driver_domain_owns_its_directory_and_reads_the_frontend() -> None:
    written = add_requests(disk(backend_domid=3), DevicePaths(5, 51712, 3))
    backend = "/local/domain/3/backend/qdisk/5/51712"
    assert [r for r in written if r.op == Op.SET_PERMS] == [
        requests.set_permissions(FE, [Permission("n", 5), Permission("r", 3)]),
        requests.set_permissions(backend, [Permission("n", 3), Permission("r", 5)]),
    ]
    assert requests.write(f"{FE}/backend-id", "3") in written
    assert requests.write(f"{LX}/backend", backend) in written


def test_a_phy_disk_has_a_bare_path_and_its_script() -> None:
    phy = disk(backend=Backend.PHY, pdev_path="/dev/vg/a", script="/etc/xen/scripts/block")
    written = add_requests(phy, DevicePaths(5, 51712, kind="vbd"))
    backend = "/local/domain/0/backend/vbd/5/51712"
    after = written.index(requests.write(f"{backend}/params", "/dev/vg/a"))
    assert written[after + 1] == requests.write(f"{backend}/script", "/etc/xen/scripts/block")
    assert requests.write(f"{backend}/type", "phy") in written


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no vdev": ({"vdev": ""}, VdevError, "vdev"),
    "vdev out of range": ({"vdev": "hde"}, VdevError, "hd"),
    "no backend yet": ({"backend": Backend.UNKNOWN}, DiskError, "backend unknown"),
    "another backend": ({"backend": Backend.PHY}, DiskError, "backend phy"),
    "no format yet": ({"format": Format.UNKNOWN}, DiskError, "format unknown"),
    "COLO without its host": ({**COLO, "colo_host": None}, DiskError, "colo-host"),
    "COLO on a script": ({**COLO, "script": "block-nbd"}, DiskError, "script"),
    "a value over xenstore's limit": ({"pdev_path": "/" + "a" * 4090}, WireError, "4096"),
}


@pytest.mark.parametrize(("changed", "error", "word"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused_with_the_reason(
    changed: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        add_requests(disk(**changed), PATHS)


# -- the table ----------------------------------------------------------------------------------


def test_names_are_unique_in_each_directory() -> None:
    libxl = [node.name for node in (*LIBXL_NODES, *BACKEND_NODES)]
    frontend = [node.name for node in FRONTEND_NODES]
    assert len(set(libxl)) == len(libxl)
    assert len(set(frontend)) == len(frontend)


def test_what_is_mandatory_is_what_libxl_demands_and_where_it_stands() -> None:
    needs = {node.name: node.need for node in (*LIBXL_NODES, *BACKEND_NODES)}
    assert {name for name, need in needs.items() if need is Need.ALWAYS} == {
        "frontend",
        "backend",
        "type",
        "dev",
        "removable",
        "mode",
        "device-type",
    }
    assert {name for name, need in needs.items() if need is Need.COLO} == {
        name for name, _ in COLO_ROWS
    }


def test_every_field_of_a_disk_is_read_back_from_a_node_or_stands_elsewhere() -> None:
    """A disk that differs from the default in every field comes back from its own rows."""
    elsewhere = {
        "backend_domid",  # in the path
        "colo_enable",  # the colo nodes are there
        "colo_restore_enable",  # the role node
        "trusted",  # the frontend's, which the guest owns
    }
    phy = disk(script="/etc/xen/scripts/block", backend=Backend.PHY, direct_io_safe=True)
    told = _read(phy, DevicePaths(5, 51712, kind="vbd")) | _read(disk(**COLO), PATHS)
    assert set(told) == set(Disk.__struct_fields__) - elsewhere


def _read(written: Disk, paths: DevicePaths) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for node in (*LIBXL_NODES, *BACKEND_NODES):
        value = node.render(written, paths)
        if value is not None and node.parse:
            told |= node.parse(value, paths)
    return told


ROUND_TRIPS = [case.changed for case in CASES.values()] + [{"pdev_path": "/dev/disk/by-path/p:0"}]


@pytest.mark.parametrize("changed", ROUND_TRIPS, ids=str)
@pytest.mark.parametrize(
    ("backend", "kind"), [(Backend.QDISK, "qdisk"), (Backend.PHY, "vbd")], ids=["qdisk", "phy"]
)
def test_what_is_rendered_is_parsed_to_the_same_fields(
    changed: dict[str, Any], backend: Backend, kind: str
) -> None:
    written = disk(**changed, backend=backend)
    if kind == "vbd" and written.format is not Format.RAW:
        written = msgspec.structs.replace(written, format=Format.RAW, pdev_path="/dev/sda1")
    told = _read(written, DevicePaths(5, 51712, kind=kind))
    expected = {**msgspec.structs.asdict(written), "discard_enable": written.discard}
    assert told == {name: expected[name] for name in told}


def test_values_are_in_the_notation_of_xenstore_paths() -> None:
    tables = (FRONTEND_NODES, LIBXL_NODES, BACKEND_NODES, STATUS_NODES)
    for values in (node.values for table in tables for node in table):
        assert values in {"PATH", "STRING", "INTEGER"} or _is_choice(values), values


def _is_choice(values: str) -> bool:
    words = values.removeprefix("(").removesuffix(")").split(" | ")
    return values == f"({' | '.join(words)})" and all(
        word == f'"{word[1:-1]}"' and word[1:-1] for word in words
    )


# -- the page -----------------------------------------------------------------------------------


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: make pages"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_node_that_is_written_is_on_the_page(case: Case) -> None:
    text = page()
    for request in add_requests(disk(**case.changed), PATHS):
        if request.op == Op.WRITE:
            path = request.path.replace("/51712", "/$DEVID").replace("/libxl/5/", "/libxl/$DOMID/")
            path = path.replace("/local/domain/0", "~").replace("/local/domain/5", "~")
            path = path.replace("/qdisk/5/", "/qdisk/$DOMID/")
            # The copy's nodes are described once, in the backend's directory.
            alias = path.replace("/libxl/$DOMID/device/vbd", "~/backend/qdisk/$DOMID")
            assert f"\n#### {path} = " in text or f"\n#### {alias} = " in text, path


def test_colo_keeps_its_capitals_on_the_page() -> None:
    assert "*Mandatory for COLO.*" in page()
    assert "for colo.*" not in page()
