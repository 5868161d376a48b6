"""QEMU's life: starts that fail, deaths, device models of others, and its end."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.host import XVDB, Host, argv_of, end, open_files, until

OTHER_UUID = "00000000-1111-2222-3333-444444444444"


class TestStarts:
    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (["exit 1"], "exit status 1"),
            (["echo no such machine >&2", "exit 3"], "no such machine"),
            (["kill -SEGV $$"], "SIGSEGV"),
        ],
    )
    def test_that_fail_are_bounded(self, host: Host, lines: list[str], words: str) -> None:
        host.configure(qemu={"binary": host.program(*lines)})
        host.start()
        disk = host.domain(5)
        host.state(5, "failed")
        assert words in (host.store.read("/libxl/5/colo/error") or "")
        failed = host.events("qemu.start_failed", domid=5)
        assert [e["attempt"] for e in failed] == [1, 2, 3]
        assert [e["pause"] for e in failed] == [0.05, 0.1, None]
        assert words in host.event("qemu.failed", domid=5)["error"]
        host.barrier()
        assert len(host.events("qemu.starting")) == 3
        # A changed node is a reason to try again, a program that was mended is none that is seen.
        host.program('exec qemu-system-x86_64 "$@"')
        host.store.write(f"{disk.backend}/state", "1")
        host.barrier()
        assert host.qemus() == []

        def change() -> None:
            for directory in (disk.libxl, disk.backend):
                host.store.write(f"{directory}/colo-port", "9001")
                host.store.write(f"{directory}/discard-enable", "0")

        host.store.together(change)
        host.published(5)
        assert words not in (host.store.read("/libxl/5/colo/error") or "")

    def test_for_want_of_a_place_name_it(self, host: Host) -> None:
        """What QEMU prints can't be kept where a file stands in the way."""
        host.logs.touch()
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert f"{host.logs}: " in (host.store.read("/libxl/5/colo/error") or "")

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"machine": "nonesuch"}, "unsupported machine type"),
            ({"extra_arguments": ["-device", "nonesuch"]}, "nonesuch"),
            ({"binary": "/nonexistent/qemu"}, "/nonexistent/qemu"),
        ],
    )
    def test_a_configuration_that_is_mended(
        self, host: Host, wrong: dict[str, object], words: str
    ) -> None:
        host.configure(qemu=wrong)
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert words in (host.store.read("/libxl/5/colo/error") or "")
        assert words in host.event("qemu.failed", domid=5)["error"]
        assert len(host.events("qemu.start_failed", domid=5)) == 3
        host.configure()
        host.signal(signal.SIGHUP)
        host.published(5)
        assert words not in (host.store.read("/libxl/5/colo/error") or "")

    def test_one_that_never_greets(self, host: Host) -> None:
        silent = host.program("exec sleep 1000")
        host.configure(qemu={"binary": silent, "start_timeout": 0.2, "start_attempts": 1})
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert "greeting" in (host.store.read("/libxl/5/colo/error") or "")
        assert host.event("qemu.signalled", domid=5)["signal"] == "SIGTERM"

    @pytest.mark.parametrize("restart", [True, False])
    def test_a_disk_that_comes_while_it_starts(self, host: Host, restart: bool) -> None:
        host.configure(qemu={"binary": host.gated_qemu(), "restart": restart})
        host.start()
        first = host.domain(5)
        host.event("qemu.starting", domid=5)
        second = host.disk(5, "xvdb", XVDB)
        host.store.attach(second)
        host.barrier()
        host.open_gate()
        until(lambda: host.has_open(5, first.image, second.image), "a QEMU has both")
        pid = host.published(5)
        # The one that was starting has run no guest, and is not announced.
        assert [e["pid"] for e in host.events("qemu.running")] == [pid]
        assert len(host.events("qemu.starting")) == 2

    def test_a_domain_that_goes_while_it_starts(self, host: Host) -> None:
        host.configure(qemu={"binary": host.gated_qemu()})
        host.start()
        host.domain(5)
        host.event("qemu.starting", domid=5)
        host.store.destroy(5)
        host.event("device.gone", domid=5)
        host.open_gate()
        host.event("qemu.ended", domid=5)
        until(lambda: not host.store.exists("/libxl/5"), "nothing is said of it")
        assert not host.qemus()
        assert not host.events("qemu.running")

    def test_the_environment_of_the_service_is_not_inherited(self, host: Host) -> None:
        host.environment["NOTIFY_SOCKET"] = f"{host.directory}/notify"
        host.start()
        _, pid = host.running(5)
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()


class TestDeaths:
    def test_with_restart(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        end(pid)
        died = host.event("qemu.died", domid=5)
        assert (died["pid"], died["status"]) == (pid, "signal SIGKILL")
        until(lambda: host.qemus(5) not in ([], [pid]), "it is started again")
        assert host.published(5) != pid

    def test_with_restart_is_bounded(self, host: Host) -> None:
        host.configure(qemu={"backoff_max": 60})
        host.start()
        host.running(5)

        def given_up() -> bool:
            for pid in host.qemus(5):
                end(pid)
            return bool(host.events("qemu.failed", domid=5))

        until(given_up, "QEMU is given up")
        host.state(5, "failed")
        assert [e["attempt"] for e in host.events("qemu.starting")] == [1, 2, 3]

    def test_without_restart(self, host: Host) -> None:
        host.configure(qemu={"restart": False})
        host.start()
        disk, pid = host.running(5)
        end(pid)
        host.state(5, "failed")
        assert "SIGKILL" in host.event("qemu.failed")["error"]
        assert str(pid) in (host.store.read("/libxl/5/colo/error") or "")
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(pid)
        assert not host.store.exists("/libxl/5/colo/qemu-pid")
        assert not host.store.exists("/local/domain/0/device-model/5/state")
        # Neither a changed disk, nor a reload, nor a new daemon starts it under its guest.
        host.store.attach(host.disk(5, "xvdb", XVDB))
        host.barrier()
        host.signal(signal.SIGHUP)
        host.event("daemon.reloaded")
        host.barrier()
        host.state(5, "failed")
        host.kill()
        host.start()
        host.state(5, "failed")
        host.barrier()
        assert str(pid) in (host.store.read("/libxl/5/colo/error") or "")
        assert host.qemus() == []
        assert len(host.events("qemu.starting")) == 1
        # The operator restarts the domain.
        host.store.destroy(5)
        host.event("domain.gone", domid=5)
        host.store.create(5)
        host.store.attach(disk)
        host.published(5)


class TestReload:
    def test_a_broken_file_changes_nothing_and_a_good_one_takes_force(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        good = host.config.read_text()
        host.config.write_text(f"{good}\nmemroy = 64\n")
        host.signal(signal.SIGHUP)
        failed = host.event("daemon.reload_failed")
        assert (failed["config"], failed["level"]) == (str(host.config), "error")
        assert "qemu.memory" in failed["error"]
        # What was in force still is.
        host.running(6)
        assert host.qemu(5) == pid
        host.configure(
            qemu={"memory": 32, "restart": False}, daemon={"runtime_directory": "/moved"}
        )
        host.signal(signal.SIGHUP)
        host.event("daemon.reloaded")
        _, third = host.running(7)
        argv = argv_of(third)
        assert argv[argv.index("-m") + 1] == "32"
        assert host.qemu(5) == pid
        end(pid)
        host.state(5, "failed")
        assert host.stderr() == ""


class TestForeign:
    def test_is_never_doubled_and_never_touched(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2})
        host.store.create(5)
        other = host.foreign_qemu(5)
        host.store.attach(host.disk(5))
        host.start()
        host.state(5, "foreign")
        event = host.event("domain.foreign", domid=5)
        assert str(other.pid) in event["reason"]
        assert event["level"] == "warning"
        host.barrier()
        # Its nodes are its own, whatever daemon comes and goes.
        host.kill()
        mark = host.mark()
        host.start()
        host.event("domain.foreign", since=mark, domid=5)
        host.barrier()
        assert host.qemus() == []
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(other.pid)
        assert host.store.read("/local/domain/0/device-model/5/state") == "running"
        assert other.alive
        other.end()
        host.published(5)

    def test_the_daemons_own_domain_is_given_none(self, host: Host) -> None:
        host.start()
        host.store.attach(host.disk(0), role="primary")
        host.state(0, "foreign")
        host.event("domain.foreign", domid=0)
        host.barrier()
        assert host.qemus() == []

    def test_one_of_another_runtime_directory_stays_alone(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.stop()
        elsewhere = str(host.directory / "moved")
        host.configure(daemon={"runtime_directory": elsewhere, "rescan": 0.2})
        mark = host.mark()
        host.start()
        host.state(5, "foreign")
        host.barrier()
        host.barrier()
        assert host.store.read("/libxl/5/colo/state") == "foreign"
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(pid)
        assert host.events("qemu.starting", since=mark) == []

    def test_goes_on_when_the_domain_goes(self, host: Host) -> None:
        host.start()
        host.store.create(5)
        other = host.foreign_qemu(5)
        host.store.attach(host.disk(5))
        host.state(5, "foreign")
        host.store.destroy(5)
        host.event("domain.gone", domid=5)
        host.barrier()
        assert other.alive
        assert host.events("qemu.ending") == []

    def test_without_restart_a_dead_one_is_not_replaced(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2}, qemu={"restart": False})
        host.store.create(5)
        other = host.foreign_qemu(5)
        host.store.attach(host.disk(5))
        host.start()
        host.state(5, "foreign")
        other.end()
        host.state(5, "failed")
        host.barrier()
        assert host.qemus() == []

    def test_one_that_comes_when_ours_has_died(self, host: Host) -> None:
        host.configure(qemu={"backoff": 0.3, "backoff_max": 1})
        host.start()
        _, pid = host.running(5)
        other = host.foreign_qemu(5)
        end(pid)
        host.state(5, "foreign")
        host.barrier()
        assert host.qemus() == []
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(other.pid)

    def test_a_pid_that_is_no_device_model_of_the_domain(self, host: Host) -> None:
        """Recycled, of another domain's QEMU, or no pid at all: none is believed, none is touched."""
        host.start()
        _, sixth = host.running(6)
        others = [host.foreign("bash"), host.foreign("/usr/bin/qemu")]
        others[1].end()
        stale = [*(str(other.pid) for other in others), str(sixth), "999999999"]
        rubbish = ["", "0", "-1", "x", "9" * 30]
        domids = range(10, 10 + len(stale + rubbish))
        for domid, pid in zip(domids, stale + rubbish, strict=True):
            host.store.create(domid)
            host.store.write(f"/local/domain/{domid}/image/device-model-pid", pid)
            host.store.attach(host.disk(domid))
        pids = {host.published(domid) for domid in domids}
        assert len(pids) == len(domids)
        for domid in domids:
            host.store.destroy(domid)
        until(lambda: host.qemus() == [sixth], "their QEMUs have ended")
        assert argv_of(others[0].pid) == ["bash"]


class TestEnds:
    def test_one_that_ignores_quit(self, host: Host) -> None:
        host.configure(qemu={"quit_timeout": 0.1, "term_timeout": 0.1})
        host.start()
        _, pid = host.running(5)
        os.kill(pid, signal.SIGSTOP)
        host.store.destroy(5)
        host.event("qemu.ended", pid=pid)
        assert [e["signal"] for e in host.events("qemu.signalled", domid=5)] == [
            "SIGTERM",
            "SIGKILL",
        ]
        assert host.qemus() == []

    def test_a_domid_that_comes_back_with_another_guest(self, host: Host) -> None:
        host.start()
        disk, pid = host.running(5)

        def another() -> None:
            host.store.write("/local/domain/5/vm", f"/vm/{OTHER_UUID}")
            host.store.write(f"{disk.libxl}/state", "1")

        host.store.together(another)
        host.event("qemu.ended", pid=pid)
        second = host.published(5)
        argv = argv_of(second)
        assert argv[argv.index("-uuid") + 1] == OTHER_UUID
        # The same while no daemon looks.
        host.kill()
        host.store.destroy(5)
        host.store.create(5)
        host.store.attach(disk)
        host.start()
        host.event("qemu.ended", pid=second)
        third = host.published(5)
        assert OTHER_UUID not in argv_of(third)
        assert len(host.events("qemu.starting", domid=5)) == 3

    def test_nothing_of_it_is_left(self, host: Host) -> None:
        host.start()
        disk, pid = host.running(5)
        second = host.disk(5, "xvdb", XVDB)
        host.store.attach(second)
        until(lambda: host.has_open(5, second.image), "the second disk is there")
        pid = host.published(5)
        host.store.detach(second)
        until(lambda: host.qemus(5) not in ([], [pid]), "QEMU is started again without it")
        pid = host.published(5)
        assert second.image not in open_files(pid)
        host.store.detach(disk)
        ending = host.event("qemu.ending", pid=pid)
        assert ending["reason"] == "its domain or its last disk has gone"
        host.event("qemu.ended", pid=pid)
        assert host.events("qemu.signalled") == []
        until(lambda: not host.store.exists("/libxl/5/colo"), "all nodes are withdrawn")
        assert not host.store.exists("/local/domain/5/image/device-model-pid")
        assert not host.store.exists("/local/domain/0/device-model/5/state")
        until(
            lambda: {path.name for path in host.runtime.iterdir()} == {"xencolod.lock"},
            "its socket and pid file are gone",
        )

    def test_one_that_ends_while_its_ending_is_published(self, host: Host) -> None:
        host.configure(daemon={"settle": 0})
        host.start()
        host.store.create(5)
        disk = host.disk(5)
        for _ in range(12):
            mark = host.mark()
            host.store.attach(disk)
            host.event("qemu.running", since=mark)
            host.store.detach(disk)
            host.event("domain.gone", since=mark)
            until(lambda: not host.store.exists("/libxl/5/colo"), "all nodes are withdrawn")
