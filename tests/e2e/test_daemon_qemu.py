"""QEMU's life: starts that fail, deaths, device models of others, and its end."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.host import XVDB, Host, argv_of, end, until


def script(path: Path, *lines: str) -> str:
    """Write a program to be taken for QEMU."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


class TestStarts:
    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (["exit 1"], "exit status 1"),
            (["echo no such machine >&2", "exit 3"], "no such machine"),
            (["kill -SEGV $$"], "SIGSEGV"),
        ],
    )
    def test_that_fail_are_bounded(
        self, host: Host, tmp_path: Path, lines: list[str], words: str
    ) -> None:
        host.configure(qemu={"binary": script(tmp_path / "qemu", *lines)})
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
        script(tmp_path / "qemu", 'exec qemu-system-x86_64 "$@"')
        host.store.write(f"{disk.backend}/state", "1")
        host.barrier()
        assert host.qemus() == []

        def change() -> None:
            for directory in (disk.libxl, disk.backend):
                host.store.write(f"{directory}/colo-port", "9001")
                host.store.write(f"{directory}/discard-enable", "0")

        host.store.together(change)
        host.state(5, "running")
        assert not host.store.exists("/libxl/5/colo/error")

    def test_without_a_program(self, host: Host) -> None:
        host.configure(qemu={"binary": "/nonexistent/qemu"})
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert "/nonexistent/qemu" in (host.store.read("/libxl/5/colo/error") or "")
        # The configuration is mended and read again.
        host.configure()
        host.signal(signal.SIGHUP)
        host.state(5, "running")

    def test_one_that_never_greets(self, host: Host, tmp_path: Path) -> None:
        silent = script(tmp_path / "qemu", "exec sleep 1000")
        host.configure(qemu={"binary": silent, "start_timeout": 0.2, "start_attempts": 1})
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert "greeting" in (host.store.read("/libxl/5/colo/error") or "")
        assert host.event("qemu.signalled", domid=5)["signal"] == "SIGTERM"

    def test_what_qemu_refuses_is_in_its_words(self, host: Host) -> None:
        host.configure(qemu={"extra_arguments": ["-device", "nonesuch"]})
        host.start()
        host.domain(5)
        host.state(5, "failed")
        assert "nonesuch" in (host.store.read("/libxl/5/colo/error") or "")

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
        host.state(5, "running")
        assert host.qemu(5) != pid
        until(
            lambda: host.store.read("/libxl/5/colo/qemu-pid") == str(host.qemu(5)),
            "the new pid is said",
        )

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
        host.state(5, "running")

    def test_while_the_daemon_was_away(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.kill()
        end(pid)
        host.start()
        host.state(5, "running")
        assert host.qemu(5) != pid
        until(
            lambda: host.store.read("/local/domain/5/image/device-model-pid") == str(host.qemu(5)),
            "the new pid is said",
        )


class TestForeign:
    def test_is_never_doubled(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2})
        other = host.foreign("/usr/lib/xen/bin/qemu-system-i386")
        host.store.create(5)
        host.store.write("/local/domain/5/image/device-model-pid", str(other.pid))
        host.store.write("/local/domain/0/device-model/5/state", "running")
        disk = host.disk(5)
        host.store.attach(disk)
        host.start()
        host.state(5, "foreign")
        assert str(other.pid) in host.event("domain.foreign", domid=5)["reason"]
        host.barrier()
        assert host.qemus() == []
        # Its nodes are its own.
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(other.pid)
        assert host.store.read("/local/domain/0/device-model/5/state") == "running"
        host.kill()
        host.start()
        host.barrier()
        assert host.store.read("/local/domain/0/device-model/5/state") == "running"
        other.end()
        host.state(5, "running")
        assert len(host.qemus(5)) == 1

    def test_without_restart_a_dead_one_is_not_replaced(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2}, qemu={"restart": False})
        other = host.foreign("qemu-system-i386")
        host.store.create(5)
        host.store.write("/local/domain/5/image/device-model-pid", str(other.pid))
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
        other = host.foreign("qemu-system-i386")
        host.store.write("/local/domain/5/image/device-model-pid", str(other.pid))
        end(pid)
        host.state(5, "foreign")
        host.barrier()
        assert host.qemus() == []
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(other.pid)

    @pytest.mark.parametrize("name", ["bash", None])
    def test_a_stale_pid_is_nobody(self, host: Host, name: str | None) -> None:
        pid = host.foreign(name).pid if name else 999_999_999
        host.store.create(5)
        host.store.write("/local/domain/5/image/device-model-pid", str(pid))
        host.store.attach(host.disk(5))
        host.start()
        host.state(5, "running")
        assert host.store.read("/local/domain/5/image/device-model-pid") == str(host.qemu(5))

    def test_a_pid_that_another_domain_of_ours_has(self, host: Host) -> None:
        host.start()
        _, pid = host.running(6)
        host.store.create(5)
        host.store.write("/local/domain/5/image/device-model-pid", str(pid))
        host.store.attach(host.disk(5))
        host.state(5, "running")
        assert host.qemu(6) == pid

    @pytest.mark.parametrize("pid", ["", "0", "-1", "x", "9" * 30])
    def test_rubbish_for_a_pid(self, host: Host, pid: str) -> None:
        host.store.create(5)
        host.store.write("/local/domain/5/image/device-model-pid", pid)
        host.store.attach(host.disk(5))
        host.start()
        host.state(5, "running")


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
            host.store.write("/local/domain/5/vm", "/vm/00000000-1111-2222-3333-444444444444")
            host.store.write(f"{disk.libxl}/state", "1")

        host.store.together(another)
        host.event("qemu.ended", pid=pid)
        host.state(5, "running")
        argv = argv_of(host.qemu(5))
        assert argv[argv.index("-uuid") + 1] == "00000000-1111-2222-3333-444444444444"

    def test_destroyed_and_created_while_the_daemon_was_away(self, host: Host) -> None:
        host.start()
        disk, pid = host.running(5)
        host.kill()
        host.store.destroy(5)
        host.store.create(5)
        host.store.attach(disk)
        host.start()
        host.event("qemu.ended", pid=pid)
        until(lambda: host.qemus(5) not in ([], [pid]), "the new guest has its own")
        host.state(5, "running")
        starts = host.events("qemu.starting", domid=5)
        assert len(starts) == 2

    def test_the_sockets_and_pid_files_go(self, host: Host) -> None:
        host.start()
        disk, _ = host.running(5)
        host.store.detach(disk)
        host.event("qemu.ended", domid=5)
        until(
            lambda: {path.name for path in host.runtime.iterdir()} == {"xencolod.lock"},
            "nothing of it is left",
        )
