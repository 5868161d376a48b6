"""What is wrong with a disk is said once, clearly, of that disk alone, and taken back when mended."""

from pathlib import Path

import pytest

from tests.e2e.host import RUNS, XVDB, Disk, Host, until
from xencolo.nodes import BACKEND_NODES, LIBXL_NODES, Need

_COPIED = [node.name for node in BACKEND_NODES if node.need is not Need.NEVER] + ["params"]
_TOLD = [node.name for node in LIBXL_NODES if node.need is not Need.NEVER]
MANDATORY = [("backend", name) for name in _COPIED] + [("libxl", n) for n in (*_TOLD, *_COPIED)]


class Bystanders:
    """Another disk of the same domain, and another domain: nothing may happen to them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        host.store.create(5)
        self.disk = host.disk(5)
        host.store.attach(self.disk)
        host.store.attach(host.disk(5, "xvdb", XVDB))
        host.domain(6)
        for domid in (5, 6):
            host.state(domid, "running")
        self._pids = self._now()

    def _now(self) -> tuple[int, int]:
        return self._host.qemu(5), self._host.qemu(6)

    def check(self) -> None:
        """Fail if anything happened to them."""
        store = self._host.store
        assert self._now() == self._pids
        for domid in (5, 6):
            assert store.read(f"/libxl/{domid}/colo/state") in RUNS
        assert store.read(f"/libxl/5/colo/device/{XVDB}/state") == "ready"
        assert store.read("/libxl/6/colo/device/51712/state") == "ready"
        assert self._host.alive


def mended(host: Host, disk: Disk) -> bool:
    """Tell whether no error of the disk is said any more, nor an empty directory left."""
    store = host.store
    return (
        store.read(f"/libxl/{disk.domid}/colo/device/{disk.devid}/state") == "ready"
        and not store.exists(f"/libxl/{disk.domid}/colo/device/{disk.devid}/error")
        and not store.exists("/local/domain/0/error")
    )


def test_each_mandatory_node_deleted_in_turn(host: Host) -> None:
    host.start()
    around = Bystanders(host)
    disk = around.disk
    for place, name in MANDATORY:
        directory = getattr(disk, place)
        path = f"{directory}/{name}"
        value = host.store.read(path)
        assert value is not None
        mark = host.mark()
        host.store.delete(path)
        event = host.event("device.error", since=mark, domid=5)
        until(lambda: host.store.exists(disk.error), f"the error of {path} stands in xenstore")
        host.barrier()
        assert (event["path"], event["node"], event["kind"]) == (path, name, "missing")
        assert event["error"] == f"Missing xenstore node {path}"
        assert (event["devid"], event["vdev"]) == (51712, "xvda")
        assert host.store.read(disk.error) == event["error"]
        assert host.store.read("/libxl/5/colo/device/51712/error") == event["error"]
        assert host.store.read("/libxl/5/colo/device/51712/state") == "error"
        around.check()
        host.store.write(path, value)
        host.event("device.mended", since=mark, domid=5, path=path)
        until(lambda: mended(host, disk), f"{path} is mended in xenstore")
        assert len(host.events("device.error", since=mark)) == 1
        assert len(host.events("device.mended", since=mark)) == 1
        around.check()


VALUES = {
    "empty": b"",
    "4 KiB": b"/" + b"x" * 4000,  # with its path, all that xenstore takes
    "not UTF-8": b"\xff\xfe",
    "NUL": b"/a\0b",
    "json": b'json:{"driver":"file","filename":"/etc/passwd"}',
    "options": b"a,if=none,file=/etc/passwd",
    "newline": b"a\nb",
}


#: Whether a node with it is wrong by itself; the other is found when the image is looked for.
ODD_PATHS = {"4 KiB": False, "json": True, "options": True}


def rewrite(host: Host, disk: Disk, name: str, value: str | bytes) -> None:
    """Change a node in both directories at once."""

    def change() -> None:
        for directory in (disk.libxl, disk.backend):
            host.store.write(f"{directory}/{name}", value)

    host.store.together(change)


#: A primary never opens these two; the next test has them in a secondary.
ACCEPTED = {(f"{disk}-disk", "4 KiB") for disk in ("active", "hidden")}


def test_bad_values_are_one_error_each(host: Host) -> None:
    host.start()
    around = Bystanders(host)
    disk = around.disk
    silent = set()
    # mode has two values, and libxl takes all others for r.
    for name in sorted(set(_COPIED) - {"mode"}):
        for what, bad in VALUES.items():
            mark = host.mark()
            rewrite(host, disk, name, bad)
            host.barrier()
            found = host.events("device.error", since=mark)
            around.check()
            if found:
                (event,) = found
                assert event["node"] == name
                until(lambda: host.store.exists(disk.error), f"{name} {what} is said")
                assert len(host.store.read(disk.error) or "") <= 1024
            else:
                silent.add((name, what))
            rewrite(host, disk, name, disk.nodes[name])
            until(lambda: mended(host, disk), f"{name} {what} is mended")
    assert silent == ACCEPTED
    assert host.has_open(5, disk.image)
    assert not host.has_open(5, "/etc/passwd")


@pytest.mark.parametrize("what", ODD_PATHS)
def test_odd_paths_in_a_secondary(host: Host, what: str) -> None:
    host.start()
    host.store.create(5)
    disk = host.disk(5, active_disk=VALUES[what].decode())
    host.store.attach(disk, role="secondary")
    event = host.event("device.error", domid=5)
    assert (event["kind"] == "wrong") is ODD_PATHS[what]
    assert event["node"] == "active-disk"
    host.state(5, "waiting")
    host.barrier()
    assert len(host.events("device.error")) == 1
    assert host.qemus() == []


@pytest.mark.parametrize("what", VALUES)
def test_bad_values_from_the_start_launch_nothing(host: Host, what: str) -> None:
    host.start()
    bad = VALUES[what]
    host.store.create(5)
    disk = host.disk(5)
    host.store.attach(disk._replace(nodes={**disk.nodes, "params": "aio:"}))
    rewrite(host, disk, "params", bad)
    host.state(5, "waiting")
    until(lambda: host.store.exists(disk.error), "the error stands in xenstore")
    host.barrier()
    assert host.qemus() == []
    assert host.alive


def test_a_disk_that_was_broken_from_the_start(host: Host) -> None:
    host.start()
    host.store.create(6)
    broken = host.disk(6)
    nodes = {name: value for name, value in broken.nodes.items() if name != "colo-port"}
    host.store.attach(broken._replace(nodes=nodes))
    host.state(6, "waiting")
    host.barrier()
    assert host.qemus(6) == []
    rewrite(host, broken, "colo-port", "9000")
    host.state(6, "running")
    assert host.has_open(6, broken.image)
    until(lambda: not host.store.exists(broken.error), "the error is gone")


class TestImages:
    def test_missing_then_there(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2})
        host.start()
        host.store.create(5)
        disk = host.disk(5, make=False)
        host.store.attach(disk, role="secondary")
        event = host.event("device.error", domid=5)
        assert (event["kind"], event["node"]) == ("image", "params")
        assert disk.image in event["error"]
        host.state(5, "waiting")
        assert host.qemus() == []
        for path in (disk.image, disk.nodes["active-disk"], disk.nodes["hidden-disk"]):
            host.image(path, "raw" if path.endswith(".raw") else "qcow2")
        host.event("device.mended", domid=5)
        host.state(5, "running")

    @pytest.mark.parametrize("node", ["params", "active-disk", "hidden-disk"])
    def test_the_node_that_names_it_is_told(self, host: Host, node: str) -> None:
        host.configure(daemon={"rescan": 0.2}, replication={"make_images": False})
        host.start()
        host.store.create(5)
        disk = host.disk(5)
        image = Path(disk.image if node == "params" else disk.nodes[node])
        aside = image.rename(image.with_suffix(".aside"))
        host.store.attach(disk, role="secondary")
        event = host.event("device.error", domid=5)
        told = (event["kind"], event["node"], event["path"])
        assert told == ("image", node, f"{disk.libxl}/{node}")
        word = "image" if node == "params" else node
        assert event["error"] == f"the {word} {image} does not exist"
        until(lambda: host.store.read(disk.error) == event["error"], "it is published")
        aside.rename(image)
        host.event("device.mended", domid=5, path=f"{disk.libxl}/{node}")
        host.state(5, "running")

    @pytest.mark.parametrize("restart", [True, False])
    def test_one_of_two_missing(self, host: Host, restart: bool) -> None:
        host.configure(daemon={"rescan": 0.2}, qemu={"restart": restart})
        host.start()
        host.store.create(5)
        there, absent = host.disk(5), host.disk(5, "xvdb", XVDB, make=False)
        host.store.attach(there)
        host.store.attach(absent)
        host.state(5, "running")
        pid = host.qemu(5)
        passes = len(host.events("device.error"))
        assert passes == 1
        # Every rescan looks at it again, and finds the same.
        for _ in range(3):
            host.barrier()
        assert host.qemu(5) == pid
        assert host.store.read(f"/libxl/5/colo/device/{XVDB}/state") == "error"
        host.image(absent.image, "raw")
        host.event("device.mended", domid=5, devid=XVDB)
        host.state(5, "running" if restart else "outdated")
        if restart:
            until(lambda: host.has_open(5, absent.image), "it has both")
        else:
            assert host.qemu(5) == pid

    def test_gone_under_a_running_qemu(self, host: Host) -> None:
        host.configure(daemon={"rescan": 0.2})
        host.start()
        disk, pid = host.running(5)
        Path(disk.image).unlink()
        host.barrier()
        host.store.write(f"{disk.backend}/state", "2")  # a change: it looks again
        host.barrier()
        assert host.qemu(5) == pid
        assert host.store.read("/libxl/5/colo/state") in RUNS


def test_two_disks_with_one_export_are_both_in_error(host: Host) -> None:
    host.start()
    host.store.create(5)
    first = host.disk(5, colo_export="same")
    second = host.disk(5, "xvdb", XVDB, colo_export="same")

    host.store.write("/libxl/5/colo/role", "chief")  # so that no QEMU starts in between
    host.store.attach(first)
    host.store.attach(second)
    host.store.write("/libxl/5/colo/role", "primary")
    for disk in (first, second):
        event = host.event("device.error", domid=5, devid=disk.devid)
        assert (event["kind"], event["node"]) == ("drive", "colo-export")
        assert event["path"] == f"{disk.libxl}/colo-export"
        assert "same" in event["error"]
    host.state(5, "waiting")
    assert host.qemus() == []
    rewrite(host, second, "colo-export", "other")
    host.state(5, "running")
    assert host.has_open(5, first.image, second.image)


def test_a_disk_is_never_seen_half_written_or_half_removed(host: Host) -> None:
    host.start()
    host.store.create(5)
    host.store.write("/libxl/5/colo/role", "chief")  # no QEMU is to start
    disk = host.disk(5)
    for _ in range(100):
        host.store.attach(disk)
        host.store.detach(disk)
    host.barrier()
    assert host.events("device.error") == []
    assert host.events("xenstore.failed") == []
