"""A primary's disks with a secondary that is silent, dead, wrong, or of other keys."""

import subprocess
from pathlib import Path

import pytest
import trio

from tests.e2e.machines import (
    KIB,
    LOOPBACK,
    SIZE,
    Machine,
    Start,
    attachment,
    fail_over,
    go,
    on_primary,
    replicate,
    runs,
    serve,
    service,
)
from tests.rigs.servers import DEADLINE
from xencolo.disk import Role
from xencolo.errors import QmpClosed, ReplicationError
from xencolo.observed import Attachment, Service
from xencolod.primary_blocks import Progress

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


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"NBDMAGICIHAVEOPT\0\3", "does not serve: Connection attempt cancelled by timeout"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "what listens there is no NBD server"),
        (b"", "what listens there is no NBD server"),
    ],
    ids=["silent once it has greeted", "no NBD", "closing at once"],
)
async def test_a_server_that_does_not_serve(
    said: bytes, why: str, start: Start, nursery: trio.Nursery
) -> None:
    async def serve_wrongly(stream: trio.SocketStream) -> None:
        async with stream:
            if said:
                await stream.send_all(said)
                await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, serve_wrongly, listeners)
    primary = start("primary", Role.PRIMARY)
    async with primary.primary() as blocks:
        with pytest.raises(ReplicationError, match=why):
            await blocks.connect(LOOPBACK, port)
        assert await blocks.observe() is Attachment.CLEAN
    nursery.cancel_scope.cancel()


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
