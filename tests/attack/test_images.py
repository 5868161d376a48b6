"""Images outside of the directories that the configuration allows, and what is no image."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import XVDB, Disk, Host, until
from xencolo.disk import Role
from xencolo.diskspec import parse
from xencolo.drives import domain_drives, image_drivers
from xencolo.graph import Form
from xencolo.plan import BadImage
from xencolod.image_paths import Found, Wanted, look_at
from xencolod.places import forbidden

NODES = {"pdev": "params", "active": "active-disk", "hidden": "hidden-disk"}


@pytest.fixture
def allowed(tmp_path: Path) -> str:
    path = tmp_path / "images"
    path.mkdir()
    return str(path)


# -- what is allowed ----------------------------------------------------------------------------


def test_without_directories_every_place_is_allowed() -> None:
    assert forbidden("/anywhere/at/all", ()) is None


@pytest.mark.parametrize(
    "path",
    ["{}/../b.raw", "{}/..", "{}x/a.raw", "{}/link", "{}/linked/a.raw", "{}/loop", "/etc/passwd"],
)
def test_what_leads_elsewhere_is_forbidden(path: str, allowed: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Path(f"{allowed}x").mkdir()
    Path(allowed, "link").symlink_to(outside / "a.raw")
    Path(allowed, "linked").symlink_to("../outside")
    Path(allowed, "loop").symlink_to("../images/../loop")
    reason = forbidden(path.format(allowed), (allowed,))
    assert reason
    assert f"images.directories ({allowed})" in reason


@pytest.mark.parametrize("path", ["{}/a.raw", "{}//b/../a.raw", "{}/within", "{}/absent/a"])
def test_what_stays_inside_is_allowed(path: str, allowed: str) -> None:
    Path(allowed, "within").symlink_to("a.raw")
    assert forbidden(path.format(allowed), ("/nowhere", allowed)) is None


@pytest.mark.parametrize("path", ["/dev/{}", "/dev/vg/{}", "/{}", "/dev/vg/{}/web"])
def test_a_name_that_is_too_long_is_forbidden(path: str) -> None:
    assert forbidden(path.format("x" * 300), ("/dev/vg0",))


def test_an_allowed_directory_may_be_a_link_itself(allowed: str, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(allowed)
    assert forbidden(f"{allowed}/a.raw", (str(alias),)) is None
    assert forbidden(f"{alias}/a.raw", (allowed,)) is None


@pytest.fixture
def own_dev() -> Iterator[Path]:
    """A directory of this test's in /dev, with a block device in it that nobody opens."""
    path = Path(f"/dev/xencolo-{os.getpid()}")
    path.mkdir()
    os.mknod(path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def test_a_link_of_udevs_counts_by_its_name(own_dev: Path, tmp_path: Path) -> None:
    device, group = own_dev / "disk", own_dev / "vg"
    group.mkdir()
    volume = group / "web"
    volume.symlink_to(device)
    assert forbidden(str(volume), (str(group),)) is None
    assert forbidden(str(volume), ("/dev/other-vg",))
    elsewhere = tmp_path / "web"
    elsewhere.symlink_to(device)
    assert forbidden(str(elsewhere), (str(tmp_path),))
    volume.unlink()
    volume.symlink_to("/etc/passwd")
    assert forbidden(str(volume), (str(group),))


def test_but_not_where_others_may_put_links(own_dev: Path) -> None:
    (own_dev / "shm").mkdir()
    (own_dev / "shm").chmod(0o1777)
    volume = own_dev / "shm" / "web"
    volume.symlink_to(own_dev / "disk")
    assert forbidden(str(volume), (str(volume.parent),))


# -- what an image is ---------------------------------------------------------------------------


def test_a_block_device_is_known_by_what_it_is(own_dev: Path, tmp_path: Path) -> None:
    device, link, regular = own_dev / "disk", tmp_path / "link", tmp_path / "a.raw"
    link.symlink_to(device)
    regular.touch()
    paths = enumerate((device, link, regular))
    wanted = [
        Wanted(5, number, {"params": str(path), "active-disk": str(link)}) for number, path in paths
    ]
    assert look_at(wanted, make=True) == Found({}, frozenset({str(device), str(link)}))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("null", "is neither a regular file nor a block device"),
        ("regular", "is no block device, and in /dev nothing else is an image"),
        (".", "is neither a regular file nor a block device"),
        ("absent", "does not exist"),
        ("dangling", "does not exist"),
    ],
)
def test_what_is_no_image_is_the_error_of_its_disk(name: str, why: str, own_dev: Path) -> None:
    (own_dev / "null").symlink_to("/dev/null")
    (own_dev / "dangling").symlink_to("absent")
    (own_dev / "regular").touch()
    path = f"{own_dev}/{name}"
    found = look_at([Wanted(5, 1, {"params": path})], make=True)
    assert found.missing == {5: {1: BadImage("params", f"the image {path} {why}")}}


@pytest.mark.parametrize("role", [Role.NONE, Role.PRIMARY, Role.SECONDARY])
@pytest.mark.parametrize("form", Form)
def test_the_images_are_read_back_from_the_arguments(form: Form, role: Role) -> None:
    colo = "colo,colo-host=h,colo-port=1,colo-export=E,active-disk=/i/x,hidden-disk=/i/y"
    disk = parse(f"vdev=hda,{colo},target=/i/a,b=c,,d,")
    drives = domain_drives([disk], role, form, is_block_device=lambda path: path == "/i/y")
    drivers = dict.fromkeys(drives.images[disk.devid].values(), "")
    if form is Form.BLOCKDEV:
        drivers = {path: "host_device" if path == "/i/y" else "file" for path in drivers}
    assert drivers.keys() >= {"/i/a,b=c,,d,"}
    assert image_drivers(drives.arguments) == drivers


@pytest.mark.parametrize("make", [True, False])
def test_the_first_bad_image_is_told_by_its_node(make: bool, tmp_path: Path) -> None:
    image, active, hidden = (tmp_path / name for name in ("image", "active", "none/hidden"))
    image.touch()
    images = {"params": str(image), "active-disk": str(active), "hidden-disk": str(hidden)}
    unmakeable = f"the hidden-disk {hidden} can't be made: {hidden.parent} is no directory"
    absent = f"the active-disk {active} does not exist"
    bad = BadImage("hidden-disk", unmakeable) if make else BadImage("active-disk", absent)
    assert look_at([Wanted(5, 1, images)], make=make).missing == {5: {1: bad}}


# -- the daemon ---------------------------------------------------------------------------------


def elsewhere(host: Host, role: str, field: str, allowed: Path) -> tuple[Disk, str]:
    """Add a disk whose paths are links in the allowed directory, one of them leading out of it."""
    made = host.disk(5)
    changed = {}
    for name, node in NODES.items():
        target = made.image if name == "pdev" else made.nodes[node]
        link = allowed / f"{name}.link"
        inside = allowed / f"{name}.image"
        Path(target).rename(inside)
        link.symlink_to(Path("/etc/hostname") if name == field else inside)
        changed[node] = f"aio:{link}" if name == "pdev" else str(link)
    disk = made._replace(params=changed["params"], nodes={**made.nodes, **changed})
    host.store.create(5)
    host.store.attach(disk, role=role)
    return disk, str(allowed / f"{field}.link")


@pytest.mark.parametrize(
    ("role", "field"),
    [("primary", "pdev"), ("secondary", "pdev"), ("secondary", "active"), ("primary", "hidden")],
)
def test_a_link_that_leads_out_is_the_error_of_that_disk_until_it_is_mended(
    role: str, field: str, host: Host, allowed: str
) -> None:
    before = Path("/etc/hostname").read_bytes()
    host.configure(images={"directories": [allowed]})
    host.start()
    disk, link = elsewhere(host, role, field, Path(allowed))
    path = f"{disk.libxl}/{NODES[field]}"
    error = host.event("device.error", domid=5, path=path, kind="image")
    assert f"{link}, which leads to /etc/hostname, is in none of" in error["error"]
    until(lambda: error["error"] == host.store.read(disk.error), "the error node")
    assert host.qemus() == []
    Path(link).unlink()
    Path(link).symlink_to(f"{field}.image")
    if role == "secondary":  # the primaries' are looked at again without a sign from xenstore
        host.store.write("/libxl/5/colo/role", role)
    host.event("device.mended", domid=5, path=path)
    host.state(5, "running")
    assert not host.store.exists(disk.error)
    assert Path("/etc/hostname").read_bytes() == before
    assert len(host.events("device.error")) == 1


def test_a_running_guest_keeps_its_disk_and_gets_no_other(host: Host, allowed: str) -> None:
    host.configure(images={"directories": [allowed]})
    host.start()
    inside, outside = Path(allowed, "a.raw"), host.directory / "b.raw"
    for path in (inside, outside):
        host.image(str(path), "raw")
    first = host.disk(5, colo=False, make=False, params=f"aio:{inside}")
    host.store.create(5)
    host.store.attach(first, role="none")
    host.state(5, "running")
    pid = host.qemu(5)
    second = host.disk(5, "xvdb", XVDB, colo=False, make=False, params=f"aio:{outside}")
    host.store.attach(second)
    host.event("device.error", domid=5, devid=XVDB, path=f"{second.libxl}/params", kind="image")
    host.barrier()
    assert host.qemu(5) == pid
    assert not host.has_open(5, str(outside))


def test_the_last_look_is_where_qemu_is_spawned(host: Host, allowed: str) -> None:
    """A link that changes after the nodes were read: the pause before the start is long enough."""
    host.configure(images={"directories": [allowed]}, daemon={"settle": 2.0})
    host.start()
    inside, link = Path(allowed, "a.raw"), Path(allowed, "link")
    host.image(str(inside), "raw")
    link.symlink_to(inside)
    disk = host.disk(5, colo=False, make=False, params=f"aio:{link}")
    host.store.create(5)
    host.store.attach(disk, role="none")
    host.barrier()
    aside = Path(allowed, "aside")
    aside.symlink_to("/etc/hostname")
    aside.rename(link)
    failed = host.event("qemu.start_failed", domid=5)
    assert "which leads to /etc/hostname, is in none of" in failed["error"]
    assert not host.events("qemu.starting")


def test_a_link_to_a_block_device_is_given_as_one(host: Host, own_dev: Path) -> None:
    link = host.directory / "link"
    link.symlink_to(own_dev / "disk")
    host.configure(qemu={"start_attempts": 1})
    host.start()
    host.store.create(5)
    host.store.attach(host.disk(5, colo=False, make=False, params=f"aio:{link}"), role="none")
    started = host.event("qemu.starting", domid=5)
    assert image_drivers(started["argv"]) == {str(link): "host_device"}
