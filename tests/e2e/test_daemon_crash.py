"""xencolod, QEMU and xenstored end at any moment; all is found again, and no QEMU is doubled."""

import os
import random
import secrets
import signal
import socket

import pytest

from tests.e2e.host import XVDB, Host, Images, argv_of, end, until
from tests.rigs import Server
from xencolod.process import lock_holder

UUID = "00000000-1111-2222-3333-444444444444"


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
        assert (host.published(5), host.published(6)) == (primary, secondary)
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

    def test_ended_at_random_moments(self, host: Host) -> None:
        seed = int(os.environ.get("XENCOLO_SEED") or secrets.randbits(32))
        print(f"XENCOLO_SEED={seed}")  # noqa: T201 - shown when the test fails
        rng = random.Random(seed)
        host.configure(daemon={"settle": 0.01})
        host.start()
        for domid in (5, 6, 7):
            host.domain(domid, role=rng.choice(["primary", "secondary"]))
        for _ in range(6):
            # A moment is so many steps of the daemon's, however long they take.
            steps = host.mark() + rng.randrange(10)
            until(lambda n=steps: host.mark() >= n or host.calm(5, 6, 7), "it goes on")  # type: ignore[misc]
            rng.choice([host.kill, host.stop])()
            host.start(ready=rng.random() < 0.5)
        pids = [host.published(domid) for domid in (5, 6, 7)]
        host.barrier()
        assert host.qemus() == sorted(pids)
        assert host.events("qemu.failed") == []

    @pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
    def test_before_the_greeting(self, host: Host, how: str) -> None:
        host.configure(qemu={"binary": host.gated_qemu(), "start_attempts": 16})
        host.start()
        host.domain(5)
        first = host.starting(5)
        host.signal(getattr(signal, how))
        host.wait_exit()
        assert host.qemus() == [first]
        host.start()
        # The second daemon can't see the first QEMU, which has not got as far as its pid file.
        until(lambda: len(host.events("qemu.starting")) == 2, "another one is started")
        host.open_gate()
        # The lock of the pid file lets one through.
        pid = host.published(5)
        host.barrier()
        assert host.qemus() == [pid]

    def test_after_the_pid_file_and_before_the_greeting(self, host: Host) -> None:
        host.configure(qemu={"binary": host.gated_qemu()})
        host.start()
        host.domain(5)
        pid = host.starting(5)
        host.kill()
        host.open_gate()
        until(lambda: lock_holder(host.runtime / "5.pid") == pid, "QEMU holds its pid file")
        host.start()
        host.event("qemu.adopted", pid=pid)
        assert host.published(5) == pid

    def test_a_late_qemu_of_a_domain_that_is_gone(self, host: Host) -> None:
        host.configure(qemu={"binary": host.gated_qemu()}, daemon={"rescan": 0.2})
        host.start()
        host.domain(5)
        pid = host.starting(5)
        host.kill()
        host.store.destroy(5)
        host.start()
        host.open_gate()
        host.event("qemu.adopted", pid=pid)
        host.event("qemu.ended", pid=pid)
        until(lambda: host.qemus() == [], "it is found and ended")

    @pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
    def test_while_it_ends_qemu(self, host: Host, how: str) -> None:
        host.configure(qemu={"start_timeout": 0.2, "term_timeout": 0.1})
        host.start()
        _, pid = host.running(5)
        os.kill(pid, signal.SIGSTOP)
        host.store.destroy(5)
        host.event("qemu.ending", pid=pid)
        host.signal(getattr(signal, how))
        host.wait_exit()
        assert host.qemus() == [pid]
        mark = host.mark()
        host.start()
        host.event("qemu.adopted", since=mark, pid=pid)
        host.event("qemu.ended", since=mark, pid=pid)
        assert host.qemus() == []
        signals = [e["signal"] for e in host.events("qemu.signalled", since=mark)]
        assert signals == ["SIGTERM", "SIGKILL"]

    def test_a_pid_file_of_a_dead_qemu(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        end(pid)
        assert (host.runtime / "5.pid").exists()
        host.start()
        assert host.published(5) != pid

    def test_a_pid_that_was_used_again(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        end(pid)
        other = host.foreign("somebody-else")
        (host.runtime / "5.pid").write_text(f"{other.pid}\n")
        mark = host.mark()
        host.start()
        new = host.published(5)
        host.store.destroy(5)
        host.event("qemu.ended", pid=new)
        assert not host.events("qemu.adopted", since=mark)
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
            assert host.published(5) == pid
        host.event("qemu.qmp_back", since=mark, domid=5)
        until(lambda: not host.store.exists("/libxl/5/colo/error"), "it is no more said")
        assert host.published(5) == pid

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


def lose(host: Host, server: Server) -> None:
    """Kill xenstored, and see that the daemon notices."""
    host.leave_store()
    mark = host.mark()
    server.kill()
    lost = host.event("xenstore.lost", since=mark)
    assert str(server.socket) in lost["error"]


class TestXenstoredEnds:
    def test_a_lost_store_ends_no_qemu(self, host: Host, fading: Server) -> None:
        host.start()
        host.store.create(5, identity=UUID)
        disks = [host.disk(5), host.disk(5, "xvdb", XVDB)]
        for disk in disks:
            host.store.attach(disk)
        host.running(6)
        until(lambda: host.has_open(5, *(disk.image for disk in disks)), "it has both disks")
        pid = host.published(5)
        until(lambda: host.store.exists("/libxl/5/colo/error"), "its peer is not to be had")
        before = host.store.tree("/libxl/5/colo")
        lose(host, fading)
        mark = host.mark()
        fading.restart()
        host.event("xenstore.connected", since=mark)
        assert host.event("xenstore.empty", since=mark)["path"] == "/local/domain/0"
        # It is filled step by step, and domain 6 for good not at all.
        fill(host)
        host.barrier()
        host.store.create(5, identity=UUID)
        for disk in disks:
            host.barrier()
            assert len(host.qemus()) == 2
            host.store.attach(disk)
        assert host.published(5) == pid
        until(lambda: host.store.tree("/libxl/5/colo") == before, "everything is said again")
        assert len(host.qemus()) == 2
        assert not host.events("qemu.ending", since=mark)
        assert not host.events("qemu.starting", since=mark)
        # What was seen again is believed again.
        host.store.destroy(5)
        host.event("qemu.ended", pid=pid)

    def test_one_that_knows_dom0_again_before_the_daemon_looks(
        self, host: Host, xenstored: Server
    ) -> None:
        host.start()
        disk, pid = host.running(5)
        host.running(6)
        host.signal(signal.SIGSTOP)
        host.leave_store()
        xenstored.restart()
        mark = host.mark()
        host.signal(signal.SIGCONT)
        assert host.event("xenstore.empty", since=mark)["path"] == "/local/domain/0/xencolod"
        host.barrier()
        assert len(host.qemus()) == 2
        # A domain that comes as another guest is news.
        host.store.create(5)
        host.store.attach(disk)
        host.event("qemu.ended", pid=pid)
        assert host.published(5) != pid
        # Nor does a new daemon take an absence for an end.
        host.kill()
        host.leave_store()
        xenstored.restart()
        mark = host.mark()
        host.start()
        host.event("xenstore.empty", since=mark)
        host.barrier()
        assert len(host.qemus()) == 2
        assert not host.events("qemu.ending", since=mark)

    def test_one_that_is_emptied_under_the_connections(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        mark = host.mark()
        host.store.destroy(5, "/local/domain/0/xencolod")
        host.event("xenstore.empty", since=mark)
        host.barrier()
        assert host.qemus(5) == [pid]
        assert not host.events("qemu.ending", since=mark)

    def test_one_that_a_daemon_before_found_empty(self, host: Host) -> None:
        """A restart, which an operator tries first, must not make news of what is absent."""
        host.start()
        host.store.create(5, identity=UUID)
        disks = [host.disk(5), host.disk(5, "xvdb", XVDB)]
        host.store.attach(*disks)
        pid = host.published(5)
        _, other = host.running(6)
        mark = host.mark()
        host.store.destroy(5, "/local/domain/0/xencolod", "/local/domain/6", "/libxl/6")
        host.event("xenstore.empty", since=mark)
        for again in (host.stop, host.kill):
            again()
            host.start()
            host.barrier()
            assert host.qemus() == sorted([pid, other])
        host.store.create(5, identity=UUID)
        for disk in disks:
            host.barrier()
            assert host.qemu(5) == pid
            host.store.attach(disk)
        assert host.published(5) == pid
        assert not host.events("qemu.ending", since=mark)
        # What was seen again is believed to go, by the next daemon too, and the other is not.
        host.stop()
        host.start()
        host.store.destroy(5)
        host.event("qemu.ended", pid=pid)
        assert host.qemus() == [other]

    def test_one_that_is_full_again_before_the_daemon_looks(
        self, host: Host, xenstored: Server
    ) -> None:
        host.start()
        host.store.create(5, identity=UUID)
        disk = host.disk(5)
        host.store.attach(disk)
        pid = host.published(5)
        host.signal(signal.SIGSTOP)
        host.leave_store()
        xenstored.restart()
        host.store.create(5, identity=UUID)
        host.store.attach(disk)
        mark = host.mark()
        host.signal(signal.SIGCONT)
        host.event("xenstore.connected", since=mark)
        assert host.published(5) == pid
        assert not host.events("qemu.ending", since=mark)
        assert not host.events("device.gone", since=mark)
        # It is followed as the one before.
        host.store.detach(disk)
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
        lose(host, fading)
        end(pid)
        host.event("qemu.died", pid=pid)
        fading.restart()
        host.event("xenstore.empty")
        fill(host)
        host.store.create(5)
        host.store.attach(disk)
        assert host.published(5) != pid


def test_a_flood_of_events_is_few_passes(host: Host) -> None:
    host.start()
    disk, pid = host.running(5)
    for number in range(2000):
        host.store.write(f"{disk.backend}/state", str(number % 5 + 1))
    host.barrier()
    assert host.qemu(5) == pid
    host.store.attach(host.disk(5, "xvdb", XVDB))
    host.event("device.found", devid=XVDB)
