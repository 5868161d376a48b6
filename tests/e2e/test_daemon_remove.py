"""A disk is removed while xencolod runs its QEMU: let go of, then closed, then gone."""

import pytest

from tests.e2e.host import XVDB, Disk, Host, open_files, until


@pytest.fixture
def pair(host: Host) -> tuple[Disk, Disk]:
    """Two disks of domain 5, which is to be started yet."""
    host.store.create(5)
    disks = host.disk(5), host.disk(5, "xvdb", XVDB)
    for disk in disks:
        host.store.attach(disk)
    return disks


def ask_to_close(host: Host, disk: Disk) -> None:
    """Write what ``xl block-detach`` does before it waits."""

    def change() -> None:
        host.store.write(f"{disk.backend}/online", "0")
        host.store.write(f"{disk.backend}/state", "5")

    host.store.together(change)


def removed(host: Host, disk: Disk) -> bool:
    """Tell whether nothing of the disk is left in xenstore."""
    paths = (disk.backend, disk.libxl, disk.frontend, f"/libxl/5/colo/device/{disk.devid}")
    return not any(map(host.store.exists, paths))


def test_one_of_two_and_then_the_last(host: Host, pair: tuple[Disk, Disk]) -> None:
    host.start()
    first, second = pair
    pid = host.published(5)
    said = host.xencolo("disk", "remove", "5", "xvdb")
    assert said == "xvdb (51728) removed from domain 5\n"
    closed = host.event("device.closed", domid=5)
    assert (closed["devid"], closed["vdev"], closed["backend"]) == (XVDB, "xvdb", second.backend)
    host.event("qemu.ended", pid=pid)
    after = host.published(5)
    assert after != pid
    assert second.image not in open_files(after)
    assert first.image in open_files(after)
    until(lambda: removed(host, second), "nothing of the disk is left")
    host.xencolo("disk", "remove", "5", "xvda")
    assert host.event("device.closed", devid=first.devid)
    assert host.qemus() == []
    host.event("domain.gone", domid=5)
    until(lambda: removed(host, first), "nothing of the disk is left")
    until(lambda: not host.store.exists("/libxl/5/colo"), "nothing is said any more")
    assert host.events("qemu.signalled") == host.events("device.error") == []


@pytest.mark.parametrize("restart", [True, False])
def test_by_force(host: Host, pair: tuple[Disk, Disk], restart: bool) -> None:
    host.configure(qemu={"restart": restart})
    host.start()
    pid = host.published(5)
    host.xencolo("disk", "remove", "5", "xvdb", "--force")
    host.event("device.gone", devid=XVDB)
    if restart:
        host.event("qemu.ended", pid=pid)
        assert pair[1].image not in open_files(host.published(5))
    else:
        host.state(5, "outdated")
        assert host.qemu(5) == pid
    host.xencolo("disk", "remove", "5", "xvda", "--force")
    until(lambda: host.qemus() == [], "QEMU ends with its last disk")
    assert host.events("device.closed") == []


def test_without_restart_qemu_keeps_it_and_that_is_said(
    host: Host, pair: tuple[Disk, Disk]
) -> None:
    host.configure(qemu={"restart": False})
    host.start()
    first, second = pair
    pid = host.published(5)
    ask_to_close(host, second)
    kept = host.event("device.kept", devid=XVDB)
    assert "restart the domain" in kept["reason"]
    host.state(5, "outdated")
    assert host.store.read(f"/libxl/5/colo/device/{XVDB}/state") == "leaving"
    assert host.store.read(f"/libxl/5/colo/device/{XVDB}/error") == kept["reason"]
    assert host.store.read(f"{second.backend}/state") == "5"
    assert host.qemu(5) == pid
    # With the last one QEMU ends, and both are closed.
    ask_to_close(host, first)
    for disk in pair:
        host.event("device.closed", devid=disk.devid)
        assert host.store.read(f"{disk.backend}/state") == "6"
    host.state(5, "waiting")
    host.barrier()
    assert host.qemus() == []
    assert host.store.read(f"/libxl/5/colo/device/{XVDB}/error") is None
    assert len(host.events("device.kept")) == 1


def test_before_qemu_has_greeted(host: Host, pair: tuple[Disk, Disk]) -> None:
    host.configure(qemu={"binary": host.gated_qemu(), "restart": False})
    host.start()
    host.event("qemu.starting", domid=5)
    ask_to_close(host, pair[1])
    host.barrier()
    assert host.store.read(f"{pair[1].backend}/state") == "5"
    host.open_gate()
    host.event("device.closed", devid=XVDB)
    assert pair[1].image not in open_files(host.published(5))


def test_one_that_a_killed_daemon_had_not_closed(host: Host, pair: tuple[Disk, Disk]) -> None:
    host.start()
    pid = host.published(5)
    host.kill()
    for disk in pair:
        ask_to_close(host, disk)
    host.start()
    host.event("qemu.ended", pid=pid)
    for disk in pair:
        host.event("device.closed", devid=disk.devid)
    host.barrier()
    assert host.qemus() == []


def test_what_is_not_the_daemons_is_not_closed(host: Host) -> None:
    host.start()
    for domid in (5, 6):
        host.store.create(domid)
    other = host.foreign_qemu(5)
    disks = host.disk(5), host.disk(6, colo=False)
    for disk in disks:
        host.store.attach(disk)
        ask_to_close(host, disk)
    host.state(5, "foreign")
    host.barrier()
    assert {host.store.read(f"{disk.backend}/state") for disk in disks} == {"5"}
    assert other.alive
