"""The replication's steps on real QEMUs: the life of two disks, killed daemons, silent and dead peers."""

import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import trio

from tests.e2e.machines import (
    DEADLINE,
    LOOPBACK,
    SIZE,
    Killed,
    Machine,
    disks_in,
    free_port,
)
from xencolo.disk import Role
from xencolo.errors import QmpClosed, QmpCommandError, ReplicationError
from xencolo.graph import Form
from xencolod.primary_blocks import Attachment, PrimaryBlocks, Progress
from xencolod.secondary_blocks import SecondaryBlocks, Service

KIB = 1 << 10
Start = Callable[..., Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start QEMUs that end with the test."""
    with ExitStack() as stack:

        def begin(name: str, role: Role, form: Form = Form.BLOCKDEV) -> Machine:
            directory = tmp_path / name
            machine = Machine(directory, disks_in(directory), form)
            stack.callback(machine.kill)
            machine.start(role)
            return machine

        yield begin


@pytest.fixture
def pair(start: Start) -> tuple[Machine, Machine]:
    return start("primary", Role.PRIMARY), start("secondary", Role.SECONDARY)


# -- steps: each twice, each over a connection of its own -----------------------------------------


async def on_primary(machine: Machine, step: Callable[[PrimaryBlocks], Awaitable[object]]) -> None:
    for _ in range(2):
        async with machine.primary() as blocks:
            await step(blocks)


async def on_secondary(
    machine: Machine, step: Callable[[SecondaryBlocks], Awaitable[object]]
) -> None:
    for _ in range(2):
        async with machine.secondary() as blocks:
            await step(blocks)


async def attachment(machine: Machine) -> Attachment:
    async with machine.primary() as blocks:
        return await blocks.observe()


async def service(machine: Machine) -> Service:
    async with machine.secondary() as blocks:
        return await blocks.observe()


async def ready(machine: Machine) -> None:
    """Wait until the mirrors are."""
    async with machine.primary() as blocks:
        with trio.fail_after(DEADLINE):
            while not (now := await blocks.progress()).ready:
                assert now.failed is None
                await trio.sleep(0.01)
        assert now.done == now.total >= SIZE


async def serve(machine: Machine) -> int:
    port = free_port()
    await on_secondary(machine, lambda blocks: blocks.serve(LOOPBACK, port))
    assert await service(machine) is Service.SERVING
    return port


async def copy(primary: Machine, port: int) -> None:
    """Make the secondary's disks equal; leave the guest paused."""
    await on_primary(primary, lambda blocks: blocks.connect(LOOPBACK, port))
    await on_primary(primary, lambda blocks: blocks.mirror(0))
    assert await attachment(primary) is Attachment.PARTIAL
    await ready(primary)
    await on_primary(primary, lambda blocks: blocks.pause())
    async with primary.primary() as blocks:
        await blocks.finish_mirror()


async def replicate(
    primary: Machine, secondary: Machine, session: str, port: int | None = None
) -> None:
    """Go the whole way from two QEMUs to replication."""
    await copy(primary, port or await serve(secondary))
    await on_secondary(secondary, lambda blocks: blocks.start())
    assert await service(secondary) is Service.REPLICATING
    await on_primary(primary, lambda blocks: blocks.attach())
    assert await attachment(primary) is Attachment.PARTIAL
    await on_secondary(secondary, lambda blocks: blocks.mark(session))
    await on_primary(primary, lambda blocks: blocks.mark(session))
    await on_primary(primary, lambda blocks: blocks.resume())
    assert await attachment(primary) is Attachment.ATTACHED
    await checkpoint(primary, secondary)


async def checkpoint(primary: Machine, secondary: Machine) -> None:
    async with primary.primary() as one, secondary.secondary() as other:
        assert (await one.error(), await other.error()) == (None, None)
        await other.checkpoint()
        await one.checkpoint()


async def fail_over(secondary: Machine) -> None:
    await on_secondary(secondary, lambda blocks: blocks.failover())
    async with secondary.secondary() as blocks:
        with trio.fail_after(DEADLINE):
            while not await blocks.committed():
                await trio.sleep(0.01)
        assert await blocks.error() is None
    assert await service(secondary) is Service.SPENT


# -- the life -------------------------------------------------------------------------------------


async def test_the_life_of_two_disks(pair: tuple[Machine, Machine], start: Start) -> None:
    first, second = pair
    assert await attachment(first) is Attachment.CLEAN
    assert await service(second) is Service.FRESH
    await first.write(0x11, 0, 512 * KIB)

    await replicate(first, second, "a1")
    async with second.secondary() as blocks:
        assert await blocks.session() == "a1"
    await second.read(0x11, 0, 512 * KIB)
    await second.read(0, 512 * KIB, 512 * KIB)
    await first.write(0x12, 0, 64 * KIB)
    await second.read(0x11, 0, 64 * KIB)  # until the next checkpoint
    await checkpoint(first, second)
    await second.read(0x12, 0, 64 * KIB)

    second.kill()
    assert await attachment(first) is Attachment.ATTACHED  # nothing tells yet
    await first.write(0x13, 64 * KIB, 64 * KIB)
    async with first.primary() as primary:
        assert await primary.error() == "I/O error occurred"
    assert await attachment(first) is Attachment.PARTIAL
    await on_primary(first, lambda blocks: blocks.detach(cut=False))
    assert await attachment(first) is Attachment.CLEAN

    # its images hold what is to be overwritten
    second.start(Role.SECONDARY)
    assert await service(second) is Service.FRESH
    await replicate(first, second, "a2")
    await second.read(0x12, 0, 64 * KIB)
    await second.read(0x13, 64 * KIB, 64 * KIB)
    await first.write(0x14, 128 * KIB, 64 * KIB)  # never checkpointed
    await second.write(0x15, 192 * KIB, 64 * KIB)  # the secondary's own guest

    first.kill()
    await fail_over(second)
    await second.read(0x11, 128 * KIB, 64 * KIB)
    await second.read(0x15, 192 * KIB, 64 * KIB)
    assert await attachment(second) is Attachment.PARTIAL  # the old session's marker
    await on_secondary(second, lambda blocks: blocks.mark(None))
    assert await attachment(second) is Attachment.CLEAN

    third = start("third", Role.SECONDARY)
    await third_has_other_data(third)
    await replicate(second, third, "a3")
    await second.write(0x16, 256 * KIB, 64 * KIB)
    await checkpoint(second, third)
    for pattern, offset in ((0x12, 0), (0x13, 64), (0x11, 128), (0x15, 192), (0x16, 256)):
        await third.read(pattern, offset * KIB, 64 * KIB)
    await third.read(0, 512 * KIB, 512 * KIB)


async def third_has_other_data(machine: Machine) -> None:
    machine.kill()
    for disk in machine.disks:
        Path(disk.pdev_path or "").write_bytes(b"\x77" * SIZE)
    machine.start(Role.SECONDARY)


async def test_a_failed_over_disk_that_was_flushed_outlives_qemu(
    pair: tuple[Machine, Machine],
) -> None:
    primary, secondary = pair
    await replicate(primary, secondary, "b1")
    await secondary.write(0x21, 0, 256 * KIB)
    await fail_over(secondary)
    await on_secondary(secondary, lambda blocks: blocks.flush())
    secondary.kill()
    secondary.image_reads(0x21, 0, 256 * KIB)


async def test_the_text_of_2016_names_its_quorum_by_the_drive(tmp_path: Path, start: Start) -> None:
    secondary = start("secondary", Role.SECONDARY)
    directory = tmp_path / "primary"
    vdevs = ("hda", "hdb")  # today's QEMU has no if=scsi
    primary = Machine(directory, disks_in(directory, vdevs), Form.TEXT_2016)
    primary.disks = primary.disks[:1]
    primary.start(Role.PRIMARY)
    try:
        secondary.kill()
        secondary.disks = secondary.disks[:1]
        secondary.start(Role.SECONDARY)
        await replicate(primary, secondary, "c1")
        await on_primary(primary, lambda blocks: blocks.detach(cut=True))
        assert await attachment(primary) is Attachment.CLEAN
    finally:
        primary.kill()


# -- a daemon that is killed between any two commands ---------------------------------------------


async def attach_all(blocks: PrimaryBlocks, port: int) -> None:
    await blocks.connect(LOOPBACK, port)
    await blocks.mirror(0)
    while not (await blocks.progress()).ready:
        await trio.sleep(0.01)
    await blocks.pause()
    await blocks.finish_mirror()
    await blocks.attach()
    await blocks.mark("d1")
    await blocks.resume()


async def runs(machine: Machine) -> bool:
    async with machine.qmp() as qmp:
        return bool((await qmp.execute("query-status"))["running"])


async def go(machine: Machine) -> None:
    async with machine.qmp() as qmp:
        await qmp.execute("cont")


async def test_a_daemon_killed_while_it_attaches(pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    port = await serve(secondary)
    await go(primary)
    seen = []
    for life in range(200):
        try:
            async with primary.primary(life) as blocks:
                await attach_all(blocks, port)
            break
        except Killed:
            seen.append(await attachment(primary))
        async with primary.primary() as blocks:
            await blocks.detach(cut=False)
            await blocks.resume()
        assert await attachment(primary) is Attachment.CLEAN
        assert await runs(primary)
    assert await attachment(primary) is Attachment.ATTACHED
    assert await runs(primary)
    assert list(dict.fromkeys(seen)) == list(Attachment)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_daemon_killed_while_it_detaches(cut: bool, pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    port = await serve(secondary)
    for life in range(100):
        async with primary.primary() as blocks:
            await attach_all(blocks, port)
        try:
            async with primary.primary(life) as blocks:
                await blocks.detach(cut=cut)
            break
        except Killed:
            assert await attachment(primary) is not Attachment.CLEAN
        async with primary.primary() as blocks:
            await blocks.detach(cut=cut)
        assert await attachment(primary) is Attachment.CLEAN
    assert life > 10
    assert await attachment(primary) is Attachment.CLEAN


async def test_a_daemon_killed_while_it_serves(pair: tuple[Machine, Machine]) -> None:
    _, secondary = pair
    seen = []
    for life in range(100):
        port = free_port()
        try:
            async with secondary.secondary(life) as blocks:
                await blocks.serve(LOOPBACK, port)
            break
        except Killed:
            seen.append(await service(secondary))
        await on_secondary(secondary, lambda blocks: blocks.unserve())
        assert await service(secondary) is Service.FRESH
    assert set(seen) == {Service.FRESH, Service.PARTIAL}
    assert await service(secondary) is Service.SERVING


@pytest.mark.parametrize("life", range(5))
async def test_a_daemon_killed_while_it_fails_over(
    life: int, pair: tuple[Machine, Machine]
) -> None:
    primary, secondary = pair
    await replicate(primary, secondary, "e1")
    await secondary.write(0x31, 0, 64 * KIB)
    async with secondary.secondary(life) as blocks:
        with pytest.raises(Killed):
            await blocks.failover()
    assert await service(secondary) in {Service.REPLICATING, Service.SPENT}
    await fail_over(secondary)
    await on_secondary(secondary, lambda blocks: blocks.flush())
    assert await runs(secondary) is False
    await secondary.read(0x31, 0, 64 * KIB)


async def stop_and_go(blocks: PrimaryBlocks) -> None:
    assert await blocks.pause()
    await blocks.resume()


@pytest.mark.parametrize("life", range(8))
async def test_a_daemon_killed_with_the_guest_paused(life: int, start: Start) -> None:
    machine = start("primary", Role.PRIMARY)
    await go(machine)
    async with machine.primary(life) as blocks:
        with pytest.raises(Killed):
            await stop_and_go(blocks)
    async with machine.primary() as blocks:
        await blocks.resume()
        assert await blocks.session() is None
    assert await runs(machine)


async def test_a_guest_that_does_not_run_is_not_started(start: Start) -> None:
    machine = start("primary", Role.PRIMARY)
    async with machine.primary() as blocks:
        assert await blocks.pause() is False
        await blocks.flush()
        await blocks.resume()
    assert not await runs(machine)
    await go(machine)
    async with machine.primary() as blocks:
        assert await blocks.pause() is True
        await blocks.flush()
        await blocks.resume()
        await blocks.flush()
    assert await runs(machine)


# -- a secondary that is silent, dead or wrong ----------------------------------------------------


async def test_a_silent_secondary_hangs_the_primary_until_it_is_cut_off(
    pair: tuple[Machine, Machine],
) -> None:
    primary, secondary = pair
    await replicate(primary, secondary, "f1")
    await go(primary)
    primary.timeout = 0.5
    with secondary.silent():
        async with primary.primary() as blocks:
            with pytest.raises(QmpClosed, match="did not answer stop"):
                await blocks.pause()
            await blocks.detach(cut=True)
            assert await blocks.observe() is Attachment.CLEAN
            await blocks.resume()
    assert await runs(primary)


async def test_a_silent_server_does_not_stop_the_guest(pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    port = await serve(secondary)
    primary.timeout = 0.5
    with secondary.silent():
        async with primary.primary() as blocks:
            with pytest.raises(ReplicationError, match=r"it was silent for 0\.5 s"):
                await blocks.connect(LOOPBACK, port)
            assert await blocks.observe() is Attachment.CLEAN
    await on_primary(primary, lambda blocks: blocks.connect(LOOPBACK, port))
    assert await attachment(primary) is Attachment.PARTIAL


async def test_connecting_is_all_or_none(pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    async with primary.primary() as blocks:
        with pytest.raises(ReplicationError, match=r"127\.0\.0\.1 port 1 .* refused"):
            await blocks.connect(LOOPBACK, 1)
        port = await serve(secondary)
        async with secondary.qmp() as qmp:
            await qmp.execute("block-export-del", {"id": f"export-{secondary.disks[1].devid}"})
        with pytest.raises(
            ReplicationError, match="does not serve: Requested export not available"
        ):
            await blocks.connect(LOOPBACK, port)
        assert await blocks.observe() is Attachment.CLEAN
    assert await service(secondary) is Service.PARTIAL
    async with secondary.secondary() as other:
        with pytest.raises(ReplicationError, match="partial"):
            await other.start()


async def test_a_port_that_is_taken(pair: tuple[Machine, Machine], start: Start) -> None:
    port = await serve(pair[1])
    other = start("other", Role.SECONDARY)
    async with other.secondary() as blocks:
        with pytest.raises(QmpCommandError, match="Address already in use"):
            await blocks.serve(LOOPBACK, port)
        assert await blocks.observe() is Service.FRESH
        await blocks.serve(LOOPBACK, free_port())
        assert await blocks.observe() is Service.SERVING


async def test_serving_is_all_or_none(start: Start) -> None:
    secondary = start("secondary", Role.SECONDARY)
    last = secondary.disks[-1]
    secondary.disks[-1] = msgspec.structs.replace(last, colo_export="no-such-node")
    async with secondary.secondary() as blocks:
        with pytest.raises(QmpCommandError, match="no-such-node"):
            await blocks.serve(LOOPBACK, free_port())
        assert await blocks.observe() is Service.FRESH


async def test_a_mirror_whose_secondary_dies_has_failed(pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    await primary.write(0x41, 0, SIZE)
    port = await serve(secondary)
    await on_primary(primary, lambda blocks: blocks.connect(LOOPBACK, port))
    async with primary.primary() as blocks:
        await blocks.mirror(512 * KIB)
        with pytest.raises(ReplicationError, match="is not copied yet: wait"):
            await blocks.finish_mirror()
        assert not (await blocks.progress()).ready
        secondary.kill()
        with trio.fail_after(DEADLINE):
            while not (now := await blocks.progress()).failed:
                await trio.sleep(0.01)
        assert now == Progress(now.done, now.total, ready=False, failed="hda: Input/output error")
        with pytest.raises(ReplicationError):
            await blocks.finish_mirror()
    await on_primary(primary, lambda blocks: blocks.detach(cut=False))
    assert await attachment(primary) is Attachment.CLEAN


async def test_a_mirror_that_never_was_is_not_finished(start: Start) -> None:
    async with start("primary", Role.PRIMARY).primary() as blocks:
        with pytest.raises(ReplicationError, match="hda: it is not being mirrored"):
            await blocks.finish_mirror()


# -- what a secondary refuses ---------------------------------------------------------------------


async def test_a_spent_secondary_replicates_no_more(pair: tuple[Machine, Machine]) -> None:
    primary, secondary = pair
    await replicate(primary, secondary, "g1")
    await fail_over(secondary)
    async with secondary.secondary() as blocks:
        await blocks.serve(LOOPBACK, free_port())
        assert await blocks.observe() is Service.SPENT
        with pytest.raises(ReplicationError, match="spent"):
            await blocks.start()


async def test_a_fresh_secondary_has_nothing_to_fail_over_to(start: Start) -> None:
    secondary = start("secondary", Role.SECONDARY)
    await serve(secondary)
    async with secondary.secondary() as blocks:
        with pytest.raises(ReplicationError, match="nothing to fail over to"):
            await blocks.failover()
        assert await blocks.observe() is Service.SERVING


@pytest.mark.parametrize("short", range(2))
async def test_a_start_that_qemu_refuses(short: int, start: Start) -> None:
    secondary = start("secondary", Role.SECONDARY)
    secondary.kill()
    active = secondary.disks[short].active_disk
    argv = ["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(active), str(SIZE // 2)]
    subprocess.run(argv, check=True, timeout=DEADLINE)
    secondary.start(Role.SECONDARY)
    await serve(secondary)
    async with secondary.secondary() as blocks:
        with pytest.raises(QmpCommandError, match="length are not the same"):
            await blocks.start()
        # QEMU begins with the last disk
        assert await blocks.observe() is (Service.SERVING, Service.PARTIAL)[short == 0]


# -- TLS ------------------------------------------------------------------------------------------


def credentials(directory: Path) -> str:
    """Make a CA, and one certificate for both ends, in QEMU's layout."""
    directory.mkdir()

    def openssl(*words: str) -> None:
        argv = ["openssl", *words]
        subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=DEADLINE)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9")
    usages = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")
    openssl(
        "req", "-x509", *key, *usages, "-subj", "/CN=CA", "-keyout", "ca", "-out", "ca-cert.pem"
    )
    signed = ("-CA", "ca-cert.pem", "-CAkey", "ca", "-addext", "basicConstraints=CA:FALSE")
    names = ("-addext", "subjectAltName=DNS:xencolo", "-subj", "/CN=xencolo")
    for end in ("server", "client"):
        files = ("-keyout", f"{end}-key.pem", "-out", f"{end}-cert.pem")
        openssl("req", "-x509", *key, *signed, *names, *files)
    return str(directory)


async def test_disks_replicate_over_tls_and_only_over_it(
    pair: tuple[Machine, Machine], tmp_path: Path
) -> None:
    primary, secondary = pair
    secondary.credentials = credentials(tmp_path / "keys")
    port = await serve(secondary)
    for wrong in (None, credentials(tmp_path / "others")):
        primary.credentials = wrong
        async with primary.primary() as blocks:
            with pytest.raises(ReplicationError, match="does not serve"):
                await blocks.connect(LOOPBACK, port)
            assert await blocks.observe() is Attachment.CLEAN
    primary.credentials = secondary.credentials
    await primary.write(0x51, 0, 64 * KIB)
    await replicate(primary, secondary, "h1", port)
    await secondary.read(0x51, 0, 64 * KIB)
    await on_primary(primary, lambda blocks: blocks.detach(cut=True))
    primary.credentials = None
    await fail_over(secondary)
    for machine in pair:
        async with machine.qmp() as qmp:
            objects = await qmp.execute("qom-list", {"path": "/objects"})
        assert [item["name"] for item in objects if "tls" in item["name"]] == []
