"""A secondary that can't be told that it was detached is told when it is back."""

from pathlib import Path

import pytest

from tests.e2e.host import until
from tests.e2e.site import DOMID, Member, replicating

NOT_TOLD = "detach done but the secondary was not told: "


def detached_unheard(two: list[Member], fence: Path) -> None:
    """Detach a secondary whose daemon is away, and which would fence its primary."""
    a, b = two
    b.set(failover={"policy": "command", "command": ["touch", str(fence)], "after": 4})
    replicating(a, b)
    b.stop()
    a.is_("degraded")
    assert a.command("detach").startswith(NOT_TOLD)
    a.is_("standalone")
    assert a.record["untold"]


@pytest.mark.walks("secondary degraded peer-detaches")
@pytest.mark.parametrize("restarted", [False, True])
def test_a_secondary_that_was_away_is_told(
    two: list[Member], tmp_path: Path, restarted: bool
) -> None:
    a, b = two
    fence = tmp_path / "fence"
    detached_unheard(two, fence)
    if restarted:
        a.stop()
        a.start()
        a.is_("standalone")
    before = b.mark()
    b.start()
    a.event("replication.released")
    b.walks("secondary degraded peer-detaches", since=before)
    b.is_("listening")
    until(lambda: not a.record["untold"], "it is recorded that the secondary was told")
    assert a.record["detached"]
    assert not b.record["in_sync"]
    # And that was all: it is not reached any more, nor is it afraid for its primary.
    until(lambda: b.colo("peer") is None, "the secondary has no peer")
    mark = a.mark()
    b.stop()
    b.start()
    b.is_("listening")
    assert not a.events("replication.released", since=mark)
    assert a.command("detach") == "detach done"
    assert a.colo("state") == "standalone"
    assert not fence.exists()
    assert not b.events("failover.fencing")
    assert a.command("resync").startswith("resync done")
    for member in two:
        member.is_("replicating")


def test_a_secondary_that_has_taken_over_meanwhile(two: list[Member], tmp_path: Path) -> None:
    a, b = two
    detached_unheard(two, tmp_path / "fence")
    a.guest("cont")
    a.stop()
    b.start()
    b.is_("degraded")
    assert b.command("failover") == "failover done generation 2"
    a.start()
    a.event("replication.superseded", generation=1, other=2)
    a.is_("failed")
    until(lambda: not a.guest("query-status")["running"], "its guest stands")


def test_a_resync_makes_up_for_it(two: list[Member], tmp_path: Path) -> None:
    a, b = two
    detached_unheard(two, tmp_path / "fence")
    assert a.command("resync").startswith("resync done")
    assert not a.record["untold"]
    b.start()
    for member in two:
        member.is_("replicating")
    assert not a.events("replication.released")
    assert len(b.qemus(DOMID)) == 1
