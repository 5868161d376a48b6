"""What is published and not so: said before the daemon ended, or changed by somebody else."""

import signal

import pytest

from tests.e2e.host import XVDA, Host, end, until


@pytest.mark.parametrize("detached", [False, True], ids=["its disk is left", "its disk too"])
@pytest.mark.parametrize("image", [True, False], ids=["running", "waiting"])
def test_a_plain_domain_that_lost_its_role_meanwhile(
    host: Host, image: bool, detached: bool
) -> None:
    host.start()
    host.store.create(5)
    disk = host.disk(5, "xvda", XVDA, colo=False, make=image)
    host.store.attach(disk, role="none")
    host.state(5, "running" if image else "waiting")
    # A look may have met the role before the disk.
    until(lambda: host.store.exists(disk.error) == (not image), "its error is said")
    host.stop()
    for pid in host.qemus(5):
        end(pid)
    host.store.delete("/libxl/5/colo/role")
    if detached:
        host.store.detach(disk)
    assert host.store.exists("/libxl/5/colo/state")
    mark = host.mark()
    host.start()
    assert host.store.tree("/libxl/5/colo") == {}
    assert not host.store.exists("/libxl/5/colo")
    assert not host.store.exists(disk.error)
    assert not host.store.exists("/local/domain/0/error/backend/qdisk/5")
    assert not host.store.exists("/local/domain/5/image/device-model-pid")
    assert not host.store.exists("/local/domain/0/device-model/5/state")
    assert not host.events("domain.gone", since=mark)
    assert host.qemus(5) == []


def test_what_somebody_removed_is_said_again(host: Host) -> None:
    host.configure(daemon={"rescan": 0.2})
    host.start()
    host.running(5)
    pid = host.published(5)
    host.store.delete("/local/domain/5/image/device-model-pid")
    host.store.delete("/libxl/5/colo/state")
    assert host.published(5) == pid


def test_what_somebody_overwrote_is_said_again_on_reload(host: Host) -> None:
    host.start()
    _, pid = host.running(5)
    host.store.write("/libxl/5/colo/qemu-pid", "1")
    host.signal(signal.SIGHUP)
    until(lambda: host.store.read("/libxl/5/colo/qemu-pid") == str(pid), "the pid is said again")
