"""What is logged of domains and their disks: each thing once, when it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xencolo.device import Device
from xencolo.plan import BadImage, Domain, Plan
from xencolo.status import ROLE, DeviceState, DomainState, DomainStatus, role_path
from xencolod.log import Logger, emit

#: What is no error of the disk.
_REASONS = {DeviceState.SKIPPED.value, DeviceState.LEAVING.value}


@dataclass(slots=True)
class Told:
    """What was told of a domain last: the difference to it is what gets logged."""

    devices: Mapping[int, Device] = field(default_factory=dict)
    complaints: Mapping[tuple[int, str, str], str] = field(default_factory=dict)
    status: DomainStatus | None = None
    role_error: str | None = None

    def tell(
        self, log: Logger, view: Domain, decided: Plan, missing: Mapping[int, BadImage]
    ) -> None:
        """Log what is new.

        :param missing: what is wrong with the images of a disk, by devid.
        """
        log = log.bind(domid=view.domid)
        self._tell_devices(log, view)
        self._tell_complaints(log, view, decided, missing)
        if view.role_error and view.role_error != self.role_error:
            emit(
                log,
                "domain.role_error",
                path=role_path(view.domid),
                node=ROLE,
                error=view.role_error,
            )
        self.role_error = view.role_error
        self.devices = view.devices
        before, self.status = self.status, decided.status
        status = decided.status
        if status is None:
            if before:
                emit(log, "domain.gone")
            return
        if before is None or before.state is not status.state:
            emit(
                log,
                "domain.state",
                state=status.state.value,
                before=before.state.value if before else None,
                role=view.wanted_role.value,
                error=status.error,
            )
            if status.state is DomainState.FOREIGN:
                emit(log, "domain.foreign", reason=view.foreign)

    def _tell_devices(self, domain_log: Logger, view: Domain) -> None:
        for devid, device in view.devices.items():
            log = domain_log.bind(devid=devid, vdev=device.vdev)
            old = self.devices.get(devid)
            if device.disk and (old is None or old.disk != device.disk):
                emit(
                    log,
                    "device.changed" if old and old.disk else "device.found",
                    backend=device.paths.backend,
                    colo=device.disk.colo_enable,
                )
            if device.suspicions and (old is None or old.suspicions != device.suspicions):
                emit(log, "device.suspicious", reason="; ".join(device.suspicions))
        for devid in self.devices.keys() - view.devices.keys():
            gone = self.devices[devid]
            log = domain_log.bind(devid=devid, vdev=gone.vdev)
            emit(log, "device.gone", backend=gone.paths.backend)

    def _tell_complaints(
        self, domain_log: Logger, view: Domain, decided: Plan, missing: Mapping[int, BadImage]
    ) -> None:
        """Log each error of each disk once, and once more when it is gone."""
        now: dict[tuple[int, str, str], str] = {}
        found = [(d, c) for d in view.devices.values() for c in _complaints(d, decided, missing)]
        for device, complaint in found:
            key = device.paths.devid, complaint.path, complaint.kind
            now[key] = complaint.error
            if self.complaints.get(key) != complaint.error:
                log = domain_log.bind(devid=device.paths.devid, vdev=device.vdev)
                _tell_complaint(log, complaint)
        wrong = {(devid, path) for devid, path, _ in now}
        before = {(devid, path) for devid, path, kind in self.complaints if kind not in _REASONS}
        for devid, path in sorted(before - wrong):
            if devid in view.devices:
                log = domain_log.bind(devid=devid, vdev=view.devices[devid].vdev)
                emit(log, "device.mended", path=path, node=path.rpartition("/")[2])
        self.complaints = now


class _Complaint(NamedTuple):
    """Something that is wrong with a disk; ``path`` is the node's whole path."""

    path: str
    node: str
    kind: str
    error: str


def _tell_complaint(log: Logger, complaint: _Complaint) -> None:
    path, node, kind, error = complaint
    if kind == DeviceState.SKIPPED.value:
        emit(log, "device.skipped", reason=error)
    elif kind == DeviceState.LEAVING.value:
        emit(log, "device.kept", reason=error)
    else:
        emit(log, "device.error", path=path, node=node, kind=kind, error=error)


def _complaints(device: Device, decided: Plan, missing: Mapping[int, BadImage]) -> list[_Complaint]:
    """Return all that is wrong with a disk."""
    if device.errors:
        return [_Complaint(e.path, e.node, e.kind, str(e)) for e in device.errors]
    devid, status = device.paths.devid, decided.status
    if status is None or devid not in status.devices:
        return []
    state, error = status.devices[devid]
    if state is DeviceState.READY or error is None:
        return []
    kind = "image" if devid in missing else "drive"
    if state in _REASONS:
        kind = state.value
    node = decided.culprits.get(devid, "params")
    return [_Complaint(f"{device.paths.libxl}/{node}", node, kind, error)]
