import json
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.disk import Backend, Disk, Format, Role
from xencolo.diskspec import parse
from xencolo.drives import (
    DomainDrives,
    Form,
    device_id,
    domain_drives,
    plain_node,
    quorum_node,
    replication_node,
)

COLO = "colo,colo-host=h,colo-port=9000,colo-export=E,active-disk=/A,hidden-disk=/H"


def drives(*specs: str, role: Role = Role.NONE, form: Form = Form.BLOCKDEV) -> DomainDrives:
    return domain_drives(map(parse, specs), role, form)


def colo(vdev: str, name: str, words: str = "") -> str:
    keys = COLO.replace("=E", f"={name}").replace("/A", f"/{name}.a").replace("/H", f"/{name}.h")
    return f"vdev={vdev},{words}{keys},target=/{name}"


def blockdevs(arguments: tuple[str, ...]) -> list[Any]:
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    return [json.loads(value) for option, value in pairs if option == "-blockdev"]


def devices(arguments: tuple[str, ...]) -> list[str]:
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    return [value for option, value in pairs if option == "-device"]


# -- the text of 2016: every formula in FACTS ------------------------------------------------------

QUORUM = (
    "driver=quorum,id=E,children.0.file.filename=/P,children.0.driver=F,"
    "read-pattern=fifo,vote-threshold=1"
)
REPLICATION = (
    "driver=replication,mode=secondary,file.driver=qcow2,file.file.filename=/A,"
    "file.backing.driver=qcow2,file.backing.file.filename=/H,file.backing.backing=E"
)
SECONDARY_DISK = "if=none,driver=F,file=/P,id=E"
SCSI, IDE = "if=scsi,bus=0,unit=N", "if=ide,index=N,media=disk"
TEXTS = {
    (Role.NONE, "sd"): [f"file=/P,{SCSI},format=F,cache=writeback"],
    (Role.NONE, "hd"): [f"file=/P,{IDE},format=F,cache=writeback"],
    (Role.PRIMARY, "sd"): [f"{SCSI},cache=writeback,{QUORUM}"],
    (Role.PRIMARY, "hd"): [f"{IDE},cache=writeback,{QUORUM}"],
    (Role.SECONDARY, "sd"): [SECONDARY_DISK, f"{SCSI},cache=writeback,{REPLICATION}"],
    (Role.SECONDARY, "hd"): [SECONDARY_DISK, f"{IDE},cache=writeback,{REPLICATION}"],
}
FORMATS = {"raw": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "qed": "qed"}


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("vdev", ["sda", "sdh", "hda", "hdd", "xvda", "xvdd"])
@pytest.mark.parametrize("role", Role)
def test_the_2016_text(role: Role, vdev: str, image_format: str) -> None:
    bus = "sd" if vdev.startswith("sd") else "hd"
    number = "abcdefgh".index(vdev[-1])
    texts = [
        text.replace("=N", f"={number}").replace("=F", f"={FORMATS[image_format]}")
        for text in TEXTS[role, bus]
    ]
    spec = f"vdev={vdev},format={image_format},{COLO},target=/P"
    made = drives(spec, role=role, form=Form.TEXT_2016)
    assert made.arguments == tuple(word for text in texts for word in ("-drive", text))
    assert not made.errors
    assert not made.skipped


def test_a_disk_without_colo_is_plain_in_every_role() -> None:
    made = [drives("vdev=hda,target=/P", role=role, form=form) for form in Form for role in Role]
    assert len({d.arguments for d in made}) == len(Form)


def test_commas_are_doubled_in_text() -> None:
    spec = f"vdev=hda,{COLO},target=/P,if=none,file=/etc/passwd"
    first, second = drives(spec, role=Role.SECONDARY, form=Form.TEXT_2016).arguments[1::2]
    assert first == "if=none,driver=raw,file=/P,,if=none,,file=/etc/passwd,id=E"
    assert second.endswith(REPLICATION)
    plain = drives(spec, form=Form.TEXT_2016).arguments[1]
    assert plain.startswith("file=/P,,if=none,,file=/etc/passwd,if=ide,index=0,")


def test_read_only_is_in_the_2016_text() -> None:
    spec = f"vdev=sda,access=ro,{COLO},target=/P"
    read_write = drives(spec.replace("=ro", "=rw"), form=Form.TEXT_2016).arguments[1::2]
    made = drives(spec, form=Form.TEXT_2016).arguments[1::2]
    assert made == tuple(f"{text},readonly=on" for text in read_write)


def test_a_cdrom_in_2016_text() -> None:
    made = drives("vdev=hdc,cdrom", "vdev=hdd,cdrom,target=/iso", form=Form.TEXT_2016)
    assert made.arguments[1::2] == (
        "if=ide,index=2,readonly=on,media=cdrom,id=ide-5632",
        "if=ide,index=3,readonly=on,media=cdrom,id=ide-5696,file=/iso,format=raw",
    )


# -- as -blockdev ----------------------------------------------------------------------------------


def file(path: str) -> dict[str, str]:
    return {"driver": "file", "filename": path}


IMAGE = {"driver": "raw", "file": file("/P")}
DISCARD = {"discard": "unmap"}
QUORUM_NODE = {
    "driver": "quorum",
    "node-name": "quorum-768",
    "read-pattern": "fifo",
    "vote-threshold": 1,
} | DISCARD
ACTIVE = {
    "driver": "qcow2",
    "file": file("/A"),
    "backing": {"driver": "qcow2", "file": file("/H"), "backing": "E"},
}
GRAPHS: dict[Role, list[Any]] = {
    Role.NONE: [IMAGE | {"node-name": "plain-768"} | DISCARD],
    Role.PRIMARY: [QUORUM_NODE | {"children": [IMAGE]}],
    Role.SECONDARY: [
        IMAGE | {"node-name": "E"} | DISCARD,
        {
            "driver": "replication",
            "mode": "secondary",
            "node-name": "replication-768",
            "top-id": "quorum-768",
            "file": ACTIVE,
        }
        | DISCARD,
        QUORUM_NODE | {"children": ["replication-768"]},
    ],
}
IMAGES = {role: {"params": "/P"} for role in Role}
IMAGES[Role.SECONDARY] |= {"active-disk": "/A", "hidden-disk": "/H"}


@pytest.mark.parametrize("role", Role)
def test_the_block_graph(role: Role) -> None:
    made = drives(f"vdev=hda,{COLO},target=/P", role=role)
    top = plain_node(768) if role is Role.NONE else quorum_node(768)
    assert blockdevs(made.arguments) == GRAPHS[role]
    assert devices(made.arguments) == [f"ide-hd,drive={top},bus=ide.0,unit=0,id=disk-768"]
    assert made.images == {768: IMAGES[role]}


def test_names() -> None:
    assert (quorum_node(768), replication_node(768)) == ("quorum-768", "replication-768")
    assert (plain_node(768), device_id(768)) == ("plain-768", "disk-768")


def test_where_each_disk_goes() -> None:
    specs = ["hda", "xvdb", "sda", "sdh"]
    made = drives(*(f"vdev={v},target=/{v}" for v in specs), "vdev=hdc,cdrom", "vdev=hdd,cdrom,/i")
    assert devices(made.arguments) == [
        "lsi53c895a,id=lsi",
        "ide-hd,drive=plain-768,bus=ide.0,unit=0,id=disk-768",
        "scsi-hd,drive=plain-2048,bus=lsi.0,scsi-id=0,id=disk-2048",
        "scsi-hd,drive=plain-2160,bus=lsi.0,scsi-id=7,id=disk-2160",
        "ide-cd,bus=ide.1,unit=0,id=disk-5632",
        "ide-cd,drive=plain-5696,bus=ide.1,unit=1,id=disk-5696",
        "ide-hd,drive=plain-51728,bus=ide.0,unit=1,id=disk-51728",
    ]
    assert made.arguments[:2] == ("-device", "lsi53c895a,id=lsi")
    assert made.images[5632] == {}


def test_a_cdrom_is_on_ide_as_libxl_has_it() -> None:
    made = drives("vdev=sdc,cdrom,target=/i")
    assert devices(made.arguments) == ["ide-cd,drive=plain-2080,bus=ide.1,unit=0,id=disk-2080"]


def nested(value: Any) -> list[dict[str, Any]]:
    """Return every node in some JSON."""
    if isinstance(value, list):
        return [node for item in value for node in nested(item)]
    if isinstance(value, dict):
        return [value, *nested(list(value.values()))]
    return []


def test_read_only_is_in_every_node() -> None:
    made = drives(f"vdev=sda,access=ro,{COLO},target=/P")
    nodes = nested(blockdevs(made.arguments))
    assert len(nodes) == 2
    assert all(node["read-only"] is True and "discard" not in node for node in nodes)


def test_no_discard() -> None:
    made = drives(f"vdev=hda,no-discard,{COLO},target=/P", role=Role.SECONDARY)
    assert not any("discard" in node for node in nested(blockdevs(made.arguments)))


@pytest.mark.parametrize(
    "path", ["/json:{}", "/a,if=none,file=/etc/passwd", "/nbd:x:1", '/"\\', "/é"]
)
def test_a_path_is_only_a_path(path: str) -> None:
    made = drives(f"vdev=hda,target={path}")
    assert blockdevs(made.arguments)[0]["file"] == {"driver": "file", "filename": path}
    assert made.images == {768: {"params": path}}


def test_block_devices() -> None:
    disk = parse("vdev=hda,target=/dev/vg/disk")
    link = parse("vdev=hdb,target=/images/link")
    made = domain_drives([disk, link], Role.NONE)
    assert [n["file"]["driver"] for n in blockdevs(made.arguments)] == ["host_device", "file"]
    made = domain_drives([disk, link], Role.NONE, is_block_device=lambda path: "link" in path)
    assert [n["file"]["driver"] for n in blockdevs(made.arguments)] == ["file", "host_device"]


def test_what_another_backend_serves_is_raw() -> None:
    disk = Disk(vdev="hda", pdev_path="/dev/x", backend=Backend.PHY, format=Format.VHD)
    assert blockdevs(domain_drives([disk], Role.NONE).arguments)[0]["driver"] == "raw"


@pytest.mark.parametrize("form", Form)
def test_the_order_of_the_disks_does_not_matter(form: Form) -> None:
    disks = [parse(colo(v, v)) for v in ("hda", "sda", "xvdb")]
    made = [domain_drives(order, Role.SECONDARY, form) for order in permutations(disks)]
    assert all(m == made[0] for m in made)


# -- what can't be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("vdev=xvda1,target=/x", "a partition"),
        ("vdev=sda1,target=/x", "a partition"),
        ("vdev=xvde,target=/x", "the first four IDE and xvd disks"),
        ("vdev=xvdaa,target=/x", "the first four IDE and xvd disks"),
        ("vdev=sde,cdrom,target=/x", "the first four IDE and xvd disks"),
        ("vdev=sdi,target=/x", "the SCSI controller takes sda to sdh"),
        ("vdev=999999,target=/x", "belongs to no xvd, hd or sd name"),
        ("vdev=hda,script=block-drbd,target=x", "no path that QEMU could open"),
        ("vdev=hda,backendtype=tap,target=/x", "no path that QEMU could open"),
    ],
)
def test_a_stated_skip(spec: str, reason: str) -> None:
    disk = parse(spec)
    made = drives(spec, "vdev=hdb,target=/y", role=Role.PRIMARY)
    assert list(made.skipped) == [disk.devid]
    assert reason in made.skipped[disk.devid]
    assert (
        f"{disk.vdev} is not emulated, the guest's PV driver still sees it"
        in made.skipped[disk.devid]
    )
    assert made.arguments == drives("vdev=hdb,target=/y").arguments
    assert not made.errors
    assert disk.devid not in made.images


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.SECONDARY])
@pytest.mark.parametrize("vdev", ["xvde", "xvda1", "sdi"])
def test_a_colo_disk_is_never_skipped(vdev: str, role: Role) -> None:
    made = drives(colo(vdev, "e"), role=role)
    assert "nothing of it would be replicated" in str(*made.errors.values())
    assert not made.skipped
    assert drives(colo(vdev, "e")).skipped


COLO_DISK = parse(f"vdev=hda,{COLO},target=/P")
CDROM: dict[str, Any] = {"is_cdrom": True, "removable": True, "readwrite": False}


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("changes", "role", "node", "reason"),
    [
        (
            {"readwrite": False},
            Role.NONE,
            "mode",
            "IDE disks can't be read-only: make it an sd disk",
        ),
        ({"readwrite": False}, Role.PRIMARY, "mode", "a read-only disk can't be replicated"),
        ({"readwrite": False}, Role.SECONDARY, "mode", "make it access=rw or leave colo out"),
        (
            {"readwrite": False, "vdev": "sda"},
            Role.PRIMARY,
            "mode",
            "a read-only disk can't be replicated",
        ),
        ({"readwrite": False, "vdev": "sda"}, Role.SECONDARY, "mode", "exported as writable"),
        (CDROM, Role.PRIMARY, "device-type", "a cdrom can't be replicated: leave colo out"),
        (
            {"pdev_path": None},
            Role.PRIMARY,
            "params",
            "an empty disk can't be replicated: give it a target",
        ),
        ({"format": Format.EMPTY}, Role.SECONDARY, "params", "an empty disk can't be replicated"),
        ({"pdev_path": None}, Role.NONE, "params", "only a cdrom can be empty"),
        ({"format": Format.UNKNOWN}, Role.NONE, "params", "format of its image is not known"),
        ({"pdev_path": "json:{}"}, Role.NONE, "params", "begin with '/'"),
        ({"pdev_path": "fat:rw:/"}, Role.PRIMARY, "params", "begin with '/'"),
        ({"pdev_path": "disk.img"}, Role.NONE, "params", "begin with '/'"),
        ({"active_disk": "nbd:h:1"}, Role.SECONDARY, "active-disk", "begin with '/'"),
        ({"hidden_disk": "h"}, Role.SECONDARY, "hidden-disk", "begin with '/'"),
        ({"active_disk": None}, Role.SECONDARY, "active-disk", "active-disk is missing"),
        ({"colo_export": None}, Role.PRIMARY, "colo-export", "colo-export is missing"),
        ({"colo_export": "a,b"}, Role.PRIMARY, "colo-export", "QEMU needs a letter"),
        ({"pdev_path": "/a\nb"}, Role.NONE, "params", "holds the character"),
        (
            {"active_disk": "/P"},
            Role.SECONDARY,
            "active-disk",
            "the image /P is claimed more than once, by hda",
        ),
    ],
)
def test_a_disk_alone_is_in_error(
    changes: dict[str, Any], role: Role, node: str, reason: str, form: Form
) -> None:
    bad = msgspec.structs.replace(COLO_DISK, **changes)
    good = parse(colo("hdb", "other"))
    made = domain_drives([bad, good], role, form)
    assert list(made.errors) == [bad.devid]
    assert reason in str(made.errors[bad.devid])
    assert made.errors[bad.devid].node == node
    assert made.arguments == domain_drives([good], role, form).arguments
    assert list(made.images) == [good.devid]
    assert not made.skipped


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("one", "other", "role", "nodes", "reason"),
    [
        ("vdev=hda,/x", "vdev=xvda,/y", Role.NONE, ["dev"] * 2, "IDE disk 0"),
        ("vdev=hdc,cdrom", "vdev=xvdc,/y", Role.NONE, ["dev"] * 2, "IDE disk 2"),
        ("vdev=sda,/x", "vdev=2048,/y", Role.NONE, ["dev"] * 2, "SCSI disk 0"),
        ("vdev=sdc,cdrom", "vdev=hdc,/y", Role.NONE, ["dev"] * 2, "IDE disk 2"),
        ("vdev=hda,/x", "vdev=sda,/x", Role.NONE, ["params"] * 2, "the image /x"),
        ("vdev=hda,/x", "vdev=hdc,cdrom,/x", Role.NONE, ["params"] * 2, "the image /x"),
        (colo("hda", "e"), colo("hdb", "e"), Role.PRIMARY, ["colo-export"] * 2, "the block node e"),
        (
            colo("hda", "e"),
            colo("sda", "e"),
            Role.SECONDARY,
            ["colo-export"] * 2,
            "the block node e",
        ),
        (
            colo("hda", "plain-832"),
            "vdev=hdb,/x",
            Role.PRIMARY,
            ["colo-export", "dev"],
            "the block node plain-832",
        ),
        (
            colo("hda", "quorum-832"),
            colo("hdb", "e"),
            Role.PRIMARY,
            ["colo-export", "dev"],
            "the block node quorum-832",
        ),
        (
            colo("hda", "replication-832"),
            colo("hdb", "e"),
            Role.SECONDARY,
            ["colo-export", "dev"],
            "the block node repl",
        ),
        (
            colo("hda", "ide0-hd1"),
            "vdev=hdb,/x",
            Role.PRIMARY,
            ["colo-export", "dev"],
            "the block node ide0-hd1",
        ),
        (
            colo("hda", "e"),
            "vdev=hdb,/e.a",
            Role.SECONDARY,
            ["active-disk", "params"],
            "the image /e.a",
        ),
    ],
)
def test_who_claims_the_same_is_in_error(
    one: str, other: str, role: Role, nodes: list[str], reason: str, form: Form
) -> None:
    made = drives(one, other, "vdev=hdd,/z", role=role, form=form)
    assert {devid: error.node for devid, error in made.errors.items()} == dict(
        zip((parse(one).devid, parse(other).devid), nodes, strict=True)
    )
    for error in made.errors.values():
        assert f"{reason}" in str(error)
        assert "is claimed more than once, by" in str(error)
    assert made.arguments == drives("vdev=hdd,/z", form=form).arguments


def test_an_export_that_is_a_name_of_the_same_disk() -> None:
    made = drives(colo("hda", "quorum-768"), role=Role.PRIMARY)
    assert str(made.errors[768]).startswith(
        "the block node quorum-768 is claimed more than once, by hda:"
    )
    assert made.errors[768].node == "colo-export"


def test_read_only_disks_may_share_an_image() -> None:
    made = drives("vdev=hdc,cdrom,/x", "vdev=hdd,cdrom,/x", "vdev=sda,access=ro,/x")
    assert not made.errors
    assert len(made.images) == 3


def test_exports_do_not_matter_without_a_role() -> None:
    assert not drives(colo("hda", "e"), colo("hdb", "e").replace("=/e", "=/f")).errors


@given(
    st.lists(
        st.sampled_from(["hda", "hdb", "hdc", "sda", "sdi", "xvda", "xvde", "xvdb1", "51728"])
    ),
    st.sampled_from(Role),
    st.sampled_from(Form),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_every_disk_is_given_or_its_absence_is_stated(
    vdevs: list[str], role: Role, form: Form, with_colo: list[bool]
) -> None:
    disks = [
        parse(colo(vdev, f"e{n}") if with_colo[n % 9] else f"vdev={vdev},target=/p{n}")
        for n, vdev in enumerate(vdevs)
    ]
    made = domain_drives(disks, role, form)
    stated = [set(made.images), set(made.skipped), set(made.errors)]
    assert set.union(*stated) == {disk.devid for disk in disks}
    used = [path for images in made.images.values() for path in images.values()]
    assert len(set(used)) == len(used)
    assert all(any(path in word for word in made.arguments) for path in used)
