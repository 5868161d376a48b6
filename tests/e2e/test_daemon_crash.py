"""xencolod, QEMU and xenstored end at any moment; all is found again, and no QEMU is doubled."""

import os
import random
import secrets
import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.host import XVDB, Host, Images, argv_of, end, until
from tests.rigs import Server


def published(host: Host, domid: int, pid: int) -> bool:
    """Tell whether the store says that this QEMU runs."""
    store = host.store
    return (
        store.read(f"/libxl/{domid}/colo/state") == "running"
        and store.read(f"/libxl/{domid}/colo/qemu-pid") == str(pid)
        and store.read(f"/local/domain/{domid}/image/device-model-pid") == str(pid)
        and store.read(f"/local/domain/0/device-model/{domid}/state") == "running"
    )


class TestDaemonEnds:
    @pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
    def test_qemus_live_on_and_are_adopted(self, host: Host, how: str) -> None:
        host.start()
        _, primary = host.running(5)
        _, secondary = host.running(6, role="secondary")
        host.signal(getattr(signal, how))
        assert host.wait_exit() == (-9 if how == "SIGKILL" else 0)
        assert host.qemus() == sorted([primary, secondary])
        mark = host.mark()
        host.start()
        host.event("qemu.adopted", since=mark, pid=primary, role="primary")
        host.event("qemu.adopted", since=mark, pid=secondary, role="secondary")
        for domid, pid in ((5, primary), (6, secondary)):
            until(lambda d=domid, p=pid: published(host, d, p), f"domain {domid} is said")  # type: ignore[misc]
        assert host.qemus() == sorted([primary, secondary])
        assert not host.events("qemu.starting", since=mark)
        # An adopted QEMU is tended like one's own.
        end(primary)
        until(lambda: host.qemus(5) not in ([], [primary]), "it is started again")

    def test_with_a_monitor_of_the_operators_own(self, host: Host) -> None:
        monitor = f"socket,id=mine,path={host.directory}/mine,server=on,wait=off"
        host.configure(
            qemu={
                "arguments": [
                    *("-nodefaults", "-display", "none", "-S"),
                    *("-chardev", monitor, "-mon", "chardev=mine,mode=readline"),
                ],
            }
        )
        host.start()
        _, pid = host.running(5)
        host.kill()
        mark = host.mark()
        host.start()
        host.event("qemu.adopted", since=mark, pid=pid)
        host.barrier()
        host.state(5, "running")
        assert host.qemus() == [pid]

    def test_killed_at_random_moments(self, host: Host) -> None:
        seed = int(os.environ.get("XENCOLO_SEED") or secrets.randbits(32))
        print(f"XENCOLO_SEED={seed}")  # noqa: T201 - shown when the test fails
        rng = random.Random(seed)
        host.configure(daemon={"settle": 0.01})
        host.start()
        for domid in (5, 6, 7):
            host.domain(domid, role=rng.choice(["primary", "secondary"]))
        most = 0
        for _ in range(8):
            moment = rng.uniform(0, 0.25)
            with pytest.raises(AssertionError, match="not so after"):
                until(lambda: len(host.qemus()) > 3, "more QEMUs than domains", moment)
            host.kill()
            most = max(most, *(len(host.qemus(domid)) for domid in (5, 6, 7)))
            host.start(ready=rng.random() < 0.5)
        for domid in (5, 6, 7):
            host.state(domid, "running")
            until(
                lambda d=domid: published(host, d, host.qemu(d)),  # type: ignore[misc]
                f"domain {domid} is said",
            )
        host.barrier()
        assert len(host.qemus()) == 3
        assert most <= 1
        assert host.events("qemu.failed") == []

    def test_killed_before_the_greeting(self, host: Host, tmp_path: Path) -> None:
        binary = tmp_path / "qemu"
        binary.write_text(
            f'#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do :; done\nexec qemu-system-x86_64 "$@"\n'
        )
        binary.chmod(0o755)
        host.configure(qemu={"binary": str(binary), "start_attempts": 16})
        host.start()
        host.domain(5)
        host.event("qemu.starting")
        host.kill()
        host.start()
        # The second daemon can't see the first QEMU, which has not got as far as its pid file.
        until(lambda: len(host.events("qemu.starting")) == 2, "another one is started")
        (tmp_path / "go").touch()
        host.state(5, "running")
        until(lambda: len(host.qemus(5)) == 1, "the lock of the pid file has let one through")
        until(lambda: published(host, 5, host.qemu(5)), "that one is said")
        host.barrier()
        assert len(host.qemus(5)) == 1

    def test_a_pid_file_of_a_dead_qemu(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        end(pid)
        assert (host.runtime / "5.pid").exists()
        host.start()
        until(lambda: host.qemus(5) not in ([], [pid]), "a new one is started")
        host.state(5, "running")

    def test_a_pid_that_was_used_again(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        end(pid)
        other = host.foreign("somebody-else")
        (host.runtime / "5.pid").write_text(f"{other.pid}\n")
        host.start()
        host.state(5, "running")
        until(lambda: published(host, 5, host.qemu(5)), "the new one is said")
        host.store.destroy(5)
        host.event("qemu.ended", domid=5)
        assert argv_of(other.pid) == ["somebody-else"]

    def test_a_qmp_socket_that_is_gone(self, host: Host) -> None:
        host.configure(qemu={"term_timeout": 1})
        host.start()
        _, pid = host.running(5)
        host.kill()
        host.qmp_socket(5).unlink()
        mark = host.mark()
        host.start()
        host.event("qemu.qmp_lost", since=mark, domid=5)
        host.state(5, "running")
        assert host.qemus() == [pid]
        host.store.destroy(5)
        host.event("qemu.ended", since=mark, pid=pid)
        assert host.event("qemu.signalled", since=mark)["signal"] == "SIGTERM"

    def test_a_qmp_socket_that_somebody_holds(self, host: Host) -> None:
        host.configure(qemu={"start_timeout": 0.3})
        host.start()
        _, pid = host.running(5)
        host.kill()
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(str(host.qmp_socket(5)))
            assert holder.recv(1000)
            mark = host.mark()
            host.start()
            host.event("qemu.adopted", since=mark, pid=pid)
            host.event("qemu.qmp_lost", since=mark, domid=5)
            until(lambda: host.store.exists("/libxl/5/colo/error"), "it is said")
            host.state(5, "running")
        until(lambda: not host.store.exists("/libxl/5/colo/error"), "QMP is back")
        assert host.qemus() == [pid]

    def test_a_second_daemon_is_refused(
        self, host: Host, images: Images, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        host.start()
        second = Host(tmp_path_factory.mktemp("second"), images, host.store.path)
        second.runtime = host.runtime
        second.configure()
        second.start(ready=False)
        assert second.wait_exit() == 1
        assert str(host.runtime) in second.stderr()
        assert second.events() == []
        assert host.alive

    def test_a_runtime_directory_that_cant_be_had(self, host: Host) -> None:
        host.runtime.write_text("a file")
        host.start(ready=False)
        assert host.wait_exit() == 1
        assert str(host.runtime) in host.stderr()
        assert "Traceback" not in host.stderr()


class EmptyServer(Server):
    """An xenstored that comes back with nothing at all, not even dom0's own directory."""

    def _seed(self) -> None:
        """Leave it empty: who fills it is the test's matter."""


@pytest.fixture
def fading(xenstored: Server) -> Server:
    """The host's xenstored, which forgets everything when it is restarted."""
    xenstored.__class__ = EmptyServer
    return xenstored


def fill(host: Host) -> None:
    """Write what xen-init-dom0 does."""
    host.store.write("/local/domain/0/domid", "0")
    host.store.write("/local/domain/0/name", "Domain-0")


class TestXenstoredEnds:
    def test_a_lost_store_ends_no_qemu(self, host: Host, fading: Server) -> None:
        host.start()
        disk, pid = host.running(5)
        host.running(6)
        identity = host.store.read("/local/domain/5/vm") or ""
        before = host.store.tree("/libxl/5/colo")
        host.leave_store()
        fading.kill()
        host.event("xenstore.lost")
        mark = host.mark()
        fading.restart()
        host.event("xenstore.connected", since=mark)
        host.event("xenstore.empty", since=mark)
        # It is filled step by step, and domain 6 for good not at all.
        fill(host)
        host.barrier()
        assert len(host.qemus()) == 2
        host.store.create(5, identity=identity.removeprefix("/vm/"))
        host.barrier()
        host.store.attach(disk)
        until(lambda: published(host, 5, pid), "everything is said again")
        assert host.store.tree("/libxl/5/colo") == before
        assert len(host.qemus()) == 2
        assert not host.events("qemu.ending")
        # What was seen again is believed again.
        host.store.destroy(5)
        host.event("qemu.ended", pid=pid)

    def test_killed_while_much_is_said(self, host: Host, xenstored: Server) -> None:
        host.configure(qemu={"binary": "/nonexistent", "start_attempts": 16, "backoff": 0.01})
        host.start()
        for _ in range(3):
            for domid in range(5, 25):
                host.domain(domid)
            host.leave_store()
            xenstored.kill()
            mark = host.mark()
            xenstored.restart()
            host.event("xenstore.connected", since=mark)
        host.barrier()
        assert host.alive

    def test_absent_at_the_start(self, host: Host, xenstored: Server) -> None:
        host.leave_store()
        xenstored.kill()
        host.start(ready=False)
        lost = host.event("xenstore.lost")
        assert str(xenstored.socket) in lost["error"]
        xenstored.restart()
        host.event("daemon.ready")
        host.running(5)
        assert len(host.events("xenstore.lost")) <= 2

    def test_absent_at_the_start_with_living_qemus(self, host: Host, xenstored: Server) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        host.leave_store()
        xenstored.kill()
        mark = host.mark()
        host.start(ready=False)
        host.event("xenstore.lost", since=mark)
        host.event("qemu.adopted", since=mark, pid=pid)
        assert host.qemus() == [pid]
        assert host.stop() == 0
        assert host.qemus() == [pid]

    def test_a_qemu_that_dies_while_it_is_away(self, host: Host, fading: Server) -> None:
        host.start()
        disk, pid = host.running(5)
        host.leave_store()
        fading.kill()
        host.event("xenstore.lost")
        end(pid)
        host.event("qemu.died", pid=pid)
        fading.restart()
        host.event("xenstore.empty")
        fill(host)
        host.store.create(5)
        host.store.attach(disk)
        until(lambda: host.qemus(5) not in ([], [pid]), "it is started again")
        until(lambda: published(host, 5, host.qemu(5)), "it is said")


def test_a_flood_of_events_is_few_passes(host: Host) -> None:
    host.start()
    disk, pid = host.running(5)
    for number in range(2000):
        host.store.write(f"{disk.backend}/state", str(number % 5 + 1))
    host.barrier()
    assert host.qemu(5) == pid
    host.store.attach(host.disk(5, "xvdb", XVDB))
    host.event("device.found", devid=XVDB)
