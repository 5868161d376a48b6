"""What is published of a domain, and the node that says what should be: one table, as for the disks.

They stand under ``/libxl/<domid>/colo``, which no guest can write and which libxl removes with the domain.
Precedent: libxl's ``/libxl/<domid>/remus``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from xencolo.disk import Role
from xencolo.errors import WrongNode
from xencolo.paths import colo_path

ROLE = "role"
STATE = "state"
ROLE_IN_FORCE = "role-in-force"
ERROR = "error"
QEMU_PID = "qemu-pid"


class DomainState(StrEnum):
    """How a managed domain is."""

    WAITING = "waiting"
    LAUNCHING = "launching"
    RUNNING = "running"
    OUTDATED = "outdated"
    ENDING = "ending"
    FAILED = "failed"
    FOREIGN = "foreign"


class DeviceState(StrEnum):
    """How one of its devices is."""

    READY = "ready"
    SKIPPED = "skipped"
    ERROR = "error"


#: What each state tells the operator.
STATE_MEANINGS: Mapping[StrEnum, str] = {
    DomainState.WAITING: "QEMU can't be started yet, for want of a disk, a role or the size of its memory",
    DomainState.LAUNCHING: "QEMU is being started, or will be after a pause",
    DomainState.RUNNING: "QEMU runs with the drives that the nodes describe; with those it has, "
    "where a disk is in `error`",
    DomainState.OUTDATED: "QEMU runs, with other drives than the nodes describe now",
    DomainState.ENDING: "QEMU is being ended",
    DomainState.FAILED: "QEMU died or would not start; `error` says why",
    DomainState.FOREIGN: "somebody else runs the domain's device model; it is left alone",
    DeviceState.READY: "its nodes are right and QEMU has it or will get it",
    DeviceState.SKIPPED: "its nodes are right and QEMU does not emulate it; `error` says why",
    DeviceState.ERROR: "it could not be read or can't be given to QEMU; `error` says why",
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
        "the toolstack",
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
        f"/libxl/$DOMID/colo/device/$DEVID/{STATE}",
        _words(DeviceState),
        "xencolod",
        "How one disk is.",
    ),
    StatusNode(
        f"/libxl/$DOMID/colo/device/$DEVID/{ERROR}",
        "STRING",
        "xencolod",
        "What is wrong with it, or why it is skipped; absent when all is well.",
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


#: What ``domain restore`` leaves, by the stream that the domain is restored from: only a COLO stream
#: makes a secondary (libxl's ``colo_restore_enable``); the others make what creating the domain would.
RESTORED_ROLE: Mapping[str, Role | None] = {
    "none": None,
    "remus": None,
    "colo": Role.SECONDARY,
}


class DomainStatus(NamedTuple):
    """All that is published of one domain.

    :ivar devices: state and error by devid.
    """

    state: DomainState
    role_in_force: Role | None
    error: str | None
    qemu_pid: int | None
    devices: Mapping[int, tuple[DeviceState, str | None]]


def status_values(domid: int, status: DomainStatus) -> dict[str, str]:
    """Return the nodes that say this, path to value."""
    base = colo_path(domid)
    values = {
        f"{base}/{STATE}": status.state.value,
        f"{base}/{ROLE_IN_FORCE}": status.role_in_force,
        f"{base}/{ERROR}": status.error,
        f"{base}/{QEMU_PID}": status.qemu_pid and str(status.qemu_pid),
    }
    for devid, (state, error) in status.devices.items():
        values[f"{base}/device/{devid}/{STATE}"] = state.value
        values[f"{base}/device/{devid}/{ERROR}"] = error
    return {path: value for path, value in values.items() if value}


__all__ = [
    "RESTORED_ROLE",
    "STATE_MEANINGS",
    "STATUS_NODES",
    "DeviceState",
    "DomainState",
    "DomainStatus",
    "parse_role",
    "status_values",
]
