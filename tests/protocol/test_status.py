"""What is published of a domain, and the role node."""

import re

import pytest

from xencolo.command import answer_path
from xencolo.disk import Role
from xencolo.errors import WrongNode
from xencolo.paths import mark_path
from xencolo.reference import page
from xencolo.status import (
    REPLICATION_NODES,
    RESTORED_ROLE,
    STATE_MEANINGS,
    STATUS_NODES,
    DeviceState,
    DomainState,
    DomainStatus,
    ReplicationStatus,
    Resync,
    parse_replication,
    parse_role,
    resync_after,
    status_values,
)
from xencolod.publish import published

FULL = DomainStatus(
    DomainState.RUNNING,
    Role.SECONDARY,
    "why",
    4711,
    {51712: (DeviceState.READY, None), 51728: (DeviceState.ERROR, "what")},
    ReplicationStatus(
        *(3, "192.0.2.2:9990", "5e55", 17, 1700000000, Resync(0, 4096, 1024, 4)),
        record="/var/lib/xencolo/u.json",
    ),
)


def test_everything_there_is_to_say_is_said() -> None:
    assert status_values(5, FULL) == {
        "/libxl/5/colo/state": "running",
        "/libxl/5/colo/role-in-force": "secondary",
        "/libxl/5/colo/error": "why",
        "/libxl/5/colo/qemu-pid": "4711",
        "/libxl/5/colo/generation": "3",
        "/libxl/5/colo/peer": "192.0.2.2:9990",
        "/libxl/5/colo/session": "5e55",
        "/libxl/5/colo/checkpoint": "17",
        "/libxl/5/colo/checkpoint-time": "1700000000",
        "/libxl/5/colo/resync-done": "0",
        "/libxl/5/colo/resync-total": "4096",
        "/libxl/5/colo/resync-rate": "1024",
        "/libxl/5/colo/resync-left": "4",
        "/libxl/5/colo/record": "/var/lib/xencolo/u.json",
        "/libxl/5/colo/device/51712/state": "ready",
        "/libxl/5/colo/device/51728/state": "error",
        "/libxl/5/colo/device/51728/error": "what",
    }


def test_what_is_not_there_has_no_node() -> None:
    empty = DomainStatus(DomainState.WAITING, None, None, None, {})
    assert status_values(5, empty) == {"/libxl/5/colo/state": "waiting"}
    new = empty._replace(replication=ReplicationStatus(generation=1))
    assert status_values(5, new) == {
        "/libxl/5/colo/state": "waiting",
        "/libxl/5/colo/generation": "1",
    }


REPLICATIONS = [
    FULL.replication,
    ReplicationStatus(generation=1),
    ReplicationStatus(checkpoint=0, checkpoint_time=0),
    ReplicationStatus(peer="::1", resync=Resync(1, 2, 0, None)),
    ReplicationStatus(resync=Resync(0, 0, 0, 0)),
    None,
]


@pytest.mark.parametrize("replication", REPLICATIONS, ids=repr)
def test_a_replication_is_read_as_it_is_written(replication: ReplicationStatus | None) -> None:
    values = status_values(5, FULL._replace(replication=replication))
    read = {name: values.get(f"/libxl/5/colo/{name}") for name in REPLICATION_NODES}
    assert parse_replication(read) == replication


@pytest.mark.parametrize("value", ["", "-1", "1.5", "9" * 20, "\N{ARABIC-INDIC DIGIT ONE}", "x"])
def test_what_is_no_number_is_as_good_as_absent(value: str) -> None:
    assert parse_replication({"generation": value, "resync-total": value}) is None


def test_the_role_none_is_a_role() -> None:
    status = FULL._replace(role_in_force=Role.NONE)
    assert status_values(5, status)["/libxl/5/colo/role-in-force"] == "none"


def _matches(row: str, path: str) -> bool:
    pattern = re.escape(row.replace("~", "/local/domain/$DOMID"))
    pattern = pattern.replace(re.escape("$DOMID"), r"\d+").replace(re.escape("$DEVID"), r"\d+")
    return re.fullmatch(pattern, path) is not None


@pytest.mark.parametrize("own_domid", [0, 3])
def test_every_node_that_is_published_is_in_the_table_and_on_the_page(own_domid: int) -> None:
    rows = [node.path.replace("domain/0/", "domain/$DOMID/") for node in STATUS_NODES]
    for path in published(5, own_domid, FULL):
        assert any(_matches(row, path) for row in rows), path
    for node in STATUS_NODES:
        assert f"\n#### {node.path} = {node.values} [" in page()


def test_every_published_row_of_the_table_is_written() -> None:
    """The table promises no node that the code does not write."""
    paths = {*published(5, 0, FULL), answer_path(5), mark_path(0), f"{mark_path(0)}/5"}
    for node in STATUS_NODES:
        if node.writer.startswith("xencolod"):
            assert any(_matches(node.path, path) for path in paths), node.path


def test_every_value_of_a_state_is_in_the_table_and_explained() -> None:
    for word in (*DomainState, *DeviceState):
        assert STATE_MEANINGS[word]
        assert f"| `{word}` | {STATE_MEANINGS[word]} |\n" in page()
    assert set(STATE_MEANINGS) == {*DomainState, *DeviceState}


@pytest.mark.parametrize("role", Role)
def test_a_role_is_read_as_it_is_written(role: Role) -> None:
    assert parse_role(5, role.value.encode()) is role


def test_no_role_node_is_no_role() -> None:
    assert parse_role(5, None) is None


@pytest.mark.parametrize(
    "value",
    [b"", b"Primary", b"primary\n", b"primary\0", b" none", b"\xff\xfe", b"x" * 4096],
    ids=repr,
)
def test_a_wrong_role_names_node_value_and_remedy(value: bytes) -> None:
    with pytest.raises(WrongNode) as caught:
        parse_role(5, value)
    assert caught.value.path == "/libxl/5/colo/role"
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()
    assert "none or primary or secondary; set it with xencolo role" in str(caught.value)


def test_only_a_colo_stream_restores_a_secondary() -> None:
    assert RESTORED_ROLE == {"none": None, "remus": None, "colo": Role.SECONDARY}


@pytest.mark.parametrize(
    ("seconds", "done", "resync"),
    [
        (0.0, 0, Resync(0, 24, 0, None)),
        (0.25, 12, Resync(12, 24, 48, None)),  # the burst with which QEMU begins
        (2.0, 12, Resync(12, 24, 6, 2)),
        (2.0, 0, Resync(0, 24, 0, None)),
        (2.0, 24, Resync(24, 24, 12, 0)),
    ],
)
def test_the_time_left_is_not_told_by_the_burst_of_the_beginning(
    seconds: float, done: int, resync: Resync
) -> None:
    assert resync_after(seconds, done, 24) == resync
