"""How much memory QEMU is given: what the domain has, by the nodes that libxl writes."""

from pathlib import Path

import pytest

from tests.daemon.reconciler_rig import config_in, reconciling
from xencolo import requests
from xencolo.disk import Role
from xencolo.store import Store
from xencolod import domains
from xencolod.argv import launch_in
from xencolod.asks import demand, read
from xencolod.views import read_domains
from xencolod.xenstore import open_client

HOME = "/local/domain/5"
#: memory/static-max and memory/videoram in KiB, and the MiB of it that libxl gives to QEMU.
SIZES: dict[str, tuple[bytes | None, bytes | None, int | None]] = {
    "as xl writes it": (b"2097152", b"8192", 2040),
    "rounded up": (b"1025", None, 2),
    "no videoram": (b"1048576", None, 1024),
    "videoram unset": (b"1048576", b"-1", 1024),
    "two TiB": (b"2147483648", b"0", 2097152),
    "absent": (None, None, None),
    "videoram alone": (None, b"8192", None),
    "nothing left": (b"8192", b"8192", None),
    "zero": (b"0", b"0", None),
    "negative": (b"-1", None, None),
    "no number": (b"1 GiB", None, None),
    "not ascii": (b"\xc2\xb2", None, None),
    "endless": (b"9" * 1900, None, None),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
async def test_the_memory_of_a_domain(
    size: tuple[bytes | None, bytes | None, int | None], store_socket: Path
) -> None:
    *values, mib = size
    names = ("static-max", "videoram")
    async with open_client(store_socket) as client:
        batch = [
            requests.write(f"{HOME}/memory/{name}", value)
            for name, value in zip(names, values, strict=True)
            if value is not None
        ]
        await demand(client, [requests.mkdir(HOME), *batch])
        found = await read_domains(client, [5], 0, frozenset({0}), {}, xen=False)
    assert found[5].memory == mib


ON_XEN = "binary = '/bin/false'\nstart_attempts = 1\n"


async def test_without_it_a_domain_waits_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "5.raw").touch()
    config = config_in(tmp_path, xen=True, qemu=ON_XEN)
    async with reconciling(tmp_path, Store(), config) as watched:
        await domains.set_role(watched.client, 5, Role.NONE)
        await watched.published(5, b"waiting")
        error = await read(watched.client, "/libxl/5/colo/error")
        assert b"/local/domain/5/memory/static-max" in (error or b"")
        assert b"set qemu.memory" in (error or b"")
        assert not watched.events("qemu.starting")

        with_memory = [
            requests.write(f"{HOME}/memory/static-max", "1048576"),
            requests.write(f"{HOME}/memory/videoram", "8192"),
        ]
        await demand(watched.client, with_memory)
        # No watch tells of it; the event of another node does here what the recheck does later.
        await domains.set_role(watched.client, 5, Role.PRIMARY)
        await watched.until(lambda: watched.events("qemu.starting"))
        argv = watched.events("qemu.starting")[0]["argv"]
        assert argv[argv.index("-m") + 1] == "1016"
        assert launch_in(5, argv).memory == 1016


async def test_what_is_configured_counts(tmp_path: Path) -> None:
    (tmp_path / "5.raw").touch()
    config = config_in(tmp_path, xen=True, qemu=f"{ON_XEN}memory = 300\n")
    async with reconciling(tmp_path, Store(), config) as watched:
        await demand(watched.client, [requests.write(f"{HOME}/memory/static-max", "1048576")])
        await domains.set_role(watched.client, 5, Role.NONE)
        await watched.until(lambda: watched.events("qemu.starting"))
        argv = watched.events("qemu.starting")[0]["argv"]
        assert argv[argv.index("-m") + 1] == "300"
