"""The replication's steps on real QEMUs: the life of two disks, and daemons killed in between."""

import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from tests.e2e.machines import (
    KIB,
    LOOPBACK,
    SIZE,
    Killed,
    Machine,
    Start,
    attachment,
    checkpoint,
    fail_over,
    free_port,
    go,
    on_primary,
    on_secondary,
    replicate,
    runs,
    serve,
    service,
)
from tests.rigs.servers import DEADLINE
from xencolo.disk import Role
from xencolo.errors import QmpCommandError, ReplicationError
from xencolo.graph import Form
from xencolo.observed import Attachment, Service
from xencolod.blocks import Mark
from xencolod.primary_blocks import PrimaryBlocks

# -- the life -------------------------------------------------------------------------------------


async def test_the_life_of_two_disks(pair: tuple[Machine, Machine], start: Start) -> None:
    first, second = pair
    assert await attachment(first) is Attachment.CLEAN
    assert await service(second) is Service.FRESH
    await first.write(0x11, 0, 512 * KIB)

    await replicate(first, second, "a1")
    async with second.secondary() as blocks:
        assert await blocks.marked() == Mark("a1")
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
        assert await primary.fault() == "I/O error occurred"
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
    await on_secondary(second, lambda blocks: blocks.mark(Mark()))
    assert await attachment(second) is Attachment.CLEAN

    third = start("third", Role.SECONDARY)
    third.kill()
    for disk in third.disks:
        Path(disk.pdev_path or "").write_bytes(b"\x77" * SIZE)
    third.start(Role.SECONDARY)
    await replicate(second, third, "a3")
    await second.write(0x16, 256 * KIB, 64 * KIB)
    await checkpoint(second, third)
    for pattern, offset in ((0x12, 0), (0x13, 64), (0x11, 128), (0x15, 192), (0x16, 256)):
        await third.read(pattern, offset * KIB, 64 * KIB)
    await third.read(0, 512 * KIB, 512 * KIB)


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


async def test_a_guest_that_stands_already_is_flushed_too(pair: tuple[Machine, Machine]) -> None:
    """As in a failover: paused, and what is written after that, by the commit, is flushed."""
    primary, secondary = pair
    await replicate(primary, secondary, "b2")
    await go(secondary)
    await on_secondary(secondary, lambda blocks: blocks.pause())
    await secondary.write(0x22, 0, 256 * KIB)
    await fail_over(secondary)
    await on_secondary(secondary, lambda blocks: blocks.flush())
    assert not await runs(secondary)
    secondary.kill()
    secondary.image_reads(0x22, 0, 256 * KIB)


async def test_the_text_of_2016_names_its_quorum_by_the_drive(start: Start) -> None:
    # today's QEMU has no if=scsi, and takes this text of a primary only
    vdevs = ("hda", "hdb")
    primary = start("primary", Role.PRIMARY, Form.TEXT_2016, vdevs)
    secondary = start("secondary", Role.SECONDARY, vdevs=vdevs)
    await replicate(primary, secondary, "c1")
    await on_primary(primary, lambda blocks: blocks.detach(cut=True))
    assert await attachment(primary) is Attachment.CLEAN


# -- a daemon that is killed between any two commands ---------------------------------------------


async def attach_all(blocks: PrimaryBlocks, port: int) -> None:
    await blocks.connect(LOOPBACK, port)
    await blocks.mirror(0)
    while not (await blocks.progress()).ready:
        await trio.sleep(0.01)
    await blocks.pause()
    await blocks.finish_mirror()
    await blocks.attach()
    await blocks.mark(Mark("d1"))
    await blocks.resume()


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
        assert await blocks.marked() == Mark()
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


async def test_what_a_qemu_is_marked_with(start: Start) -> None:
    machine = start("primary", Role.PRIMARY)
    async with machine.primary() as blocks:
        for mark in (Mark("f1"), Mark("f1", 9, 1700000000), Mark("f1", 10, 1), Mark("f2"), Mark()):
            await blocks.mark(mark)
            assert await blocks.marked() == mark


@pytest.mark.parametrize("life", range(1, 4))
async def test_a_daemon_killed_while_it_marks_a_checkpoint(life: int, start: Start) -> None:
    machine = start("primary", Role.PRIMARY)
    old, new = Mark("f4", 9, 5), Mark("f4", 10, 6)
    async with machine.primary() as blocks:
        await blocks.mark(old)
    async with machine.primary(life) as blocks:
        if life < 3:
            with pytest.raises(Killed):
                await blocks.mark(new)
        else:
            await blocks.mark(new)
    async with machine.primary() as blocks:
        assert await blocks.marked() == (old if life == 1 else new)


# -- what is refused ---------------------------------------------------------------------


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
        # QEMU begins with the last disk, and what began goes on
        assert await blocks.observe() is (Service.SPENT, Service.SERVING)[short]


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
