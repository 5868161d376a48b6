"""A domain that changes between two requests of one look, and what is seen of it then."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.daemon.reconciler_rig import Changing, config_in, reconciling
from tests.rigs.disks import COLO
from xencolo import requests
from xencolo.disk import Role
from xencolo.nodes import add_requests
from xencolo.paths import DevicePaths
from xencolo.requests import Request
from xencolod import domains
from xencolod.asks import demand

ROLE = "/libxl/7/colo/role"
NOTHING = "/libxl/7/type"


@pytest.mark.parametrize(
    "after",
    [requests.read(ROLE), requests.directory("/libxl/7/device/vbd")],
    ids=lambda request: request.path,
)
async def test_a_disk_that_comes_with_its_role_is_never_seen_without(
    after: Request, tmp_path: Path
) -> None:
    store = Changing()
    # What the role leads to is in the record; a QEMU would outlive the test.
    config = config_in(tmp_path, qemu="binary = '/bin/false'\nstart_attempts = 1\n")
    async with reconciling(tmp_path, store, config) as watched:
        await domains.create(watched.client, 7, "web", xen=False)
        await watched.until(lambda: len(watched.events("device.found")) == 2)
        disk = msgspec.structs.replace(
            COLO,
            pdev_path=f"{tmp_path}/7.raw",
            active_disk=f"{tmp_path}/a",
            hidden_disk=f"{tmp_path}/h",
        )
        Path(f"{tmp_path}/7.raw").write_bytes(bytes(1 << 20))
        added = add_requests(disk, DevicePaths(7, disk.devid, 0))
        store.change = (*added, requests.write(ROLE, Role.SECONDARY))
        store.after = after
        await demand(watched.client, [requests.write(NOTHING, "hvm")])
        await watched.until(lambda: watched.events("images.made"))
        assert watched.events("device.found")[-1]["domid"] == 7
        (record,) = (tmp_path / "state").glob("*.json")
        found = json.loads(record.read_bytes())
        assert (found["role"], found["own"]) == ("secondary", False)
