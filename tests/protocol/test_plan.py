"""Every decision as a row, and what must hold whatever the nodes and the QEMU are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.disks import COLO
from xencolo.device import Device
from xencolo.disk import Backend, Disk, Format, Role
from xencolo.drives import Form
from xencolo.errors import MissingNode
from xencolo.paths import DevicePaths
from xencolo.plan import (
    BadImage,
    Domain,
    Launch,
    Machine,
    Phase,
    Plan,
    Policy,
    drives_of,
    plan,
    refusal,
)
from xencolo.status import DeviceState, DomainState, DomainStatus

UUID, OTHER_UUID = "6b0e5f0a-0000-4000-8000-000000000001", "6b0e5f0a-0000-4000-8000-000000000002"
A, B, CD, FAR = 51712, 51728, 51744, 51792  # xvda, xvdb, xvdc, xvdf

DISK_B = Disk(vdev="xvdb", pdev_path="/srv/b.img", backend=Backend.QDISK, format=Format.RAW)
# More than four IDE disks: the guest's PV driver has to serve it.
DISK_FAR = msgspec.structs.replace(DISK_B, vdev="xvdf", pdev_path="/srv/f.img")
# QEMU's IDE refuses read-only disks.
DISK_NEVER = msgspec.structs.replace(DISK_B, vdev="xvdc", pdev_path="/srv/c.img", readwrite=False)


def device(disk: Disk) -> Device:
    return Device(DevicePaths(5, disk.devid), disk, disk.colo_enable)


def leaving(disk: Disk, state: int = 5) -> Device:
    return device(disk)._replace(online=False, state=state)


def broken(devid: int, *, is_colo: bool = False) -> Device:
    paths = DevicePaths(5, devid)
    return Device(paths, None, is_colo, (MissingNode(paths.libxl, "mode"),))


HAS_A = {A: device(COLO)}
HAS_B = {B: device(DISK_B)}
HAS_AB = {**HAS_A, **HAS_B}
DOMAIN = Domain(5, True, "guest", UUID, None, None, None, None, HAS_A)

RESTART, KEEP = Policy(restart=True, memory=64), Policy(restart=False, memory=64)
OWN_MEMORY = Policy(restart=True)
CLOSES = (RESTART._replace(closes=True), KEEP._replace(closes=True))


def launch_of(
    domain: Domain, missing: Mapping[int, BadImage] | None = None, policy: Policy = RESTART
) -> Launch:
    """Return what a QEMU for this domain is started with."""
    arguments = drives_of(domain, policy, missing or {}).arguments
    memory = policy.memory or domain.memory
    return Launch(domain.domid, domain.name, domain.uuid, memory, domain.wanted_role, arguments)


def running(launch: Launch, error: str | None = None) -> Machine:
    return Machine(Phase.RUNNING, launch, 4711, error)


WITH_A = launch_of(DOMAIN)
WITH_AB = launch_of(DOMAIN._replace(devices=HAS_AB))
WITH_B = launch_of(DOMAIN._replace(devices=HAS_B))
AS_TEXT = launch_of(DOMAIN, policy=RESTART._replace(form=Form.TEXT_2016))
ADOPTED = Machine(Phase.STARTING, WITH_A, 4711)
STARTING = Machine(Phase.STARTING, WITH_A)
ENDING = Machine(Phase.ENDING, WITH_A, 4711)
NONE = Machine()

S = DomainState


class Row(NamedTuple):
    """What is, and what is decided; ``error`` is a part of the words that are published."""

    domain: Domain
    machine: Machine
    launch: Launch | None
    state: DomainState | None
    error: str | None = None
    policies: tuple[Policy, ...] = (RESTART, KEEP)
    missing: Mapping[int, BadImage] = {}
    closed: tuple[int, ...] = ()


NO_ROLE = DOMAIN._replace(role_error="Wrong xenstore node role")
FOREIGN = DOMAIN._replace(foreign="libxl runs it")
SIZED = DOMAIN._replace(memory=2048)
DEAD = DOMAIN._replace(gone_pid=99)
EMPTY = DOMAIN._replace(devices={}, role=Role.PRIMARY)
GONE = DOMAIN._replace(exists=False, devices={})
REBORN = DOMAIN._replace(uuid=OTHER_UUID)
BOTH = DOMAIN._replace(devices=HAS_AB)
UNMANAGED = DOMAIN._replace(devices=HAS_B)
A_BROKEN = DOMAIN._replace(devices={A: broken(A, is_colo=True), **HAS_B})
B_BROKEN = DOMAIN._replace(devices={**HAS_A, B: broken(B)})
ALL_BROKEN = DOMAIN._replace(devices={A: broken(A, is_colo=True)})
SECONDARY = DOMAIN._replace(role=Role.SECONDARY)
A_LEAVES = DOMAIN._replace(devices={A: leaving(COLO)})
B_LEAVES = DOMAIN._replace(devices={**HAS_A, B: leaving(DISK_B)})
B_CLOSED = DOMAIN._replace(devices={**HAS_A, B: leaving(DISK_B, state=6)})
FAR_STAYS = DOMAIN._replace(devices={A: leaving(COLO), FAR: device(DISK_FAR)})
FAR_LEAVES = DOMAIN._replace(devices={**HAS_A, FAR: leaving(DISK_FAR)})
BROKEN_STAYS = DOMAIN._replace(devices={A: leaving(COLO), B: broken(B)})
BROKEN_LEAVES = DOMAIN._replace(
    devices={**HAS_A, B: broken(B)._replace(online=False, state=5)},
)
OFFLINE = DOMAIN._replace(devices={A: leaving(COLO, state=4)})
NO_IMAGE = {A: BadImage("params", "the image /srv/a.img does not exist")}
FAILED = Machine(Phase.FAILED, WITH_A, None, "exit status 1")

ROWS = {
    # no QEMU yet
    "a COLO disk": Row(DOMAIN, NONE, WITH_A, S.LAUNCHING),
    "a secondary": Row(SECONDARY, NONE, launch_of(SECONDARY), S.LAUNCHING),
    "a plain disk and a role": Row(
        UNMANAGED._replace(role=Role.NONE), NONE, WITH_B._replace(role=Role.NONE), S.LAUNCHING
    ),
    "a plain disk and no role": Row(UNMANAGED, NONE, None, None),
    "no disk and no role": Row(DOMAIN._replace(devices={}), NONE, None, None),
    "no disk and a role": Row(EMPTY, NONE, None, S.WAITING, "no disk can be given"),
    "no domain": Row(GONE, NONE, None, None),
    "no domain and a disk left behind": Row(DOMAIN._replace(exists=False), NONE, None, None),
    "a wrong role": Row(NO_ROLE, NONE, None, S.WAITING, "Wrong xenstore node role"),
    "a wrong role and a plain disk": Row(
        NO_ROLE._replace(devices=HAS_B), NONE, None, S.WAITING, "Wrong xenstore node role"
    ),
    "foreign": Row(FOREIGN, NONE, None, S.FOREIGN, "libxl runs it"),
    "foreign and none of ours": Row(FOREIGN._replace(devices=HAS_B), NONE, None, None),
    "its QEMU died, kept": Row(DEAD, NONE, None, S.FAILED, "pid 99, died", (KEEP,)),
    "its QEMU died, restarted": Row(DEAD, NONE, WITH_A, S.LAUNCHING, None, (RESTART,)),
    "one of two is broken": Row(B_BROKEN, NONE, WITH_A, S.LAUNCHING),
    "the COLO one is broken": Row(A_BROKEN, NONE, WITH_B, S.LAUNCHING),
    "all are broken": Row(
        ALL_BROKEN, NONE, None, S.WAITING, f"no disk can be given to QEMU: {broken(A).errors[0]}"
    ),
    "no image": Row(
        DOMAIN,
        NONE,
        None,
        S.WAITING,
        f"no disk can be given to QEMU: {NO_IMAGE[A].error}",
        missing=NO_IMAGE,
    ),
    "one image of two": Row(BOTH, NONE, WITH_B, S.LAUNCHING, missing=NO_IMAGE),
    # a start under way follows every change
    "starting": Row(DOMAIN, STARTING, WITH_A, S.LAUNCHING),
    "starting, one more": Row(BOTH, STARTING, WITH_AB, S.LAUNCHING),
    "starting, the vm node came": Row(
        DOMAIN, Machine(Phase.STARTING, WITH_A._replace(uuid=None)), WITH_A, S.LAUNCHING
    ),
    "starting, foreign": Row(FOREIGN, STARTING, None, S.FOREIGN, "libxl runs it"),
    "starting, a wrong role": Row(NO_ROLE, STARTING, None, S.WAITING, "Wrong"),
    "starting, broken": Row(ALL_BROKEN, STARTING, None, S.WAITING, "no disk"),
    "starting, no disk left": Row(EMPTY, STARTING, None, S.WAITING, "no disk"),
    "starting, gone": Row(GONE, STARTING, None, S.ENDING),
    # a QEMU that an earlier xencolod left is one that runs
    "adopted": Row(DOMAIN, ADOPTED, WITH_A, S.LAUNCHING),
    "adopted, foreign": Row(FOREIGN, ADOPTED, WITH_A, S.LAUNCHING, "libxl runs it"),
    "adopted, broken": Row(ALL_BROKEN, ADOPTED, WITH_A, S.LAUNCHING),
    "adopted, a wrong role": Row(NO_ROLE, ADOPTED, WITH_A, S.LAUNCHING, "Wrong"),
    "adopted, gone": Row(GONE, ADOPTED, None, S.ENDING),
    "adopted, reborn": Row(REBORN, ADOPTED, None, S.ENDING),
    # running
    "running": Row(DOMAIN, running(WITH_A), WITH_A, S.RUNNING),
    "running without QMP": Row(
        DOMAIN, running(WITH_A, "QMP broke"), WITH_A, S.RUNNING, "QMP broke"
    ),
    "running, renamed": Row(DOMAIN._replace(name="new"), running(WITH_A), WITH_A, S.RUNNING),
    "running, no vm node": Row(DOMAIN._replace(uuid=None), running(WITH_A), WITH_A, S.RUNNING),
    "running, one more, kept": Row(
        BOTH, running(WITH_A), WITH_A, S.OUTDATED, "restart the domain", (KEEP,)
    ),
    "running, one more, replaced": Row(
        BOTH, running(WITH_A), WITH_AB, S.LAUNCHING, None, (RESTART,)
    ),
    "running, one less, kept": Row(
        DOMAIN, running(WITH_AB), WITH_AB, S.OUTDATED, "other drives", (KEEP,)
    ),
    "running, another role, kept": Row(
        SECONDARY, running(WITH_A), WITH_A, S.OUTDATED, "other drives", (KEEP,)
    ),
    "running, another role, replaced": Row(
        SECONDARY, running(WITH_A), launch_of(SECONDARY), S.LAUNCHING, None, (RESTART,)
    ),
    # how drives are written has changed in the configuration
    # its memory
    "the domain's memory": Row(
        SIZED, NONE, WITH_A._replace(memory=2048), S.LAUNCHING, None, (OWN_MEMORY,)
    ),
    "memory that is configured": Row(SIZED, NONE, WITH_A, S.LAUNCHING),
    "no memory is known": Row(DOMAIN, NONE, None, S.WAITING, "memory/static-max", (OWN_MEMORY,)),
    "no memory is known, starting": Row(
        DOMAIN, STARTING, None, S.WAITING, "set qemu.memory", (OWN_MEMORY,)
    ),
    "running, no memory is known": Row(
        DOMAIN, running(WITH_A), WITH_A, S.RUNNING, None, (OWN_MEMORY,)
    ),
    "running, another memory": Row(SIZED, running(WITH_A), WITH_A, S.RUNNING, None, (OWN_MEMORY,)),
    "running, in another form": Row(DOMAIN, running(AS_TEXT), AS_TEXT, S.RUNNING),
    "adopted, in another form": Row(DOMAIN, ADOPTED._replace(launch=AS_TEXT), AS_TEXT, S.LAUNCHING),
    "running, in another form, one more, kept": Row(
        BOTH, running(AS_TEXT), AS_TEXT, S.OUTDATED, "other drives", (KEEP,)
    ),
    "running, in another form, one more, replaced": Row(
        BOTH, running(AS_TEXT), WITH_AB, S.LAUNCHING, None, (RESTART,)
    ),
    "starting, in another form": Row(
        DOMAIN, STARTING._replace(launch=AS_TEXT), WITH_A, S.LAUNCHING
    ),
    "failed, in another form": Row(DOMAIN, FAILED._replace(launch=AS_TEXT), WITH_A, S.LAUNCHING),
    "running, its disk is broken": Row(ALL_BROKEN, running(WITH_A), WITH_A, S.RUNNING),
    "running, a new disk is broken": Row(B_BROKEN, running(WITH_A), WITH_A, S.RUNNING),
    "running, its image is missing": Row(
        DOMAIN, running(WITH_A), WITH_A, S.RUNNING, missing=NO_IMAGE
    ),
    "running, the image of a new disk is missing": Row(
        BOTH, running(WITH_B), WITH_B, S.RUNNING, missing=NO_IMAGE
    ),
    "running, a wrong role": Row(NO_ROLE, running(WITH_A), WITH_A, S.RUNNING, "Wrong"),
    "running, foreign": Row(FOREIGN, running(WITH_A), WITH_A, S.RUNNING, "libxl runs it"),
    "running, foreign, one more": Row(
        FOREIGN._replace(devices=HAS_AB), running(WITH_A), WITH_A, S.OUTDATED, "libxl runs it"
    ),
    "running, no more COLO": Row(UNMANAGED, running(WITH_A), WITH_A, S.OUTDATED, "other drives"),
    "running, no more disks": Row(EMPTY, running(WITH_A), None, S.ENDING),
    "running, no more disks and no role": Row(
        DOMAIN._replace(devices={}), running(WITH_A), None, S.ENDING
    ),
    "running, gone": Row(GONE, running(WITH_A), None, S.ENDING),
    "running, gone and a disk left behind": Row(
        DOMAIN._replace(exists=False), running(WITH_A), None, S.ENDING
    ),
    "running, reborn": Row(REBORN, running(WITH_A), None, S.ENDING),
    # ending: the next one waits for the end
    "ending": Row(DOMAIN, ENDING, None, S.ENDING),
    "ending, gone": Row(GONE, ENDING, None, S.ENDING),
    "ending, foreign": Row(FOREIGN, ENDING, None, S.ENDING),
    # failed
    "failed": Row(
        DOMAIN, FAILED, WITH_A, S.FAILED, "exit status 1; mend that, then reload xencolod"
    ),
    "failed, one more": Row(BOTH, FAILED, WITH_AB, S.LAUNCHING),
    "failed, foreign": Row(FOREIGN, FAILED, None, S.FOREIGN, "libxl runs it"),
    "failed under its guest": Row(DEAD, FAILED, None, S.FAILED, "pid 99, died", (KEEP,)),
    "failed under its guest, one more": Row(
        DEAD._replace(devices=HAS_AB), FAILED, None, S.FAILED, "pid 99, died", (KEEP,)
    ),
    "failed, gone": Row(GONE, FAILED, None, S.ENDING),
    # a disk that leaves: on Xen its own backend closes it, elsewhere the daemon once QEMU has let go
    "leaving, on Xen": Row(A_LEAVES, running(WITH_A), WITH_A, S.RUNNING),
    "leaving, no QEMU, on Xen": Row(A_LEAVES, NONE, WITH_A, S.LAUNCHING),
    "leaving, no QEMU": Row(A_LEAVES, NONE, None, S.WAITING, "no disk", CLOSES, closed=(A,)),
    "leaving, failed": Row(A_LEAVES, FAILED, None, S.WAITING, "no disk", CLOSES, closed=(A,)),
    "leaving, starting": Row(A_LEAVES, STARTING, None, S.WAITING, "no disk", CLOSES),
    "leaving, adopted": Row(A_LEAVES, ADOPTED, None, S.ENDING, None, CLOSES),
    "leaving, running": Row(A_LEAVES, running(WITH_A), None, S.ENDING, None, CLOSES),
    "leaving, ending": Row(A_LEAVES, ENDING, None, S.ENDING, None, CLOSES),
    "leaving, gone": Row(A_LEAVES._replace(exists=False), NONE, None, None, None, CLOSES),
    "leaving, foreign": Row(
        A_LEAVES._replace(foreign="libxl runs it"), NONE, None, S.FOREIGN, "libxl", CLOSES
    ),
    "leaving, none of ours": Row(
        DOMAIN._replace(devices={B: leaving(DISK_B)}), NONE, None, None, None, CLOSES
    ),
    "offline and not asked to close": Row(
        OFFLINE, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES
    ),
    "one of two leaves, replaced": Row(
        B_LEAVES, running(WITH_AB), WITH_A, S.LAUNCHING, None, CLOSES[:1]
    ),
    "one of two leaves, kept": Row(
        B_LEAVES, running(WITH_AB), WITH_AB, S.OUTDATED, "other drives", CLOSES[1:]
    ),
    "one of two leaves, ending": Row(
        B_LEAVES, Machine(Phase.ENDING, WITH_AB, 4711), None, S.ENDING, None, CLOSES
    ),
    "one of two leaves, starting": Row(
        B_LEAVES, Machine(Phase.STARTING, WITH_AB), WITH_A, S.LAUNCHING, None, CLOSES
    ),
    "one of two leaves, starting without": Row(
        B_LEAVES, STARTING, WITH_A, S.LAUNCHING, None, CLOSES, closed=(B,)
    ),
    "one of two leaves, running without": Row(
        B_LEAVES, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES, closed=(B,)
    ),
    "one of two has left": Row(B_CLOSED, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES),
    "one that QEMU never had leaves": Row(
        FAR_LEAVES, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES, closed=(FAR,)
    ),
    "one that can't be read leaves": Row(
        BROKEN_LEAVES, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES, closed=(B,)
    ),
    "the last that QEMU has leaves": Row(FAR_STAYS, running(WITH_A), None, S.ENDING, None, CLOSES),
    "a broken one stays": Row(BROKEN_STAYS, running(WITH_A), WITH_A, S.RUNNING, None, CLOSES),
    # a guest with other disks, of which QEMU can have none
    "running, only its own disk has gone": Row(
        DOMAIN._replace(devices={FAR: device(DISK_FAR)}), running(WITH_A), None, S.ENDING
    ),
}

CASES = [
    pytest.param(row, policy, id=f"{name}-{'restart' if policy.restart else 'keep'}")
    for name, row in ROWS.items()
    for policy in row.policies
]


@pytest.mark.parametrize(("row", "policy"), CASES)
def test_each_decision(row: Row, policy: Policy) -> None:
    decided = plan(row.domain, row.machine, policy, row.missing)
    assert decided.launch == row.launch
    assert (decided.status and decided.status.state) == row.state
    assert decided.closed == row.closed
    said = decided.status and decided.status.error
    if row.error is None:
        assert said is None
    else:
        assert row.error in str(said)


class Shown(NamedTuple):
    machine: Machine
    role: Role | None
    pid: int | None


SHOWN = {
    "absent": Shown(NONE, None, None),
    "starting": Shown(STARTING, None, None),
    "adopted": Shown(ADOPTED, Role.PRIMARY, 4711),
    "running": Shown(running(WITH_A), Role.PRIMARY, 4711),
    "ending": Shown(ENDING, Role.PRIMARY, 4711),
    "failed": Shown(FAILED, None, None),
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_role_in_force_and_pid_are_those_of_a_living_qemu(shown: Shown) -> None:
    status = plan(DOMAIN, shown.machine, RESTART, {}).status
    assert status
    assert (status.role_in_force, status.qemu_pid) == (shown.role, shown.pid)


def test_each_disk_has_its_state_and_reason() -> None:
    devices = {
        A: device(COLO),
        B: broken(B),
        CD: device(DISK_NEVER),
        FAR: device(DISK_FAR),
        832: device(msgspec.structs.replace(DISK_B, vdev="hdb", pdev_path="/srv/h.img")),
    }
    missing = {832: BadImage("hidden-disk", "the hidden-disk /srv/h.img does not exist")}
    decided = plan(DOMAIN._replace(devices=devices), NONE, RESTART, missing)
    status = decided.status
    assert status
    states = {devid: state for devid, (state, _) in status.devices.items()}
    assert states == {
        A: DeviceState.READY,
        B: DeviceState.ERROR,
        CD: DeviceState.ERROR,
        FAR: DeviceState.SKIPPED,
        832: DeviceState.ERROR,
    }
    words = {devid: error or "" for devid, (_, error) in status.devices.items()}
    assert words[A] == ""
    assert words[B] == "Missing xenstore node /libxl/5/device/vbd/51728/mode"
    assert "read-only" in words[CD]
    assert "PV driver" in words[FAR]
    assert words[832] == "the hidden-disk /srv/h.img does not exist"
    assert decided.culprits == {CD: "mode", 832: "hidden-disk"}


def test_a_disk_that_leaves_says_whether_it_is_held_up() -> None:
    for policy, error in zip(CLOSES, (None, "restart the domain"), strict=True):
        status = plan(B_LEAVES, running(WITH_AB), policy, {}).status
        assert status
        assert status.devices[A] == (DeviceState.READY, None)
        state, said = status.devices[B]
        assert state is DeviceState.LEAVING
        assert (error in said) if error and said else said is error


def test_a_disk_that_leaves_names_the_errors_that_hold_it_up() -> None:
    role_too = BROKEN_STAYS._replace(role_error="Wrong xenstore node role")
    for domain, wrong in ((BROKEN_STAYS, "xvdb"), (role_too, "xvdb and the role")):
        for policy, remedy in zip(CLOSES, (f"mend {wrong}", "restart the domain"), strict=True):
            status = plan(domain, running(WITH_A), policy, {}).status
            assert status
            state, said = status.devices[A]
            assert state is DeviceState.LEAVING
            assert said
            assert said.endswith(remedy)


def test_what_only_one_form_has_room_for_is_as_the_running_qemu_has_it() -> None:
    """sdi is a disk to the 2016 text's SCSI controller, and none to the other form's."""
    ninth = msgspec.structs.replace(COLO, vdev="sdi")
    domain = DOMAIN._replace(devices={ninth.devid: device(ninth)})
    text = RESTART._replace(form=Form.TEXT_2016)
    machine = running(launch_of(domain, policy=text))
    for policy in (text, RESTART):
        decided = plan(domain, machine, policy, {})
        assert decided.launch == machine.launch
        assert decided.status
        assert decided.status.devices == {ninth.devid: (DeviceState.READY, None)}


def test_two_errors_of_a_disk_are_both_said() -> None:
    paths = DevicePaths(5, A)
    errors = (MissingNode(paths.libxl, "mode"), MissingNode(paths.libxl, "dev"))
    domain = DOMAIN._replace(devices={A: Device(paths, None, True, errors)})
    status = plan(domain, NONE, RESTART, {}).status
    assert status
    assert status.devices[A][1] == (
        "Missing xenstore node /libxl/5/device/vbd/51712/mode; "
        "Missing xenstore node /libxl/5/device/vbd/51712/dev"
    )


@pytest.mark.parametrize(
    ("domain", "managed"),
    [
        (DOMAIN, True),
        (UNMANAGED, False),
        (EMPTY, True),
        (ALL_BROKEN, True),
        (NO_ROLE._replace(devices={}), True),
        (DOMAIN._replace(exists=False), False),
    ],
)
def test_who_is_managed(domain: Domain, managed: bool) -> None:
    assert domain.managed is managed


# -- whatever is --------------------------------------------------------------------------------

DEVICES = st.fixed_dictionaries(
    {},
    optional={
        A: st.sampled_from([device(COLO), leaving(COLO), broken(A), broken(A, is_colo=True)]),
        B: st.sampled_from([device(DISK_B), leaving(DISK_B), leaving(DISK_B, 6), broken(B)]),
        CD: st.just(device(DISK_NEVER)),
        FAR: st.just(device(DISK_FAR)),
    },
)
DOMAINS = st.builds(
    Domain,
    domid=st.just(5),
    exists=st.booleans(),
    name=st.sampled_from(["guest", "renamed"]),
    uuid=st.sampled_from([None, UUID, OTHER_UUID]),
    role=st.sampled_from([None, *Role]),
    role_error=st.sampled_from([None, "Wrong xenstore node role"]),
    foreign=st.sampled_from([None, "libxl runs it"]),
    gone_pid=st.sampled_from([None, 99]),
    devices=DEVICES,
    memory=st.sampled_from([None, 2048]),
)
LAUNCHES = st.builds(launch_of, DOMAINS, st.none())
MACHINES = st.one_of(
    st.just(NONE),
    st.builds(Machine, st.just(Phase.STARTING), LAUNCHES, st.sampled_from([None, 4711])),
    st.builds(Machine, st.just(Phase.RUNNING), LAUNCHES, st.just(4711)),
    st.builds(Machine, st.just(Phase.ENDING), LAUNCHES, st.just(4711)),
    st.builds(Machine, st.just(Phase.FAILED), LAUNCHES, st.none(), st.just("exit status 1")),
)
POLICIES = st.builds(
    Policy,
    st.booleans(),
    st.sampled_from(Form),
    st.sampled_from([None, 64]),
    closes=st.booleans(),
)
BAD_IMAGE = BadImage("params", "no such image")
MISSING = st.dictionaries(st.sampled_from([A, B]), st.just(BAD_IMAGE), max_size=2)


def none_left(
    domain: Domain, launch: Launch, policy: Policy, missing: Mapping[int, BadImage]
) -> bool:
    """Whether all of QEMU's disks have gone or leave; one that broke has not gone."""
    staying = policy.staying(domain)
    drives = drives_of(domain, policy, missing)
    broken_ones = (
        any(d.errors for d in staying.values()) or drives.errors or missing.keys() & staying
    )
    spared = broken_ones or domain.role_error or launch.drives == drives.arguments
    return not staying or not (drives.arguments or spared)


def another(domain: Domain, launch: Launch) -> bool:
    return bool(domain.uuid and launch.uuid and domain.uuid != launch.uuid)


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_a_running_qemu_is_ended_only_with_its_domain_or_its_last_disk(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    if not machine.may_hold_guest or not machine.launch:
        return
    over = (
        not domain.exists
        or another(domain, machine.launch)
        or none_left(domain, machine.launch, policy, missing)
    )
    assert (decided.launch is None) == over
    if over:
        assert decided.status
        assert decided.status.state is S.ENDING


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_a_running_qemu_is_replaced_only_where_that_is_allowed_and_all_is_well(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    if not machine.may_hold_guest or decided.launch in {None, machine.launch}:
        return
    assert policy.restart
    assert domain.managed
    assert not domain.foreign
    assert not domain.role_error
    assert decided.status
    assert DeviceState.ERROR not in {state for state, _ in decided.status.devices.values()}


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_a_backend_is_closed_only_when_qemu_has_let_go_of_the_disk(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    held = " ".join(machine.launch.drives) if machine.alive and machine.launch else ""
    for devid in plan(domain, machine, policy, missing).closed:
        leaver = domain.devices[devid]
        assert policy.closes
        assert not domain.foreign
        assert leaver.leaving
        image = leaver.disk and leaver.disk.pdev_path
        assert image
        assert image not in held


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_no_qemu_is_started_beside_another_ones(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    if domain.foreign and decided.launch:
        assert machine.may_hold_guest
        assert decided.launch == machine.launch


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_nothing_is_started_under_a_guest_whose_device_model_died(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    if domain.gone_pid and not policy.restart and not machine.may_hold_guest:
        assert decided.launch is None


@given(DOMAINS, POLICIES, st.sampled_from([A, B]))
def test_a_disk_that_breaks_changes_nothing_of_a_running_qemu(
    domain: Domain, policy: Policy, devid: int
) -> None:
    whole = domain._replace(exists=True, devices=HAS_AB, role_error=None)
    machine = running(launch_of(whole))
    spoiled = whole._replace(devices={**HAS_AB, devid: broken(devid)})
    assert plan(spoiled, machine, policy, {}).launch == machine.launch
    assert plan(whole, machine, policy, {devid: BAD_IMAGE}).launch == machine.launch


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_what_is_launched_is_what_the_nodes_describe(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    if decided.launch and decided.launch != machine.launch:
        assert decided.launch == launch_of(domain, missing, policy)
        assert decided.launch.drives


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_two_calls_are_one_and_the_order_of_the_disks_is_no_matter(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    decided = plan(domain, machine, policy, missing)
    backwards = domain._replace(devices=dict(reversed(list(domain.devices.items()))))
    assert plan(domain, machine, policy, missing) == decided
    assert plan(backwards, machine, policy, missing) == decided


def settled(domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]) -> Plan:
    """Let QEMUs start and end as they are wanted until the plan wants what is."""
    for _ in range(8):
        decided = plan(domain, machine, policy, missing)
        if machine.phase is Phase.ENDING:
            after = Machine()
        elif machine.may_hold_guest and decided.launch != machine.launch:
            after = machine._replace(phase=Phase.ENDING)
        elif machine.may_hold_guest:
            after = machine._replace(phase=Phase.RUNNING)
        elif decided.launch and machine.phase is Phase.FAILED and decided.launch == machine.launch:
            after = machine
        elif decided.launch and machine.phase is Phase.STARTING:
            after = running(decided.launch)
        elif decided.launch:
            after = Machine(Phase.STARTING, decided.launch)
        else:
            after = Machine()
        if after == machine:
            return decided
        machine = after
    raise AssertionError(f"still not settled: {machine}")


@given(DOMAINS, MACHINES, POLICIES, MISSING)
def test_it_settles(
    domain: Domain, machine: Machine, policy: Policy, missing: dict[int, BadImage]
) -> None:
    """No state of nodes makes QEMUs come and go for ever."""
    status = settled(domain, machine, policy, missing).status
    assert status is None or status.state not in {S.LAUNCHING, S.ENDING}


def test_a_status_is_a_value() -> None:
    status = plan(DOMAIN, running(WITH_A), KEEP, {}).status
    assert status == DomainStatus(
        S.RUNNING, Role.PRIMARY, None, 4711, {A: (DeviceState.READY, None)}
    )


@pytest.mark.parametrize(
    ("changed", "qemu", "why"),
    [
        ({}, None, None),
        ({}, (7, 0, 0), None),
        ({}, (10, 0, 3), None),
        ({}, (6, 2, 9), "its QEMU is 6.2.9, and replication needs 7.0.0 or later"),
        ({"role": Role.SECONDARY}, (6, 2, 9), "its QEMU is 6.2.9"),
        ({"role": Role.NONE}, (6, 2, 9), None),
        ({"devices": HAS_B}, (6, 2, 9), None),
        ({"type": "pv"}, None, "/libxl/5/type is pv"),
        ({"type": "hvm"}, (7, 2, 0), None),
    ],
)
def test_what_can_not_replicate(
    changed: dict[str, Any], qemu: tuple[int, int, int] | None, why: str | None
) -> None:
    said = refusal(DOMAIN._replace(**changed), qemu)
    assert said is None if why is None else said and said.startswith(why)
