"""A store that is emptied between two requests of one look: what is absent then is no news."""

from pathlib import Path

import pytest

from tests.daemon.reconciler_rig import Changing, config_in, reconciling
from xencolo import requests
from xencolo.paths import DevicePaths, mark_path
from xencolo.requests import Request
from xencolod import devices
from xencolod.asks import demand

FIVE = ("/local/domain/5", "/libxl/5", "/local/domain/0/backend/qdisk/5")


@pytest.mark.parametrize(
    "after",
    [
        requests.read(mark_path(0)),
        requests.read("/local/domain/5/name"),
        requests.directory("/libxl/5/device/vbd"),
        requests.read("/libxl/5/device/vbd/51712/params"),
    ],
    ids=lambda request: request.path,
)
async def test_a_domain_that_is_lost_in_the_middle_of_a_look_is_kept(
    after: Request, tmp_path: Path
) -> None:
    store = Changing()
    store.change = tuple(map(requests.rm, (*FIVE, mark_path(0))))
    async with reconciling(tmp_path, store, config_in(tmp_path)) as watched:
        await watched.until(lambda: len(watched.events("device.found")) == 2)
        store.after = after
        await demand(watched.client, [requests.write("/libxl/5/colo/role", "none")])
        await watched.until(lambda: watched.events("xenstore.empty"))
        await watched.until(lambda: watched.events("reconcile.done", after="xenstore.empty"))
        # A domain that was seen again in it is believed to go.
        await devices.remove(watched.client, DevicePaths(6, 51712, 0), force=True)
        await watched.until(lambda: watched.events("device.gone"))
        assert {event["domid"] for event in watched.events("device.gone")} == {6}
