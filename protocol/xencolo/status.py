"""What is published of a domain, and the node that says what should be: one table, as for the disks.

They stand under ``/libxl/<domid>/colo``, which no guest can write and which libxl removes with the domain.
Precedent: libxl's ``/libxl/<domid>/remus``.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from xencolo import requests
from xencolo.disk import Role
from xencolo.errors import WrongNode
from xencolo.paths import colo_path
from xencolo.requests import Request
from xencolo.wire import Permission

ROLE = "role"
STATE = "state"
DEVICE = "device"
ROLE_IN_FORCE = "role-in-force"
ERROR = "error"
QEMU_PID = "qemu-pid"
COMMAND = "command"
ANSWER = "answer"
GENERATION = "generation"
RECORD = "record"
PEER = "peer"
SESSION = "session"
CHECKPOINT = "checkpoint"
CHECKPOINT_TIME = "checkpoint-time"
RESYNC_DONE = "resync-done"
RESYNC_TOTAL = "resync-total"
RESYNC_RATE = "resync-rate"
RESYNC_LEFT = "resync-left"

_NUMBER = re.compile(r"\d{1,19}", re.ASCII)


class DomainState(StrEnum):
    """How a managed domain is."""

    WAITING = "waiting"
    LAUNCHING = "launching"
    RUNNING = "running"
    STANDALONE = "standalone"
    RESYNCING = "resyncing"
    LISTENING = "listening"
    REPLICATING = "replicating"
    DEGRADED = "degraded"
    FAILING_OVER = "failing-over"
    PROMOTED = "promoted"
    OUTDATED = "outdated"
    ENDING = "ending"
    FAILED = "failed"
    FOREIGN = "foreign"


class DeviceState(StrEnum):
    """How one of its devices is."""

    READY = "ready"
    BYPASSED = "bypassed"
    SKIPPED = "skipped"
    ERROR = "error"
    LEAVING = "leaving"


#: The states in which a QEMU is up.
QEMU_RUNS = frozenset(
    {
        DomainState.RUNNING,
        DomainState.STANDALONE,
        DomainState.RESYNCING,
        DomainState.LISTENING,
        DomainState.REPLICATING,
        DomainState.DEGRADED,
        DomainState.FAILING_OVER,
        DomainState.PROMOTED,
        DomainState.OUTDATED,
    }
)

#: What each state tells the operator.
STATE_MEANINGS: Mapping[StrEnum, str] = {
    DomainState.WAITING: "QEMU can't be started yet, for want of a disk, a role or the size of its memory",
    DomainState.LAUNCHING: "QEMU is being started, or will be after a pause",
    DomainState.RUNNING: "QEMU runs with the drives that the nodes describe; with those it has, "
    "where a disk is in `error`; none of its disks is a COLO disk, or QEMU does not answer and `error` "
    "says why",
    DomainState.STANDALONE: "a primary without a secondary, as no peer was reached yet or by "
    "`detach`: its disks have one copy",
    DomainState.RESYNCING: "a primary copies its disks to the secondary; the `resync-` nodes say how "
    "far it is",
    DomainState.LISTENING: "a secondary serves its disks and waits for the primary",
    DomainState.REPLICATING: "every write goes to both hosts; `checkpoint` tells the last common "
    "moment",
    DomainState.DEGRADED: "replication broke: the guest's writes reach this host alone; `error` says "
    "why",
    DomainState.FAILING_OVER: "a secondary takes over: what it buffered is being written to its disks",
    DomainState.PROMOTED: "a secondary took over: it runs as the primary, without a secondary",
    DomainState.OUTDATED: "QEMU runs, with other drives than the nodes describe now",
    DomainState.ENDING: "QEMU is being ended",
    DomainState.FAILED: "QEMU died or would not start; `error` says why",
    DomainState.FOREIGN: "somebody else runs the domain's device model; it is left alone",
    DeviceState.READY: "its nodes are right and QEMU has it or will get it",
    DeviceState.BYPASSED: "the guest's PV driver writes past the emulated disk, so nothing of it is "
    "replicated; `error` says what to do",
    DeviceState.SKIPPED: "its nodes are right and QEMU does not emulate it; `error` says why",
    DeviceState.ERROR: "it could not be read or can't be given to QEMU; `error` says why",
    DeviceState.LEAVING: "it is being removed and its backend is closed once QEMU has let go of it; "
    "`error` says why QEMU does not",
}


class StatusNode(NamedTuple):
    """A row: path in xenstore-paths notation, values, who writes it, and what it means."""

    path: str
    values: str
    writer: str
    meaning: str


def _words(words: type[StrEnum]) -> str:
    return "(" + " | ".join(f'"{word}"' for word in words) + ")"


STATUS_NODES = (
    StatusNode(
        f"/libxl/$DOMID/colo/{ROLE}",
        _words(Role),
        "the toolstack and, at a failover, `primary` by xencolod",
        "The role that the domain should have. Absent: `primary` if it has a COLO disk, as a "
        "domain that was created and not restored; else xencolod leaves the domain alone.",
    ),
    StatusNode(f"/libxl/$DOMID/colo/{STATE}", _words(DomainState), "xencolod", "How it is."),
    StatusNode(
        f"/libxl/$DOMID/colo/{ROLE_IN_FORCE}",
        _words(Role),
        "xencolod",
        "The role whose drives its QEMU has; absent while there is no QEMU.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{ERROR}", "STRING", "xencolod", "Why, where the state needs a reason."
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{QEMU_PID}", "INTEGER", "xencolod", "Pid of the QEMU that it runs."
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{COMMAND}",
        "STRING",
        "the toolstack",
        "A command, as the section on commands has them. xencolod empties it when it takes it, in one "
        "transaction with the answer.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{ANSWER}",
        "STRING",
        "xencolod",
        "How the command goes that it took last: `WORD [id=HEX] (running | done [TEXT] | failed: TEXT)`, "
        "WORD being `unknown` if there was no such command.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{GENERATION}",
        "INTEGER",
        "xencolod",
        "Which life of the disks this is; each failover begins the next one.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{RECORD}",
        "PATH",
        "xencolod",
        "The file that keeps the generation, and whether the disks hold a checkpoint. While this node names "
        "it and it is gone, nothing is begun: remove the node to begin anew at generation 1.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{PEER}", "STRING", "xencolod", "The host at the other end, HOST:PORT."
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{SESSION}",
        "STRING",
        "xencolod",
        "The replication session, the same on both hosts; absent while there is none.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{CHECKPOINT}",
        "INTEGER",
        "xencolod",
        "Number of the last checkpoint, counted from 1 in the session.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{CHECKPOINT_TIME}",
        "INTEGER",
        "xencolod",
        "When it was taken, in seconds since the epoch.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{RESYNC_DONE}",
        "INTEGER",
        "xencolod",
        "Bytes that the resync has copied, of all disks together; absent, as the next three, while "
        "there is none.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/{RESYNC_TOTAL}",
        "INTEGER",
        "xencolod",
        "Bytes that it has to copy; more while the guest writes.",
    ),
    StatusNode(f"/libxl/$DOMID/colo/{RESYNC_RATE}", "INTEGER", "xencolod", "Bytes per second."),
    StatusNode(
        f"/libxl/$DOMID/colo/{RESYNC_LEFT}",
        "INTEGER",
        "xencolod",
        "Seconds left at that rate; absent while it is not known.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/device/$DEVID/{STATE}",
        _words(DeviceState),
        "xencolod",
        "How one disk is.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/device/$DEVID/{ERROR}",
        "STRING",
        "xencolod",
        "What is wrong with it, why it is skipped or does not leave; absent when all is well.",
    ),
    StatusNode(
        "~/error/backend/qdisk/$DOMID/$DEVID/error",
        "STRING",
        "xencolod",
        "The same, where Xen's tools look for the errors of a backend (~ is the backend's domain).",
    ),
    StatusNode(
        "/local/domain/$DOMID/image/device-model-pid",
        "INTEGER",
        "xencolod or libxl",
        "Pid of the domain's device model. If it is alive, a QEMU and not xencolod's own, the "
        "domain is `foreign`.",
    ),
    StatusNode(
        "/local/domain/0/device-model/$DOMID/state",
        '("running")',
        "xencolod or libxl",
        "How the device model is; absent while there is none.",
    ),
    StatusNode(
        "~/xencolod",
        "STRING",
        "xencolod",
        "Version of the xencolod that first saw this store (~ is the domain that it runs in). A store "
        "without it has lost what it held: no QEMU is ended for what is absent in it.",
    ),
    StatusNode(
        "~/xencolod/$DOMID",
        "STRING",
        "xencolod",
        "Empty. That store had lost this domain and has not told all of it again: its QEMU is left alone.",
    ),
    StatusNode(
        "/local/domain/$DOMID/memory/static-max",
        "INTEGER",
        "libxl",
        "The domain's memory in KiB. QEMU is given it less `videoram`, in whole MiB, as libxl does, "
        "unless qemu.memory is set; without either the domain is `waiting`.",
    ),
    StatusNode(
        "/local/domain/$DOMID/memory/videoram",
        "INTEGER",
        "libxl",
        "What of it is video memory, in KiB; QEMU adds that itself. Absent or negative is none.",
    ),
    StatusNode(
        "/libxl/$DOMID/dm-version",
        "STRING",
        "libxl",
        "Which device model libxl starts for the domain. While it names one, xencolod starts none.",
    ),
)


def role_path(domid: int) -> str:
    """Return the node that says which role a domain should have."""
    return f"{colo_path(domid)}/{ROLE}"


def parse_role(domid: int, value: bytes | None) -> Role | None:
    """Return the role in the role node, None where it is absent.

    :raises WrongNode: it holds no role.
    """
    if value is None:
        return None
    try:
        return Role(value.decode("utf-8", "backslashreplace"))
    except ValueError:
        shown = value[:40].decode("utf-8", "backslashreplace")
        raise WrongNode(
            colo_path(domid),
            ROLE,
            f"{shown!r} is not {' or '.join(Role)}; set it with xencolo role",
        ) from None


def role_requests(domid: int, role: Role) -> list[Request]:
    """Return what sets the role, in a node that dom0 alone may write, whoever could before."""
    node = role_path(domid)
    return [requests.write(node, role), requests.set_permissions(node, [Permission("n", 0)])]


#: What ``domain restore`` leaves, by the stream that the domain is restored from: only a COLO stream
#: makes a secondary (libxl's ``colo_restore_enable``); the others make what creating the domain would.
RESTORED_ROLE: Mapping[str, Role | None] = {
    "none": None,
    "remus": None,
    "colo": Role.SECONDARY,
}


class Resync(NamedTuple):
    """How far a resync is, all disks of the domain together.

    :ivar done: bytes.
    :ivar total: bytes.
    :ivar rate: bytes per second.
    :ivar left: seconds, None while they are not known.
    """

    done: int
    total: int
    rate: int
    left: int | None


#: Seconds after which the rate so far tells what is to come: QEMU begins with a burst, whatever its limit is.
_SETTLED = 1.0


def resync_after(seconds: float, done: int, total: int) -> Resync:
    """Return how far a resync is that has copied ``done`` of ``total`` bytes in these seconds."""
    rate = int(done / seconds) if seconds > 0 else 0
    left = int((total - done) / rate) if rate and seconds >= _SETTLED else None
    return Resync(done, total, rate, left)


class ReplicationStatus(NamedTuple):
    """What is published of a domain with COLO disks; None where there is nothing to say.

    :ivar peer: ``HOST:PORT``.
    :ivar record: path of the record's file.
    :ivar checkpoint: number of the last one.
    :ivar checkpoint_time: seconds since the epoch.
    """

    generation: int | None = None
    peer: str | None = None
    session: str | None = None
    checkpoint: int | None = None
    checkpoint_time: int | None = None
    resync: Resync | None = None
    record: str | None = None


class DomainStatus(NamedTuple):
    """All that is published of one domain.

    :ivar devices: state and error by devid.
    :ivar replication: None for a domain without COLO disks.
    """

    state: DomainState
    role_in_force: Role | None
    error: str | None
    qemu_pid: int | None
    devices: Mapping[int, tuple[DeviceState, str | None]]
    replication: ReplicationStatus | None = None


def _replication_values(replication: ReplicationStatus) -> dict[str, str | int | None]:
    done, total, rate, left = replication.resync or (None, None, None, None)
    return {
        GENERATION: replication.generation,
        PEER: replication.peer,
        SESSION: replication.session,
        CHECKPOINT: replication.checkpoint,
        CHECKPOINT_TIME: replication.checkpoint_time,
        RESYNC_DONE: done,
        RESYNC_TOTAL: total,
        RESYNC_RATE: rate,
        RESYNC_LEFT: left,
        RECORD: replication.record,
    }


#: The nodes of :class:`ReplicationStatus`.
REPLICATION_NODES = tuple(_replication_values(ReplicationStatus()))


def parse_replication(values: Mapping[str, str | None]) -> ReplicationStatus | None:
    """Return what the nodes say, None where they say nothing; what is no number counts as absent.

    :param values: by the names in `REPLICATION_NODES`.
    """
    numbers = {name: int(v) for name, v in values.items() if v and _NUMBER.fullmatch(v)}
    total = numbers.get(RESYNC_TOTAL)
    resync = Resync(
        numbers.get(RESYNC_DONE, 0),
        total or 0,
        numbers.get(RESYNC_RATE, 0),
        numbers.get(RESYNC_LEFT),
    )
    found = ReplicationStatus(
        numbers.get(GENERATION),
        values.get(PEER),
        values.get(SESSION),
        numbers.get(CHECKPOINT),
        numbers.get(CHECKPOINT_TIME),
        None if total is None else resync,
        values.get(RECORD),
    )
    return None if found == ReplicationStatus() else found


def status_values(domid: int, status: DomainStatus) -> dict[str, str]:
    """Return the nodes that say this, path to value."""
    base = colo_path(domid)
    values = {
        f"{base}/{STATE}": status.state.value,
        f"{base}/{ROLE_IN_FORCE}": status.role_in_force,
        f"{base}/{ERROR}": status.error,
        f"{base}/{QEMU_PID}": status.qemu_pid and str(status.qemu_pid),
    }
    if status.replication:
        for name, value in _replication_values(status.replication).items():
            values[f"{base}/{name}"] = None if value is None else str(value)
    for devid, (state, error) in status.devices.items():
        values[f"{base}/{DEVICE}/{devid}/{STATE}"] = state.value
        values[f"{base}/{DEVICE}/{devid}/{ERROR}"] = error
    return {path: value for path, value in values.items() if value}
