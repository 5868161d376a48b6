"""Bad input and faults around the life of a replicated disk: each is said, and has a way out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import SDA, XVDA, end, until
from tests.e2e.site import COLO, DISKS, DOMID, MIB, Caller, Member, listening, replicating


def keys(path: Path) -> str:
    """Make a key file."""
    words = [sys.executable, "-c", "from xencolod.cli import main; main()", "keys", str(path)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return str(path)


def test_a_peer_that_does_not_fit(two: list[Member], tmp_path: Path) -> None:
    a, b = two
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    a.says("Connection refused")

    listening(b, disks=DISKS[:1])
    a.says("the exports are web-xvda on the secondary, and web-sda, web-xvda on the primary")
    b.store.destroy(DOMID)
    b.event("domain.gone")
    b.disks.clear()
    for path in (b.directory / "state").glob("*.json"):
        path.unlink()
    b.add("secondary", mib=2)
    a.says("is 2097152 bytes long on the secondary, and 1048576 on the primary")
    assert a.colo("state") == "standalone"

    own = {"unencrypted_and_unauthenticated": False}
    for member in two:
        member.set(link=own | {"keys": keys(tmp_path / f"{member.address}.pem")})
        member.stop()
        member.start()
    until(lambda: "certificate" in (a.colo("error") or "").lower(), "wrong keys are said")
    a.set(link={"unencrypted_and_unauthenticated": True})
    a.stop()
    a.start()
    until(lambda: (a.colo("error") or "") and a.colo("state") == "standalone", "plain to TLS")
    assert not a.events("resync.started")


def test_keys_that_are_replaced_while_a_secondary_listens(
    two: list[Member], tmp_path: Path
) -> None:
    a, b = two
    path = tmp_path / "keys.pem"
    keys(path)
    for member in two:
        member.set(link={"unencrypted_and_unauthenticated": False, "keys": str(path)})
    listening(b)
    path.unlink()
    keys(path)
    b.signal(signal.SIGHUP)
    b.event("daemon.reloaded")
    a.start()
    a.add(peer=b)
    for member in two:
        member.is_("replicating")


def test_a_disk_that_was_made_to_fit(two: list[Member]) -> None:
    a, b = two
    a.start()
    a.add(peer=b)
    listening(b, mib=2)
    a.says("is 2097152 bytes long on the secondary, and 1048576 on the primary")
    for disk in b.disks:
        os.truncate(disk.image, MIB)
        for node in ("active-disk", "hidden-disk"):
            Path(disk.nodes[node]).unlink()  # too long now: the daemon makes them
    end(b.qemu(DOMID))
    for member in two:
        member.is_("replicating")


def test_a_peer_of_another_version_or_domain(two: list[Member]) -> None:
    b = two[1]
    listening(b)
    caller = Caller(b)
    assert caller.hello(version=3)["kind"] == "version"
    caller.close()
    caller = Caller(b)
    assert caller.hello(uuid="00000000-0000-4000-8000-000000000000")["kind"] == "domain"
    assert caller.hello(disks=[])["kind"] == "disks"
    assert caller.hello(generation=0)["kind"] == "generation"
    caller.close()
    assert b.colo("state") == "listening"


def test_images_that_may_not_be_made(two: list[Member]) -> None:
    b = two[1]
    b.set(replication={"make_images": False})
    b.start()
    b.add("secondary", disks=DISKS[:1])
    b.is_("listening")
    active, hidden = (Path(b.disks[0].nodes[n]) for n in ("active-disk", "hidden-disk"))

    def make(path: Path, size: str) -> None:
        new = path.with_suffix(".new")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", new, size], check=True)
        new.replace(path)  # the daemon may be looking at the one that is there, under QEMU's lock

    def stop() -> None:
        b.stop()
        end(b.qemu(DOMID))

    stop()
    hidden.unlink()
    b.start()
    b.says(f"{hidden} does not exist")
    assert b.colo("state") == "waiting"
    make(hidden, "1M")
    b.is_("listening")
    stop()
    make(active, "512k")
    b.start()
    b.says("524288 bytes long, the secondary disk 1048576")
    make(active, "1M")
    b.is_("listening")
    stop()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", hidden], check=True)
    b.start()
    b.says("it is not empty; if nothing in it is needed, make it anew")
    make(hidden, "1M")
    b.is_("listening")


def test_the_image_of_one_disk_is_missing(two: list[Member]) -> None:
    b = two[1]
    b.set(replication={"make_images": False})
    listening(b)
    b.stop()
    end(b.qemu(DOMID))
    hidden = Path(b.disks[1].nodes["hidden-disk"])
    hidden.rename(hidden.with_suffix(".away"))
    b.start()
    b.is_("failed")
    b.says(f"{hidden}: there is no such image")
    assert b.qemus(DOMID) == [], "all disks, or none"
    hidden.with_suffix(".away").rename(hidden)
    b.is_("listening")
    assert len(b.guest("query-block-exports")) == 2


@pytest.mark.parametrize(
    "unread", [pytest.param(1, marks=pytest.mark.unexpected("secondary failed failover")), 2]
)
def test_nodes_that_cannot_be_read_when_a_session_is_found(two: list[Member], unread: int) -> None:
    """Half of a group would be failed over else, and the other half neither waited for nor recorded."""
    a, b = two
    replicating(a, b)
    for devid in (XVDA, SDA):
        a.guest.write(devid, 0x11, "0", "256k")
    a.command("checkpoint")
    b.stop()
    ports = [f"{at}/colo-port" for disk in b.disks[:unread] for at in (disk.backend, disk.libxl)]
    for port in ports:
        b.store.delete(port)
    b.start()
    a.lose()
    if unread == 1:
        b.is_("failed")
        b.says("QEMU has 1 more COLO disks than the nodes describe")
        until(lambda: b.colo("generation"), "it knows its record")
    assert b.command("failover").startswith("failover failed: ")
    for port in ports:
        b.store.write(port, str(b.nbd_port))
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    for devid in (XVDA, SDA):
        assert b.guest.holds(devid, 0x11, "0", "256k")


def test_disks_that_are_no_group(two: list[Member]) -> None:
    a, b = two
    a.start()
    a.add(peer=b, disks=DISKS[:1])
    a.is_("standalone")
    a.add(peer=b, disks=DISKS[1:], colo_port="9")
    a.says("the COLO disks of a domain have one NBD server, and these have several")
    until(lambda: a.colo("state") != "standalone", "it is refused")
    for directory in (a.disks[1].backend, a.disks[1].libxl):
        a.store.write(f"{directory}/colo-port", str(b.nbd_port))
    a.is_("standalone")

    b.start()
    b.add("secondary", colo_export="the-same")
    until(lambda: b.colo("error") or b.store.read(b.disks[1].error), "an export name is taken")
    assert b.colo("state") != "replicating"


def test_a_record_that_is_damaged_or_lost(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    until(lambda: b.colo("generation") == "1", "the generation is published")
    for member in two:
        member.stop()
    path, whole = b.record_path, b.record_path.read_bytes()
    path.write_bytes(whole.replace(b'"generation": 1', b'"generation": 7'))
    b.start()
    b.is_("failed")
    b.says("the checksum does not fit")
    b.stop()
    path.unlink()
    b.start()
    b.is_("failed")
    b.says(f"{path} is gone")
    b.stop()
    b.start()
    b.is_("failed")
    b.says(f"{path} is gone")
    assert not path.exists(), "it asks, and does not guess"
    b.store.write(f"{COLO}/role", "none")
    end(b.qemu(DOMID))
    until(lambda: b.colo("state") == "waiting", "no QEMU is given the disk as a plain one")
    b.says(f"{path} is gone")
    assert b.qemus(DOMID) == []
    b.store.write(f"{COLO}/role", "secondary")
    path.write_bytes(whole)
    a.start()
    for member in two:
        member.is_("replicating")


@pytest.mark.unexpected(
    "primary standalone checkpoint",
)
def test_commands_that_make_no_sense(two: list[Member]) -> None:
    a, b = two
    listening(b)
    a.start()
    a.add(peer=b, disks=DISKS)
    for member in two:
        member.is_("replicating")
    assert a.command("failover").startswith("failover failed: failover is for a secondary")
    assert b.command("checkpoint").startswith("checkpoint failed: checkpoint is for the primary")
    assert a.command("resync").startswith("resync failed: it is replicating already")
    assert a.command("detach") == "detach done"
    assert a.command("checkpoint").endswith(f"; xencolo status {DOMID} tells why")
    for rubbish in (b"dance", b"\xff\xfe\x01rubbish", b"checkpoint --now", b"x" * 3000):
        mark = a.mark()
        a.store.write(f"{COLO}/command", rubbish)
        a.event("command.failed", since=mark)
        until(lambda: a.colo("command") == "", "rubbish is emptied")
    failed = len(a.events("command.failed"))
    a.store.write(f"{COLO}/command", "")
    a.store.permit(f"{COLO}/command", f"n{DOMID}", "r0")
    a.order("resync")
    a.event("command.failed", command="unknown")
    assert len(a.events("command.failed")) > failed
    assert a.colo("command") == "resync", "who may not command is not answered"
    assert a.colo("state") == "standalone"
    a.store.permit(f"{COLO}/command", "n0")
    a.store.write(f"{COLO}/command", "resync id=aa")
    for member in two:
        member.is_("replicating")
    a.store.write(f"{COLO}/command", "checkpoint id=bb")
    a.store.write(f"{COLO}/command", "checkpoint id=cc")
    until(
        lambda: (a.colo("answer") or "").startswith("checkpoint id=cc done"),
        "the last one is answered",
    )


@pytest.mark.unexpected("primary resyncing checkpoint")
def test_failover_in_the_middle_of_a_resync(two: list[Member]) -> None:
    a, b = two
    a.set(replication={"resync_speed": 1})
    listening(b, mib=24)
    a.start()
    a.add(peer=b, mib=24)
    a.event("resync.progress")
    until(lambda: a.colo("resync-total") == str(48 << 20), "the progress is published")
    assert int(a.colo("resync-done") or 0) < 48 << 20
    answer = b.command("failover")
    assert answer.startswith("failover failed: the disks hold no checkpoint of the primary")
    assert "not copied yet is lost" in answer
    assert a.command("checkpoint").startswith("checkpoint failed: ")
    for devid in (XVDA, SDA):
        a.guest("block-job-set-speed", device=f"resync-{devid}", speed=0)
    for member in two:
        member.is_("replicating")
    until(lambda: not a.colo("resync-total"), "no progress of a resync that is done")


def test_a_host_that_was_built_anew_does_not_overwrite_the_last_checkpoint(
    two: list[Member],
) -> None:
    a, b = two
    replicating(a, b)
    a.guest.write(XVDA, 0x11, "0", "256k")
    a.command("checkpoint")
    a.lose()
    b.is_("degraded")
    a.record_path.unlink()
    for disk in a.disks:
        Path(disk.image).write_bytes(bytes(1 << 20))
    a.store.destroy(DOMID)
    a.disks.clear()
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    a.says(
        "the disks there hold the last checkpoint of a primary, and this one has never replicated"
    )
    assert b.record["in_sync"]
    assert b.command("failover") == "failover done generation 2"
    assert b.guest.holds(XVDA, 0x11, "0", "256k")
    a.says("another host is the primary of generation 2")


def test_the_last_checkpoint_of_a_lost_host_is_given_up(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    a.lose()
    b.is_("degraded")
    a.record_path.unlink()
    a.store.destroy(DOMID)
    a.disks.clear()
    a.start()
    a.add(peer=b)
    a.says("the disks there hold the last checkpoint of a primary")
    b.store.destroy(DOMID)
    b.event("domain.gone")
    b.disks.clear()
    b.add("secondary")
    for member in two:
        member.is_("replicating")


@pytest.mark.walks("primary degraded action-failed", "primary degraded peer-agrees")
def test_a_session_that_lost_a_write_does_not_go_on(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    b.kill()
    a.is_("degraded")
    node = {"type": "block-node", "node-name": f"nbd-{XVDA}"}
    a.guest("yank", instances=[node])  # the secondary, which serves on, sees nothing of it
    a.guest.write(XVDA, 0x22, "0", "64k")
    mark = a.mark()
    b.start()
    a.event("resync.done", since=mark)
    a.is_("replicating")
    states = [e["state"] for e in a.events("replication.state", since=mark)]
    assert "replicating" not in states[: states.index("resyncing")], states


@pytest.mark.walks("primary launching refused", "secondary launching refused")
def test_a_qemu_that_is_too_old(two: list[Member]) -> None:
    a, b = two
    said = "its QEMU is 6.2.0, and replication needs 7.0.0 or later"
    for member, role in ((b, "secondary"), (a, None)):
        member.set(qemu={"binary": member.old_qemu("6.2.0")})
        member.start()
        member.add(role, peer=b)
        member.is_("failed")
        member.says(said)
        member.event("replication.refused")
        member.walks(f"{role or 'primary'} launching refused")
        assert len(member.events("replication.failed")) == 0
        assert member.guest("query-status")["status"] in {"running", "prelaunch"}
    for member in (b, a):
        member.set(qemu={"binary": "qemu-system-x86_64"})
        member.signal(signal.SIGHUP)
        member.event("daemon.reloaded")
        member.lose_qemu()
    for member in two:
        member.is_("replicating")


def test_an_old_qemu_with_plain_drives_is_none_of_its_business(two: list[Member]) -> None:
    a = two[0]
    a.set(qemu={"binary": a.old_qemu("4.2.1")})
    a.start()
    a.add("none")
    a.is_("running")
    assert not a.events("replication.refused")


def test_a_superseded_guest_stands_where_nodes_cannot_be_read(two: list[Member]) -> None:
    """What the record says comes before what the nodes don't."""
    a, b = two
    a.start()
    a.add(peer=b)
    a.is_("standalone")
    a.guest("cont")
    caller = Caller(a)
    caller.hello(9)
    caller.close()
    until(lambda: a.guest("query-status")["status"] == "paused", "the guest stands")
    until(lambda: a.record["superseded_by"] == 9, "it is recorded")
    for _ in range(4):
        a.stop()
        for at in (a.disks[0].backend, a.disks[0].libxl):
            a.store.delete(f"{at}/colo-port")
        mark = a.mark()
        a.start()
        a.event("replication.state", since=mark, state="failed")
        a.barrier()
        until(lambda: a.colo("generation"), "it knows its record")
        assert a.guest("query-status")["status"] == "paused"
        for at in (a.disks[0].backend, a.disks[0].libxl):
            a.store.write(f"{at}/colo-port", str(b.nbd_port))
        a.says("generation 9")
        assert a.guest("query-status")["status"] == "paused"
