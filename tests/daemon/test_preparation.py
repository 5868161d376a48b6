"""What a domain's record adds to its nodes."""

from pathlib import Path
from typing import cast

import msgspec
import pytest
import structlog
import trio

from tests.rigs.disks import COLO
from xencolo.device import Device
from xencolo.disk import Role
from xencolo.drives import Form, domain_drives
from xencolo.errors import XencoloError
from xencolo.paths import DevicePaths
from xencolo.plan import Domain, Launch, Machine, Phase, Policy, plan
from xencolo.record import Record, chain_of
from xencolo.replication import Action
from xencolod.config import parse
from xencolod.hub import Hub
from xencolod.performer import Performer
from xencolod.preparation import NO_PRIMARY, as_recorded, load_record
from xencolod.supervisor import Settings
from xencolod.xenstore import Client

UUID = "6b0e5f0a-0000-4000-8000-000000000001"
DEVICES = {COLO.devid: Device(DevicePaths(5, COLO.devid), COLO, True)}
PRIMARY = Domain(5, True, "web", UUID, Role.PRIMARY, None, None, None, DEVICES)
SECONDARY = PRIMARY._replace(role=Role.SECONDARY)

STARTED = Record(uuid=UUID, name="web", role=Role.SECONDARY, generation=1)
FAILING_OVER = msgspec.structs.replace(STARTED, generation=2, unfinished=(chain_of(COLO),))
PROMOTED = msgspec.structs.replace(FAILING_OVER, role=Role.PRIMARY, promoted=True, unfinished=())

DRIVES = domain_drives([COLO], Role.SECONDARY, Form.BLOCKDEV).arguments
LAUNCH = Launch(5, "web", UUID, 64, Role.SECONDARY, DRIVES)
RUNS = Machine(Phase.RUNNING, LAUNCH, 4711)


def test_the_qemu_of_a_failover_is_never_replaced_for_its_new_role() -> None:
    # The role node is written before the record is: the domain may be looked at in between.
    policy = Policy(restart=True, memory=64)
    assert plan(PRIMARY, RUNS, policy, {}).launch != LAUNCH
    for view in (SECONDARY, PRIMARY):
        for record in (FAILING_OVER, PROMOTED):
            known = as_recorded(view, record, LAUNCH)
            assert plan(known, RUNS, policy, {}).launch == LAUNCH


def test_a_secondarys_qemu_is_not_replaced_before_its_record_is_read() -> None:
    policy = Policy(restart=True, memory=64)
    assert plan(as_recorded(PRIMARY, None, LAUNCH), RUNS, policy, {}).launch == LAUNCH
    other = LAUNCH._replace(role=Role.PRIMARY)
    for running in (None, other):
        assert as_recorded(PRIMARY, None, running) == PRIMARY


def test_only_a_failover_makes_a_secondary_a_primary() -> None:
    assert as_recorded(SECONDARY, STARTED, LAUNCH) == SECONDARY
    assert as_recorded(PRIMARY, STARTED, LAUNCH) == PRIMARY._replace(
        role=None, role_error=NO_PRIMARY
    )
    wrong = PRIMARY._replace(role=None, role_error="no role")
    assert as_recorded(wrong, STARTED, LAUNCH) == wrong


def test_a_record_of_another_domain_says_nothing() -> None:
    other = msgspec.structs.replace(PROMOTED, uuid=UUID.replace("1", "2"))
    assert as_recorded(PRIMARY, other, LAUNCH) == PRIMARY
    assert as_recorded(PRIMARY._replace(uuid=None), STARTED, LAUNCH) == PRIMARY._replace(uuid=None)


async def test_what_is_asked_of_a_group_without_disks_is_refused() -> None:
    """Its domain may be destroyed while something waits for QEMU or for the disk."""
    config = parse(b"", name="test", xen=False)
    hub = Hub(cast(Client, None), Settings(config, xen=False, log=structlog.get_logger()))
    performer = Performer(5, hub, lambda: None)
    for action in (Action.SERVE, Action.CONNECT, Action.FAILOVER):
        with pytest.raises(XencoloError):
            await performer.perform(action)


async def test_what_was_noted_outlives_a_save_that_is_cancelled(tmp_path: Path) -> None:
    config = parse(f"[daemon]\nstate_directory = '{tmp_path}'".encode(), name="test", xen=False)
    hub = Hub(cast(Client, None), Settings(config, xen=False, log=structlog.get_logger()))
    performer = Performer(5, hub, lambda: None)
    await load_record(performer, PRIMARY, Role.PRIMARY)
    performer.note(superseded_by=7)
    async with hub.records._one:  # another domain's is being saved
        with trio.move_on_after(0.01) as waiting:
            await performer.save(relaunched=True)
    assert waiting.cancelled_caught
    await load_record(performer, PRIMARY, Role.PRIMARY)
    assert performer.known.superseded_by == 7
    await performer.save(relaunched=True)
    saved = await hub.records.load(UUID)
    assert saved is not None
    assert (saved.superseded_by, saved.relaunched) == (7, True)
