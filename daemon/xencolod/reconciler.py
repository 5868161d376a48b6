"""One cycle after the other: read the dirty, plan, perform, say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from xencolo.device import Device
from xencolo.drives import Form
from xencolo.errors import VdevError, XenstoreError
from xencolo.paths import backend_root, devid_to_vdev, domain_path, hint
from xencolo.plan import Domain, Machine, Phase, Plan, Policy, drives_of, plan
from xencolo.status import DeviceState, DomainState, DomainStatus
from xencolod.config import Config
from xencolod.devices import domids, trusted_domids
from xencolod.log import emit
from xencolod.process import domains_with_qemu, files
from xencolod.publish import Publisher
from xencolod.supervisor import Settings, Supervisor
from xencolod.views import missing_images, read_domains
from xencolod.xenstore import Client, Watch, read

#: What no watch tells of is looked at this often, in seconds: an image that was missing, the end of
#: somebody else's device model, the size of a domain's memory.
#: What could not be published is tried again then.
_RECHECK = 5.0
#: A pass that xenstored failed, or that found its store empty, is repeated after this many seconds.
_RETRY = 0.5


class Dirty:
    """Domains to look at: hints fall together here, so a flood of events is one look."""

    def __init__(self) -> None:
        self.everything = False
        self._domids: set[int] = set()
        self._marked = trio.Event()

    def mark(self, domid: int | None = None) -> None:
        """Mark one domain, or all."""
        if domid is None:
            self.everything = True
        else:
            self._domids.add(domid)
        self._marked.set()

    async def wait(self, timeout: float) -> None:
        """Wait until something is marked, ``timeout`` seconds at the most."""
        with trio.move_on_after(timeout):
            await self._marked.wait()

    def take(self) -> tuple[bool, set[int]]:
        """Return whether all are marked, and the marked ones; nothing is marked any more."""
        taken = self.everything, self._domids
        self.everything, self._domids = False, set()
        self._marked = trio.Event()
        return taken


@dataclass
class _Known:
    """What the last cycle saw of a domain: the difference to it is what gets logged."""

    supervisor: Supervisor
    scope: trio.CancelScope
    devices: Mapping[int, Device] = field(default_factory=dict)
    complaints: Mapping[tuple[int, str, str], str] = field(default_factory=dict)
    suspicions: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    status: DomainStatus | None = None
    role_error: str | None = None
    recheck: bool = False
    unsaid: bool = False


class Reconciler:
    """Compares what xenstore says with the QEMUs that are, and brings these to it."""

    def __init__(self, client: Client, settings: Settings, nursery: trio.Nursery) -> None:
        self._client = client
        self._settings = settings
        self._nursery = nursery
        self._log = settings.log
        self._known: dict[int, _Known] = {}
        self._publisher = Publisher(client, self._config.daemon.domid)
        self.dirty = Dirty()
        self.first_pass = trio.Event()
        self.counts = (0, 0)
        # Domains that were known when the store was seen empty, and have not been seen in it since.
        self._unproven: set[int] = set()
        self._lost: str | None = None

    @property
    def _config(self) -> Config:
        return self._settings.config

    def _policy(self) -> Policy:
        qemu = self._config.qemu
        return Policy(qemu.restart, Form(qemu.form), qemu.memory)

    # -- events ----------------------------------------------------------------------------------

    def roots(self) -> tuple[str, ...]:
        """Return what is watched: the backends, the toolstack's copies with the roles, and deaths."""
        return (backend_root(self._config.daemon.domid), "/libxl", "@releaseDomain")

    async def follow(self, watch: Watch) -> None:
        """Turn watch events into marks, for ever. They are hints: only their paths count."""
        while True:
            for path in await watch.take():
                self._mark(path)

    def _mark(self, path: str) -> None:
        if path == "@releaseDomain":
            for domid in self._known:
                self.dirty.mark(domid)
        elif about := hint(path):
            self.dirty.mark(about.domid)

    def connection_changed(self, error: XenstoreError | None) -> None:
        """Note that xenstored came or went; what was written to it counts no more."""
        if error is None:
            self._lost = None
            emit(self._log, "xenstore.connected", socket=self._client.path)
            self._publisher.forget()
            self.dirty.mark()
        elif str(error) != self._lost:  # once, and not at each attempt
            self._lost = str(error)
            emit(self._log, "xenstore.lost", socket=self._client.path, error=self._lost)

    def start_over(self) -> None:
        """Look at everything again, at what was given up too."""
        for known in self._known.values():
            known.supervisor.retry()
        self.dirty.mark()

    # -- cycles ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look whenever something is marked, and at everything at times (XSA-115: events get lost)."""
        await self._adopt()
        rescan_at = trio.current_time() + self._config.daemon.rescan
        while True:
            await self.dirty.wait(self._patience(rescan_at))
            if trio.current_time() >= rescan_at:
                self.dirty.mark()
            for domid, known in self._known.items():
                if known.recheck:
                    self.dirty.mark(domid)
            if self.dirty.everything:
                rescan_at = trio.current_time() + self._config.daemon.rescan
            await self._client.wait_connected()
            everything, domains = self.dirty.take()
            try:
                await self._cycle(domains, everything=everything)
            except XenstoreError as error:
                emit(self._log, "xenstore.failed", error=str(error))
                self._mark_again(domains, everything=everything)
                await trio.sleep(_RETRY)

    def _patience(self, rescan_at: float) -> float:
        left = max(0.0, rescan_at - trio.current_time())
        return min(left, _RECHECK) if any(k.recheck for k in self._known.values()) else left

    def _mark_again(self, domains: Iterable[int], *, everything: bool) -> None:
        for domid in domains:
            self.dirty.mark(domid)
        if everything:
            self.dirty.mark()

    async def _adopt(self) -> None:
        """Find the QEMUs of an earlier xencolod before anything is decided."""
        where = files(self._config, 0)
        for domid in await trio.to_thread.run_sync(domains_with_qemu, where.runtime):
            await self._supervise(domid)

    async def _cycle(self, domains: set[int], *, everything: bool) -> None:
        started = trio.current_time()
        own = self._config.daemon.domid
        if await read(self._client, domain_path(own)) is None:
            await self._wait_filled(domain_path(own))
            self.dirty.mark()
            return
        if everything:
            domains = domains | set(await domids(self._client, own)) | self._known.keys()
        if not domains:
            self._done(started, 0, 0)
            return
        ours = {domid: known.supervisor.machine.pid for domid, known in self._known.items()}
        views = await read_domains(
            self._client,
            sorted(domains),
            own,
            trusted_domids(own),
            ours,
            xen=self._settings.xen,
        )
        self._unproven -= {domid for domid, view in views.items() if view.exists}
        views = {domid: view for domid, view in views.items() if domid not in self._unproven}
        missing = await self._missing_images(views.values())
        async with trio.open_nursery() as nursery:
            for view in views.values():
                nursery.start_soon(self._settle, view, missing.get(view.domid, {}))
        self._done(started, len(views), sum(len(view.devices) for view in views.values()))

    async def _wait_filled(self, home: str) -> None:
        """Wait until the store knows this domain, without a deadline: nothing can be done before.

        An empty store has lost what it held: until a domain is seen in it again, its absence does not
        tell that it has gone, and its QEMU is left alone.

        :raises XenstoreError: xenstored failed.
        """
        emit(self._log, "xenstore.empty", path=home)
        self._unproven = set(self._known)
        while await read(self._client, home) is None:
            await trio.sleep(_RETRY)

    def _done(self, started: float, domains: int, devices: int) -> None:
        seconds = round(trio.current_time() - started, 4)
        self.counts = (
            len([known for known in self._known.values() if known.status]),
            sum(len(known.devices) for known in self._known.values()),
        )
        if not self.first_pass.is_set():
            self.first_pass.set()
            emit(self._log, "daemon.ready", domains=domains, devices=devices, seconds=seconds)
        emit(self._log, "reconcile.done", domains=domains, devices=devices, seconds=seconds)

    async def _missing_images(self, views: Iterable[Domain]) -> dict[int, dict[int, str]]:
        """Look for the images of the domains whose QEMU does not have all their disks yet."""
        policy = self._policy()
        wanted = [
            (view.domid, devid, paths)
            for view in views
            if view.managed and not self._has_all(view, policy)
            for devid, paths in drives_of(view, policy, {}).images.items()
        ]
        if not wanted:
            return {}
        return await trio.to_thread.run_sync(missing_images, wanted)

    def _has_all(self, view: Domain, policy: Policy) -> bool:
        """Whether the QEMU was started with every disk: it keeps them, whatever became of the files."""
        known = self._known.get(view.domid)
        launch = known.supervisor.machine.launch if known else None
        if not known or not launch or known.supervisor.machine.phase is not Phase.RUNNING:
            return False
        return launch.drives == drives_of(view, policy, {}, launch).arguments

    # -- one domain ------------------------------------------------------------------------------

    async def _settle(self, view: Domain, missing: Mapping[int, str]) -> None:
        known = self._known.get(view.domid)
        if known is None and not (view.devices or view.managed or view.published):
            return
        known = known or await self._supervise(view.domid)
        policy = self._policy()
        decided = plan(view, known.supervisor.machine, policy, missing)
        unsized = not (policy.memory or view.memory)
        known.recheck = bool(missing) or (view.managed and (unsized or view.foreign is not None))
        self._say(view, known, decided, missing)
        known.devices = view.devices
        known.supervisor.want(decided.launch)
        try:
            await self._publish(view, known, decided)
        except XenstoreError as error:
            known.recheck = True
            emit(self._log, "xenstore.failed", domid=view.domid, error=str(error))
            return
        if not view.devices and not view.managed and known.supervisor.machine == Machine():
            known.scope.cancel()
            del self._known[view.domid]

    async def _supervise(self, domid: int) -> _Known:
        supervisor = Supervisor(domid, self._settings, self.dirty.mark)
        known = self._known[domid] = _Known(supervisor, trio.CancelScope())

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with known.scope:
                await supervisor.run(task_status=task_status)

        await self._nursery.start(run)
        return known

    async def _publish(self, view: Domain, known: _Known, decided: Plan) -> None:
        said, known.status = known.status is not None or known.unsaid, decided.status
        known.unsaid = True
        if decided.status and view.exists:
            await self._publisher.publish(view.domid, decided.status)
        elif decided.status is None and (said or view.published or not view.devices):
            await self._publisher.withdraw(view.domid)
        known.unsaid = False

    # -- saying ----------------------------------------------------------------------------------

    def _say(self, view: Domain, known: _Known, decided: Plan, missing: Mapping[int, str]) -> None:
        log = self._log.bind(domid=view.domid)
        self._say_devices(view, known)
        self._say_complaints(view, known, decided, missing)
        if view.role_error and view.role_error != known.role_error:
            emit(
                log,
                "domain.role_error",
                path=f"/libxl/{view.domid}/colo/role",
                node="role",
                error=view.role_error,
            )
        known.role_error = view.role_error
        status, before = decided.status, known.status
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

    def _say_devices(self, view: Domain, known: _Known) -> None:
        for devid, device in view.devices.items():
            log = self._log.bind(domid=view.domid, devid=devid, vdev=_vdev(device))
            old = known.devices.get(devid)
            if device.disk and (old is None or old.disk != device.disk):
                emit(
                    log,
                    "device.changed" if old and old.disk else "device.found",
                    backend=device.paths.backend,
                    colo=device.disk.colo_enable,
                )
            if device.suspicions and (old is None or old.suspicions != device.suspicions):
                emit(log, "device.suspicious", reason="; ".join(device.suspicions))
        for devid in known.devices.keys() - view.devices.keys():
            gone = known.devices[devid]
            log = self._log.bind(domid=view.domid, devid=devid, vdev=_vdev(gone))
            emit(log, "device.gone", backend=gone.paths.backend)

    def _say_complaints(
        self, view: Domain, known: _Known, decided: Plan, missing: Mapping[int, str]
    ) -> None:
        """Log each error of each disk once, and once more when it is gone."""
        now: dict[tuple[int, str, str], str] = {}
        for devid, device in view.devices.items():
            log = self._log.bind(domid=view.domid, devid=devid, vdev=_vdev(device))
            for path, node, kind, error in _complaints(device, decided.status, missing):
                now[devid, path, kind] = error
                if known.complaints.get((devid, path, kind)) == error:
                    continue
                if kind == "skipped":
                    emit(log, "device.skipped", reason=error)
                else:
                    emit(log, "device.error", path=path, node=node, kind=kind, error=error)
        wrong = {(devid, path) for devid, path, _ in now}
        before = {(devid, path) for devid, path, kind in known.complaints if kind != "skipped"}
        for devid, path in sorted(before - wrong):
            if devid in view.devices:
                log = self._log.bind(domid=view.domid, devid=devid, vdev=_vdev(view.devices[devid]))
                emit(log, "device.mended", path=path, node=path.rpartition("/")[2])
        known.complaints = now


def _vdev(device: Device) -> str | None:
    """Return the name of a disk, by its number where its nodes can't be read."""
    if device.disk:
        return device.disk.vdev
    try:
        return devid_to_vdev(device.paths.devid)
    except VdevError:
        return None


def _complaints(
    device: Device, status: DomainStatus | None, missing: Mapping[int, str]
) -> list[tuple[str, str, str, str]]:
    """Return (path, node, kind, error) of all that is wrong with a disk."""
    if device.errors:
        return [(e.path, e.node, e.kind, str(e)) for e in device.errors]
    devid = device.paths.devid
    if status is None or devid not in status.devices:
        return []
    state, error = status.devices[devid]
    if state is DeviceState.READY or error is None:
        return []
    kind = "image" if devid in missing else "drive"
    if state is DeviceState.SKIPPED:
        kind = "skipped"
    path = f"{device.paths.libxl}/params"
    return [(path, "params", kind, error)]
