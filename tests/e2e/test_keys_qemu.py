"""The key file in QEMU: an NBD server and a client that hold it talk, and nobody else is heard."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.rigs.bare_qemu import bare_qemu
from tests.rigs.servers import DEADLINE
from xencolo.errors import QmpCommandError
from xencolod import keys
from xencolod.qmp import Qmp, open_qmp

LENGTH = 1 << 20


@asynccontextmanager
async def qemu(directory: Path) -> AsyncIterator[Qmp]:
    directory.mkdir()
    async with bare_qemu(directory) as (_, path):
        with trio.fail_after(DEADLINE):
            async with open_qmp(path, timeout=DEADLINE) as qmp:
                yield qmp


async def credentials(qmp: Qmp, file: Path, directory: Path, endpoint: str) -> None:
    """Give a QEMU the keys as the object `tls`."""
    await qmp.execute(
        "object-add",
        {
            "qom-type": "tls-creds-x509",
            "id": "tls",
            "dir": keys.qemu_credentials(str(file), str(directory)),
            "endpoint": endpoint,
            "verify-peer": True,
        },
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


async def serve(qmp: Qmp) -> dict[str, str]:
    """Export a disk of zeros over TLS; its address."""
    address = {"host": "127.0.0.1", "port": free_port()}
    await qmp.execute(
        "blockdev-add",
        {"driver": "null-co", "node-name": "disk", "size": LENGTH, "read-zeroes": True},
    )
    await qmp.execute(
        "nbd-server-start", {"addr": {"type": "inet", "data": address}, "tls-creds": "tls"}
    )
    await qmp.execute(
        "block-export-add",
        {"type": "nbd", "id": "export", "node-name": "disk", "name": "web", "writable": True},
    )
    return {"type": "inet", **address}


async def connect(qmp: Qmp, address: dict[str, str], **tls: str) -> int:
    """Open the export and return its length."""
    node = {"driver": "nbd", "node-name": "there", "server": address, "export": "web"}
    await qmp.execute("blockdev-add", node | {k.replace("_", "-"): v for k, v in tls.items()})
    nodes: Any = await qmp.execute("query-named-block-nodes")
    await qmp.execute("blockdev-del", {"node-name": "there"})
    return next(int(one["image"]["virtual-size"]) for one in nodes if one["node-name"] == "there")


TLS = {"tls_creds": "tls", "tls_hostname": keys.HOSTNAME}


async def test_nbd_between_two_qemus_that_hold_the_keys(tmp_path: Path) -> None:
    made = tmp_path / "keys.pem"
    keys.make(made)
    async with qemu(tmp_path / "secondary") as secondary, qemu(tmp_path / "primary") as primary:
        await credentials(secondary, made, tmp_path, "server")
        await credentials(primary, made, tmp_path, "client")
        address = await serve(secondary)
        assert await connect(primary, address, **TLS) == LENGTH
        with pytest.raises(QmpCommandError, match=r"(?i)tls"):
            await connect(primary, address)
        with pytest.raises(QmpCommandError, match=r"(?i)certificate"):
            await connect(primary, address, tls_creds="tls", tls_hostname="elsewhere")
        assert await connect(primary, address, **TLS) == LENGTH


async def test_nbd_is_refused_to_a_qemu_with_other_keys(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    keys.make(ours)
    keys.make(theirs)
    async with qemu(tmp_path / "secondary") as secondary, qemu(tmp_path / "stranger") as stranger:
        await credentials(secondary, ours, tmp_path, "server")
        await credentials(stranger, theirs, tmp_path, "client")
        address = await serve(secondary)
        with pytest.raises(QmpCommandError, match=r"(?i)certificate"):
            await connect(stranger, address, **TLS)


async def test_nbd_is_refused_to_a_qemu_that_shows_no_certificate(tmp_path: Path) -> None:
    """It believes the server, whose authority it knows; the server does not believe it."""
    made = tmp_path / "keys.pem"
    keys.make(made)
    async with qemu(tmp_path / "secondary") as secondary, qemu(tmp_path / "stranger") as stranger:
        await credentials(secondary, made, tmp_path, "server")
        address = await serve(secondary)
        laid = Path(keys.qemu_credentials(str(made), str(tmp_path)))
        for name in ("client-cert.pem", "client-key.pem"):
            (laid / name).unlink()
        await credentials(stranger, made, tmp_path, "client")
        with pytest.raises(QmpCommandError, match="option reply"):
            await connect(stranger, address, **TLS)
