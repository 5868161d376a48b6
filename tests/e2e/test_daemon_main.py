"""The main job: nodes in; the right QEMU and the right nodes out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import RUNS, SDA, XVDB, Host, Images, argv_of, open_files, qmp, until
from tests.rigs import start_oxenstored, start_xenstored


@pytest.fixture(params=["xenstored", "oxenstored", "embedded"])
def any_host(request: pytest.FixtureRequest, tmp_path: Path, images: Images) -> Iterator[Host]:
    """A host on each kind of store."""
    if request.param == "embedded":
        made = Host(tmp_path, images, f"embedded:{tmp_path}/store")
        try:
            yield made
        finally:
            made.close()
        return
    starter = {"xenstored": start_xenstored, "oxenstored": start_oxenstored}[request.param]
    with starter(tmp_path / "store") as server:
        made = Host(tmp_path, images, server.socket)
        try:
            yield made
        finally:
            made.close()


def nodes_of(host: Host, domid: int, pid: int) -> dict[str, str]:
    """Return what QEMU itself says of its block devices: root node → driver of the root."""
    assert pid
    devices = qmp(host.qmp_socket(domid), "query-block")
    return {d["qdev"]: d["inserted"]["drv"] for d in devices if "inserted" in d}


class TestRoles:
    def test_primary_secondary_and_plain(self, any_host: Host) -> None:
        host = any_host
        host.start()
        primary = host.domain(5)
        secondary = host.domain(6, role="secondary")
        host.store.create(7)
        plain = host.disk(7, colo=False)
        host.store.attach(plain, role="none")
        expected = {5: ("primary", primary), 6: ("secondary", secondary), 7: ("none", plain)}
        for domid, (role, disk) in expected.items():
            host.state(domid, "running")
            pid = host.qemu(domid)
            files = open_files(pid)
            assert disk.image in files
            replicas = {disk.nodes.get("active-disk"), disk.nodes.get("hidden-disk")}
            assert replicas & files == (replicas if role == "secondary" else set())
            wanted = json.loads(host.xencolo("drives", str(domid), "--json"))
            argv = argv_of(pid)
            words = wanted if isinstance(wanted, list) else wanted["arguments"]
            at = argv.index(words[0])
            assert argv[at : at + len(words)] == words
            colo = host.store.tree(f"/libxl/{domid}/colo")
            assert colo[f"/libxl/{domid}/colo/role-in-force"] == role
            assert colo[f"/libxl/{domid}/colo/qemu-pid"] == str(pid)
            assert colo[f"/libxl/{domid}/colo/device/51712/state"] == "ready"
            assert host.store.read(f"/local/domain/{domid}/image/device-model-pid") == str(pid)
            assert host.store.read(f"/local/domain/0/device-model/{domid}/state") == "running"
        host.leave_store()
        assert host.stop() == 0
        assert nodes_of(host, 5, host.qemu(5)).keys() == nodes_of(host, 7, host.qemu(7)).keys()
        assert set(nodes_of(host, 5, host.qemu(5)).values()) == {"quorum"}
        assert set(nodes_of(host, 6, host.qemu(6)).values()) == {"quorum"}
        assert set(nodes_of(host, 7, host.qemu(7)).values()) == {"raw"}

    def test_two_colo_disks_are_one_qemu(self, host: Host) -> None:
        host.start()
        host.store.create(5)
        ide, scsi = host.disk(5), host.disk(5, "sda", SDA)
        host.store.attach(ide, role="secondary")
        host.store.attach(scsi)
        host.state(5, "running")
        pid = host.qemu(5)
        assert {ide.image, scsi.image} <= open_files(pid)
        assert [e["attempt"] for e in host.events("qemu.starting")] == [1]
        host.stop()
        assert len(nodes_of(host, 5, pid)) == 2

    def test_a_plain_domain_without_a_role_is_left_alone(self, host: Host) -> None:
        host.start()
        host.store.create(5)
        disk = host.disk(5, colo=False)
        host.store.write("/local/domain/0/device-model/5/state", "running")
        host.store.write("/local/domain/5/image/device-model-pid", "1")
        host.store.attach(disk)
        host.event("device.found", domid=5)
        host.barrier()
        host.store.detach(disk)
        host.event("device.gone", domid=5)
        host.barrier()
        assert host.qemus() == []
        assert not host.store.exists("/libxl/5/colo")
        assert host.store.read("/local/domain/0/device-model/5/state") == "running"
        assert host.store.read("/local/domain/5/image/device-model-pid") == "1"

    def test_disks_added_one_after_the_other_start_one_qemu_without_restart(
        self, host: Host
    ) -> None:
        host.configure(qemu={"restart": False}, daemon={"settle": 0.4})
        host.start()
        host.domain(5)
        host.state(5, "launching")
        second = host.disk(5, "xvdb", XVDB)
        host.store.attach(second)
        host.state(5, "running")
        assert second.image in open_files(host.qemu(5))

    def test_many_domains_at_once(self, host: Host) -> None:
        host.configure(daemon={"settle": 0}, qemu={"binary": "/nonexistent/qemu"})
        disks = [host.domain(domid) for domid in range(1, 61)]
        mark = host.mark()
        host.start()
        for disk in disks:
            host.state(disk.domid, "failed")
        assert host.events("xenstore.failed", since=mark) == []


class TestStatus:
    def test_a_monitor_follows_the_state(self, any_host: Host) -> None:
        host = any_host
        host.start()
        store = host.store
        store.create(5)
        seen: list[str] = []
        with store.client.monitor() as monitor:
            monitor.watch(b"/libxl/5/colo/state", b"follow")
            disk = host.disk(5)
            store.attach(disk)
            events = monitor.wait()
            while not RUNS.intersection(seen[-1:]):
                next(events)
                state = store.read("/libxl/5/colo/state")
                seen += [state] if state and seen[-1:] != [state] else []
            store.detach(disk)
            while store.exists("/libxl/5/colo/state"):
                next(events)
        assert seen[-1] in RUNS
        until(lambda: not host.qemus(), "the QEMU has ended with its last disk")
        until(lambda: not store.exists("/libxl/5/colo"), "nothing is said any more")
        assert not store.exists("/local/domain/5/image/device-model-pid")
        assert not store.exists("/local/domain/0/device-model/5/state")

    def test_a_destroyed_domain_is_not_brought_back(self, host: Host) -> None:
        host.start()
        for domid in range(5, 15):
            host.domain(domid)
            host.store.destroy(domid)
        host.barrier()
        until(lambda: not host.qemus(), "no QEMU is left")
        host.barrier()
        assert host.store.list("/libxl") == []
        assert host.store.list("/local/domain") == ["0"]
        assert host.store.tree("/local/domain/0/device-model") == {}

    def test_destroyed_while_it_runs(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.store.destroy(5)
        host.event("qemu.ended", pid=pid)
        host.event("domain.gone", domid=5)
        host.barrier()
        until(lambda: host.store.list("/libxl") == [], "/libxl/5 is gone")
        assert host.qemus() == []
        assert host.store.list("/local/domain") == ["0"]


class TestRoleChanges:
    def test_a_running_domain_is_replaced(self, host: Host) -> None:
        host.start()
        _, before = host.running(5)
        counts: set[int] = set()

        def secondary() -> bool:
            counts.add(len(host.qemus(5)))
            return host.store.read("/libxl/5/colo/role-in-force") == "secondary" and (
                host.store.read("/libxl/5/colo/state") == "listening"
            )

        host.xencolo("role", "5", "secondary")
        until(secondary, "domain 5 is secondary")
        assert host.qemu(5) != before
        assert max(counts) == 1

    def test_without_restart_it_is_outdated(self, host: Host) -> None:
        host.configure(qemu={"restart": False})
        host.start()
        _, pid = host.running(5)
        host.xencolo("role", "5", "secondary")
        host.state(5, "outdated")
        assert host.qemu(5) == pid
        assert host.store.read("/libxl/5/colo/role-in-force") == "primary"
        host.xencolo("role", "5", "primary")
        host.state(5, "running")

    def test_rubbish_starts_nothing(self, host: Host) -> None:
        host.start()
        host.domain(5, role="chief")
        event = host.event("domain.role_error", domid=5)
        assert (event["path"], event["node"]) == ("/libxl/5/colo/role", "role")
        host.state(5, "waiting")
        assert "xencolo role" in (host.store.read("/libxl/5/colo/error") or "")
        assert host.qemus() == []
        host.xencolo("role", "5", "primary")
        host.state(5, "running")

    def test_rubbish_changes_nothing(self, host: Host) -> None:
        host.start()
        _, pid = host.running(5)
        host.store.write("/libxl/5/colo/role", "chief")
        host.event("domain.role_error", domid=5)
        host.barrier()
        host.store.write("/libxl/5/colo/role", b"\xff" * 3000)
        host.barrier()
        assert host.qemu(5) == pid
        assert host.store.read("/libxl/5/colo/state") in RUNS
        assert len(host.events("domain.role_error", domid=5)) == 2

    def test_the_role_goes_and_the_domain_is_let_go(self, host: Host) -> None:
        host.start()
        host.store.create(7)
        disk = host.disk(7, colo=False)
        host.store.attach(disk, role="none")
        host.state(7, "running")
        host.store.delete("/libxl/7/colo/role")
        host.barrier()
        # A QEMU is ended only when its domain or its last disk goes.
        assert len(host.qemus(7)) == 1
        host.store.detach(disk)
        until(lambda: not host.qemus(7), "the QEMU has ended with its last disk")


class TestTrust:
    def test_a_role_that_the_guest_can_write(self, host: Host) -> None:
        host.start()
        host.store.create(5)
        host.store.write("/libxl/5/colo/role", "secondary")
        host.store.permit("/libxl/5/colo/role", "n0", "w5")
        host.store.attach(host.disk(5))
        event = host.event("domain.role_error", domid=5)
        assert "w5" in event["error"]
        assert event["error"].endswith("set it with xencolo role")
        host.state(5, "waiting")
        assert host.qemus() == []
        host.xencolo("role", "5", "primary")
        host.state(5, "standalone")

    @pytest.mark.parametrize("node", ["", "/params", "/colo-host"])
    def test_a_device_that_the_guest_can_write(self, host: Host, node: str) -> None:
        host.start()
        host.store.create(5)
        disk = host.disk(5)
        host.store.attach(disk)
        host.store.permit(f"{disk.libxl}{node}", "n5")
        host.store.write(f"{disk.libxl}/state", "1")
        event = host.event("device.error", domid=5, kind="untrusted")
        assert event["path"] == f"{disk.libxl}{node}"
        host.state(5, "waiting")
        host.store.permit(f"{disk.libxl}{node}", "n0")
        host.store.write(f"{disk.libxl}/state", "1")
        host.event("device.mended", domid=5)
        host.state(5, "running")

    def test_untrusted_and_wrong_is_said_once(self, host: Host) -> None:
        host.start()
        host.store.create(5)
        disk = host.disk(5, dev="rubbish")
        host.store.attach(disk)
        host.store.permit(f"{disk.libxl}/dev", "n5")
        for _ in range(3):
            host.store.write(f"{disk.libxl}/state", "1")
            host.barrier()
        assert sorted(e["kind"] for e in host.events("device.error", domid=5)) == [
            "untrusted",
            "wrong",
        ]

    def test_a_frontend_pointing_elsewhere_is_only_said(self, host: Host) -> None:
        host.start()
        disk, pid = host.running(5)
        other, other_pid = host.running(6)
        host.store.write(f"{disk.frontend}/backend", other.backend)
        host.store.write(f"{disk.backend}/state", "2")
        event = host.event("device.suspicious", domid=5)
        assert other.backend in event["reason"]
        host.barrier()
        assert (host.qemu(5), host.qemu(6)) == (pid, other_pid)
        assert host.events("device.error") == []
        assert host.store.read("/libxl/5/colo/device/51712/state") == "ready"


def test_a_name_that_no_command_line_can_hold(host: Host) -> None:
    host.start()
    host.store.create(5, name="a,b=c")
    host.store.write("/local/domain/5/name", b"a,id=\0\xff\n")
    host.store.write("/local/domain/5/vm", b"/vm/\0x")
    host.store.attach(host.disk(5))
    host.state(5, "running")
    assert "a,,id=" in argv_of(host.qemu(5))[argv_of(host.qemu(5)).index("-name") + 1]
