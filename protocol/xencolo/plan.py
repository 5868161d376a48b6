"""What should be and what is → what to do and what to say: decided here, done elsewhere.

No branch here looks at anything but its arguments, so every decision is a row of a test.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from xencolo.device import CLOSING, Device
from xencolo.disk import Disk, Role
from xencolo.drives import DomainDrives, Form, domain_drives, form_of, image_drivers, under_dev
from xencolo.paths import libxl_domain_path
from xencolo.status import DeviceState, DomainState, DomainStatus

_VM = re.compile(rb"/vm/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE)


def uuid_of(vm: bytes | None) -> str | None:
    """Return the uuid in the value of ``~/vm``, None where it has none."""
    match = _VM.fullmatch(vm or b"")
    return match[1].decode() if match else None


class Domain(NamedTuple):
    """What the nodes say of one domain.

    :ivar exists: whether ``/local/domain/<domid>`` is there.
    :ivar name: the guest's name, for QEMU's.
    :ivar uuid: from ``~/vm``; tells a domain from the next one under the same domid (XSA-322).
    :ivar role: the role node, None where it is absent.
    :ivar role_error: why the role node can't be used.
    :ivar foreign: who else runs its device model, in words; None if nobody.
    :ivar gone_pid: pid of a device model that ran for this domain and is dead.
    :ivar devices: its qdisk devices by devid.
    :ivar type: libxl's word for the kind of guest (``hvm``, ``pv``, ``pvh``), None where it is absent.
    :ivar record: path of its record, as it was published; None where it is absent.
    :ivar command: what the command node holds, None where it is absent or empty.
    :ivar command_error: why the command can't be taken.
    :ivar promoted: whether it was a secondary that took over, or is taking over: its QEMU may have a
        secondary's drives.
    :ivar memory: MiB that the toolstack gave it, None where no node says so.
    :ivar published: whether a state of it stands in xenstore, an earlier xencolod's too.
    :ivar block_devices: those of its images' paths that lead to block devices, by way of links too.
    """

    domid: int
    exists: bool
    name: str
    uuid: str | None
    role: Role | None
    role_error: str | None
    foreign: str | None
    gone_pid: int | None
    devices: Mapping[int, Device]
    type: str | None = None
    record: str | None = None
    command: bytes | None = None
    command_error: str | None = None
    promoted: bool = False
    memory: int | None = None
    published: bool = False
    block_devices: frozenset[str] = frozenset()

    @property
    def managed(self) -> bool:
        """Whether the daemon is to run a QEMU for it: it has a COLO disk or a role node."""
        has_role = self.role is not None or self.role_error is not None
        return self.exists and (has_role or any(d.is_colo for d in self.devices.values()))

    @property
    def wanted_role(self) -> Role:
        """The role it should have: a domain that was created and not restored is primary."""
        return self.role or Role.PRIMARY


class Launch(NamedTuple):
    """A QEMU to run: for whom and with which drives.

    :ivar memory: the guest's, in MiB.
    """

    domid: int
    name: str
    uuid: str | None
    memory: int | None
    role: Role
    drives: tuple[str, ...]


class Phase(Enum):
    """Where a QEMU is in its life."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    FAILED = "failed"


class Machine(NamedTuple):
    """What is: the domain's QEMU.

    :ivar launch: what it runs with, or failed with.
    :ivar pid: the QEMU's, once it is known to live: greeted, adopted or being ended.
    :ivar error: why it failed.
    """

    phase: Phase = Phase.ABSENT
    launch: Launch | None = None
    pid: int | None = None
    error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process: it has its drives open."""
        return self.phase in {Phase.STARTING, Phase.RUNNING, Phase.ENDING}

    @property
    def may_hold_guest(self) -> bool:
        """Whether a guest may run in it: it has greeted, or an earlier xencolod left it."""
        return self.phase is Phase.RUNNING or (
            self.phase is Phase.STARTING and self.pid is not None
        )


class BadImage(NamedTuple):
    """An image that QEMU can't be given.

    :ivar node: the name of the node that names it.
    :ivar error: what is wrong, in words.
    """

    node: str
    error: str


class Plan(NamedTuple):
    """What to do and what to say.

    :ivar launch: the QEMU that should run; None for none.
    :ivar status: what to publish; None where the domain is none of ours.
    :ivar closed: the devids whose backends are to be closed: QEMU has let go of them.
    :ivar culprits: devid → the node that says what QEMU can't be given.
    """

    launch: Launch | None
    status: DomainStatus | None
    closed: tuple[int, ...] = ()
    culprits: Mapping[int, str] = MappingProxyType({})


class Policy(NamedTuple):
    """What the configuration allows.

    :ivar restart: whether a running QEMU may be replaced when its drives changed.
    :ivar form: how drives are written.
    :ivar memory: every guest's, in MiB; None takes what each domain has.
    :ivar closes: whether the daemon closes the backends of disks that are being removed: without Xen
        there is no other backend than its own QEMU.
    """

    restart: bool
    form: Form = Form.BLOCKDEV
    memory: int | None = None
    closes: bool = False

    def staying(self, domain: Domain) -> dict[int, Device]:
        """Return the devices that are not about to leave."""
        return {
            devid: device
            for devid, device in domain.devices.items()
            if not (self.closes and device.leaving)
        }


def device_states(
    devices: Mapping[int, Device], drives: DomainDrives, missing: Mapping[int, BadImage]
) -> dict[int, tuple[DeviceState, str | None]]:
    """Return state and error of each device; ``missing`` says which images can't be opened."""
    states: dict[int, tuple[DeviceState, str | None]] = {}
    for devid, device in devices.items():
        if device.errors:
            error = "; ".join(map(str, device.errors))
            states[devid] = DeviceState.ERROR, error
        elif devid in drives.errors:
            states[devid] = DeviceState.ERROR, str(drives.errors[devid])
        elif devid in missing:
            states[devid] = DeviceState.ERROR, missing[devid].error
        elif devid in drives.skipped:
            states[devid] = DeviceState.SKIPPED, drives.skipped[devid]
        elif device.bypassed:
            states[devid] = DeviceState.BYPASSED, _BYPASSED
        else:
            states[devid] = DeviceState.READY, None
    return states


def drives_of(
    domain: Domain, policy: Policy, missing: Mapping[int, BadImage], running: Launch | None = None
) -> DomainDrives:
    """Return the drives of the domain's role, without disks that leave or whose images can't be opened.

    :param running: a QEMU that has just these drives, written in another form, has what it should:
        then they are returned as it has them. What it has open stays what it was, whatever its path
        leads to by now.
    """
    staying = policy.staying(domain)
    disks = tuple(d.disk for devid, d in staying.items() if d.disk and devid not in missing)
    drivers = image_drivers(running.drives) if running else {}
    block_devices = frozenset(
        path
        for disk in disks
        for path in (disk.pdev_path, disk.active_disk, disk.hidden_disk)
        if path and _is_block_device(path, drivers, domain)
    )
    if running and (form := form_of(running.drives)) is not policy.form:
        as_it_runs = _drives(disks, domain.wanted_role, form, block_devices)
        if as_it_runs.arguments == running.drives:
            return as_it_runs
    return _drives(disks, domain.wanted_role, policy.form, block_devices)


def _is_block_device(path: str, drivers: Mapping[str, str], domain: Domain) -> bool:
    if driver := drivers.get(path):
        return driver == "host_device"
    return under_dev(path) or path in domain.block_devices


@lru_cache(maxsize=128)  # each is asked for two or three times in a look
def _drives(
    disks: tuple[Disk, ...], role: Role, form: Form, block_devices: frozenset[str]
) -> DomainDrives:
    return domain_drives(disks, role, form, is_block_device=block_devices.__contains__)


#: The first QEMU that can be told the name in its peer's certificate, and for how long to try to connect.
REPLICATING_QEMU = (7, 0, 0)


def refusal(domain: Domain, qemu: tuple[int, int, int] | None = None) -> str | None:
    """Return why the domain can't replicate as it is described, None if it can.

    :param qemu: the version of its QEMU, None while there is none to ask.
    """
    disks = [d.disk for d in domain.devices.values() if d.disk and d.disk.colo_enable]
    if disks and domain.type not in {None, "hvm"}:
        return (
            f"{libxl_domain_path(domain.domid)}/type is {domain.type}: only the disks of an hvm guest can be "
            f"replicated, another writes past QEMU's quorum"
        )
    if disks and qemu and qemu < REPLICATING_QEMU and domain.wanted_role is not Role.NONE:
        return (
            f"its QEMU is {_dotted(qemu)}, and replication needs {_dotted(REPLICATING_QEMU)} or later: have "
            f"qemu.binary name a later one, and restart the domain"
        )
    return _no_group(disks)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _no_group(disks: Sequence[Disk]) -> str | None:
    """Return why these disks can't be one consistency group, None if they can."""
    ends = {(disk.colo_host, disk.colo_port) for disk in disks}
    if len(ends) > 1:
        shown = " and ".join(f"{disk.vdev} {disk.colo_host}:{disk.colo_port}" for disk in disks)
        return (
            f"the COLO disks of a domain have one NBD server, and these have several: {shown}; "
            f"give all the same colo-host and colo-port"
        )
    return None


def another_guest(launch: Launch | None, domain: Domain) -> bool:
    """Whether the domid has come to another guest than the one that the QEMU was started for."""
    return bool(launch and launch.uuid and domain.uuid and launch.uuid != domain.uuid)


def plan(domain: Domain, machine: Machine, policy: Policy, missing: Mapping[int, BadImage]) -> Plan:
    """Return what to do for one domain and what to publish of it.

    A running QEMU is ended only when its domain or the last of its disks has gone or is leaving, or
    when another domain has taken the domid; with :attr:`Policy.restart` it is replaced when its drives
    changed, and not when only the form did in which they are written. A disk that became unreadable
    never ends or replaces it. A QEMU that has not greeted yet runs no guest: it follows every change, so that
    no disk added meanwhile is left out.
    """
    running = machine.launch if machine.may_hold_guest else None
    staying = policy.staying(domain)
    if another_guest(running, domain) or not domain.exists or not staying:
        running = None
    if not domain.managed and not running:
        return Plan(
            None,
            None if machine.phase is Phase.ABSENT else _status(DomainState.ENDING, machine, {}),
        )

    if running and domain.promoted and domain.wanted_role is Role.PRIMARY:
        domain = domain._replace(role=running.role)
    drives = drives_of(domain, policy, missing, running)
    devices = device_states(staying, drives, missing)
    launch, state, error = _choose(domain, machine, policy, running, drives, devices)
    leaving = {d: device for d, device in domain.devices.items() if d not in staying}
    # What QEMU has is known as a whole: it has let go once it runs with exactly what stays.
    held = (
        machine.launch is not None and machine.alive and machine.launch.drives != drives.arguments
    )
    kept = held and launch is not None and launch == machine.launch
    why = _why_kept(domain, policy, devices) if kept else None
    devices |= dict.fromkeys(leaving, (DeviceState.LEAVING, why))
    closing = (devid for devid, device in leaving.items() if device.state == CLOSING)
    closed = () if held or domain.foreign else tuple(sorted(closing))
    culprits = {devid: image.node for devid, image in missing.items()}
    culprits |= {devid: error.node for devid, error in drives.errors.items()}
    return Plan(launch, _status(state, machine, devices, error), closed, culprits)


def _why_kept(
    domain: Domain, policy: Policy, devices: Mapping[int, tuple[DeviceState, str | None]]
) -> str:
    wrong = [
        domain.devices[devid].vdev or str(devid)
        for devid, (at, _) in sorted(devices.items())
        if at is DeviceState.ERROR
    ]
    if domain.role_error:
        wrong.append("the role")
    if not wrong or not policy.restart:
        return _KEPT
    return _KEPT_FOR_ERRORS.format(wrong=" and ".join(wrong))


def _choose(  # noqa: PLR0911 - one return a row reads best
    domain: Domain,
    machine: Machine,
    policy: Policy,
    running: Launch | None,
    drives: DomainDrives,
    devices: Mapping[int, tuple[DeviceState, str | None]],
) -> tuple[Launch | None, DomainState, str | None]:
    memory = policy.memory or domain.memory
    wanted = Launch(
        domain.domid, domain.name, domain.uuid, memory, domain.wanted_role, drives.arguments
    )
    broken = [error for _, (at, error) in sorted(devices.items()) if at is DeviceState.ERROR]
    if running:
        return _choose_running(domain, machine, policy, running, wanted, settled=not broken)
    if machine.phase is Phase.ENDING or machine.may_hold_guest:
        return None, DomainState.ENDING, None
    if domain.role_error:
        return None, DomainState.WAITING, domain.role_error
    if domain.foreign:
        return None, DomainState.FOREIGN, domain.foreign
    if domain.gone_pid and not policy.restart:
        return None, DomainState.FAILED, _GONE.format(pid=domain.gone_pid)
    if lack := _lack(wanted, broken):
        return None, DomainState.WAITING, lack
    if machine.phase is Phase.FAILED and machine.launch == wanted:
        return wanted, DomainState.FAILED, f"{machine.error}{_AGAIN}"
    return wanted, DomainState.LAUNCHING, None


def _choose_running(
    domain: Domain,
    machine: Machine,
    policy: Policy,
    running: Launch,
    wanted: Launch,
    *,
    settled: bool,
) -> tuple[Launch | None, DomainState, str | None]:
    """Choose for a QEMU that may run a guest; ``settled`` when all of its disks can be read."""
    if not settled or domain.role_error or running.drives == wanted.drives:
        at = DomainState.RUNNING if machine.phase is Phase.RUNNING else DomainState.LAUNCHING
        return running, at, domain.role_error or machine.error or domain.foreign
    if not wanted.drives:  # of its disks none is left, though the guest has others
        return None, DomainState.ENDING, None
    if domain.foreign or not domain.managed or not policy.restart:
        return running, DomainState.OUTDATED, domain.foreign or _OUTDATED
    return wanted, DomainState.LAUNCHING, None


def _lack(wanted: Launch, broken: Sequence[str | None]) -> str | None:
    """Return what is missing to start it; ``broken`` says what is wrong with its disks."""
    if not wanted.memory:
        return _NO_MEMORY.format(domid=wanted.domid)
    if wanted.drives:
        return None
    why = f": {'; '.join(map(str, broken))}" if broken else ""
    return f"no disk can be given to QEMU{why}"


_OUTDATED = "QEMU runs with other drives than the nodes describe; restart the domain to change them"
_NO_MEMORY = (
    "/local/domain/{domid}/memory/static-max does not say how much memory the domain has, and QEMU must "
    "not guess it: let the toolstack write it, or set qemu.memory"
)
_BYPASSED = (
    "the guest's PV driver has connected (backend state 4) and writes past the quorum: start the guest "
    "with xen_emul_unplug=never"
)
_KEPT = "QEMU still has it, and is not restarted without it: restart the domain"
_KEPT_FOR_ERRORS = "QEMU still has it, and is not restarted while there are errors: mend {wrong}"
_AGAIN = "; mend that, then reload xencolod: it starts QEMU again"
_GONE = (
    "its device model, pid {pid}, died; a device model can't be replaced under its guest: restart "
    "the domain, or set qemu.restart"
)


def _status(
    state: DomainState,
    machine: Machine,
    devices: Mapping[int, tuple[DeviceState, str | None]],
    error: str | None = None,
) -> DomainStatus:
    alive = machine.phase is Phase.ENDING or machine.may_hold_guest
    role = machine.launch.role if alive and machine.launch else None
    return DomainStatus(state, role, error, machine.pid if alive else None, devices)
