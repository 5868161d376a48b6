from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.disk import (
    Backend,
    Disk,
    Format,
    Specification,
    check_export,
    check_host,
    check_image,
    disk_from_json,
    disk_to_json,
    parse_port,
)
from xencolo.errors import DiskError, VdevError

COLO = Disk(
    vdev="xvda",
    pdev_path="/p",
    format=Format.RAW,
    colo_enable=True,
    colo_host="secondary",
    colo_port=9000,
    colo_export="colo-disk0",
    active_disk="/a",
    hidden_disk="/h",
)


def test_libxls_names_and_defaults() -> None:
    assert disk_to_json(Disk(vdev="xvda")) == {
        "backend_domid": 0,
        "pdev_path": None,
        "vdev": "xvda",
        "backend": "unknown",
        "format": "unknown",
        "script": None,
        "removable": False,
        "readwrite": True,
        "is_cdrom": False,
        "direct_io_safe": False,
        "discard_enable": None,
        "specification": "xen",
        "trusted": True,
        "colo_enable": False,
        "colo_restore_enable": False,
        "colo_host": None,
        "colo_port": 0,
        "colo_export": None,
        "active_disk": None,
        "hidden_disk": None,
    }


@pytest.mark.parametrize(
    ("readwrite", "discard_enable", "discard"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_discard_is_on_when_read_write(
    readwrite: bool, discard_enable: bool | None, discard: bool
) -> None:
    disk = Disk(vdev="xvda", readwrite=readwrite, discard_enable=discard_enable)
    assert disk.discard is discard


@pytest.mark.parametrize(
    ("pdev_path", "image_format", "empty"),
    [
        (None, Format.RAW, True),
        ("", Format.RAW, True),
        ("/x", Format.RAW, False),
        (None, Format.EMPTY, True),
    ],
)
def test_empty(pdev_path: str | None, image_format: Format, empty: bool) -> None:
    assert Disk(vdev="hdc", pdev_path=pdev_path, format=image_format).empty is empty


def test_a_colo_disk_is_right() -> None:
    COLO.check()
    assert disk_from_json(disk_to_json(COLO)) == COLO


BAD_CHANGES: list[tuple[dict[str, Any], str, str]] = [
    ({"colo_host": None}, "colo-host is missing", "colo_host"),
    ({"colo_port": 0}, "colo-port is missing", "colo_port"),
    ({"colo_export": ""}, "colo-export is missing", "colo_export"),
    ({"active_disk": None}, "active-disk is missing", "active_disk"),
    ({"hidden_disk": None}, "hidden-disk is missing", "hidden_disk"),
    ({"colo_port": 65536}, "from 1 to 65535", "colo_port"),
    ({"colo_port": -1}, "from 1 to 65535", "colo_port"),
    ({"colo_export": "a,b"}, "QEMU needs a letter", "colo_export"),
    ({"colo_host": "a b"}, "no host name", "colo_host"),
    ({"active_disk": "/a\n"}, "holds the character", ""),
    ({"backend": Backend.PHY}, "needs backendtype=qdisk", "backend"),
    ({"backend": Backend.TAP}, "needs backendtype=qdisk", "backend"),
    ({"backend": Backend.STANDALONE}, "needs backendtype=qdisk", "backend"),
    ({"script": "block-drbd"}, "has no script", "script"),
    ({"specification": Specification.VIRTIO}, "specification=xen", "specification"),
    ({"active_disk": "/p"}, "must be three files", "active_disk"),
    ({"hidden_disk": "/p"}, "must be three files", "hidden_disk"),
    ({"hidden_disk": "/a"}, "must be three files", "hidden_disk"),
    ({"format": Format.EMPTY}, "empty but no cdrom", "format"),
    ({"format": Format.EMPTY, "is_cdrom": True}, "empty but has the target /p", "format"),
    ({"pdev_path": "/\udcff"}, "holds the character", ""),
]


@pytest.mark.parametrize(("change", "reason", "field"), BAD_CHANGES)
def test_fields_that_do_not_go_together(change: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(DiskError, match=reason) as raised:
        msgspec.structs.replace(COLO, **change).check()
    assert raised.value.field == field


def test_a_vdev_that_can_not_be() -> None:
    with pytest.raises(VdevError, match="sdq"):
        disk_from_json({"vdev": "sdq"})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "object"),
        ({}, "vdev"),
        ({"vdev": "xvda", "colour": 1}, "colour"),
        ({"vdev": 1}, "vdev"),
        ({"vdev": "xvda", "format": "vmdk"}, "format"),
        ({"vdev": "xvda", "colo_port": "9000"}, "colo_port"),
        ({"vdev": "xvda", "backend_domid": -1}, "backend -1: a domid is from 0 to 32751"),
        ({"vdev": "xvda", "backend_domid": 32752}, "backend 32752: a domid is from"),
    ],
)
def test_what_is_no_disk_in_json(value: object, place: str) -> None:
    with pytest.raises(DiskError, match=place):
        disk_from_json(value)


@pytest.mark.parametrize("text", ["1", "80", "9000", "65535"])
def test_ports(text: str) -> None:
    assert str(parse_port(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "70000",
        "99abc",
        " 9000",
        "9000 ",
        "+9",
        "-1",
        "09000",
        "9" * 4096,
        "\u0661",
    ],
)
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(DiskError, match="from 1 to 65535") as raised:
        parse_port(text)
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(
    "name", ["", "1disk", "a" * 32, "a b", "a,b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "#a"]
)
def test_what_is_no_export(name: str) -> None:
    with pytest.raises(DiskError, match="QEMU needs a letter"):
        check_export(name)


@pytest.mark.parametrize("host", ["node-2.example", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
def test_hosts(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host", ["192.0.2.1:9000", "web2:9000", "[2001:db8::1]", "aio:x", "1:2:3", "::1%a\n", "::1%"]
)
def test_a_host_has_neither_port_nor_brackets(host: str) -> None:
    with pytest.raises(DiskError, match="the port goes into colo-port, and IPv6 has no brackets"):
        check_host(host)


@pytest.mark.parametrize("path", ["", "/a\0b", "/a\x7f", "/\ud800"])
def test_what_is_no_image(path: str) -> None:
    with pytest.raises(DiskError, match="path"):
        check_image(path)


@given(
    st.builds(
        Disk,
        vdev=st.sampled_from(["xvda", "hdc", "sdp", "d3p0"]),
        backend=st.sampled_from(Backend),
        format=st.sampled_from([f for f in Format if f is not Format.EMPTY]),
        pdev_path=st.none()
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        discard_enable=st.none() | st.booleans(),
        specification=st.sampled_from(Specification),
        backend_domid=st.integers(0, 32751),
    )
)
def test_json_gives_the_disk_back(disk: Disk) -> None:
    assert disk_from_json(msgspec.json.decode(msgspec.json.encode(disk_to_json(disk)))) == disk
