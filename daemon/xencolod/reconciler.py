"""One cycle after the other: read the dirty, plan, perform, say."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import trio

from xencolo import requests
from xencolo.device import Device
from xencolo.drives import Form, image_drivers
from xencolo.errors import XenstoreError
from xencolo.paths import (
    backend_root,
    domain_path,
    hint,
    mark_path,
    numbers,
    parse_domid,
)
from xencolo.plan import (
    Domain,
    Machine,
    Phase,
    Plan,
    Policy,
    another_guest,
    drives_of,
    plan,
    refusal,
)
from xencolo.wire import Op
from xencolod.asks import Reads, demand, directory, read
from xencolod.config import Config
from xencolod.devices import close, domids, trusted_domids
from xencolod.dirty import Calm, Dirty
from xencolod.exhausted import patiently
from xencolod.hub import Hub
from xencolod.log import emit
from xencolod.obeying import Obeying
from xencolod.overlay import overlay
from xencolod.places import any_forbidden, only_allowed
from xencolod.preparation import as_recorded, recall
from xencolod.process import domains_with_qemu, files
from xencolod.publish import Publisher
from xencolod.replicator import Replicator, Seen
from xencolod.supervisor import Settings, Supervisor
from xencolod.telling import Told
from xencolod.views import Found, Wanted, look_at, read_domains
from xencolod.watch import Watch
from xencolod.xenstore import Client

#: What no watch tells of is looked at this often, in seconds: an image that was missing, the end of
#: somebody else's device model, the size of a domain's memory.
#: What could not be published is tried again then.
_RECHECK = 5.0
#: A pass that xenstored failed, or that found its store empty, is repeated after this many seconds.
_RETRY = 0.5
#: Seconds that an end may be put off for guests that stand: less than systemd gives the daemon (20 s).
_REST = 12.0
#: So many domains are read and settled together, while the next are read: what a pass holds does not grow
#: with the host.
_TOGETHER, _AT_ONCE = 32, 2


class _Crew(NamedTuple):
    """Who works for one domain; most domains of a host have no COLO disk, and need nobody."""

    supervisor: Supervisor
    replicator: Replicator
    obeying: Obeying
    scope: trio.CancelScope


@dataclass(slots=True)
class _Known:
    """What is known of a domain.

    :ivar told: what the last cycle saw of it.
    :ivar unsaid: it was seen, and what is published may be of before.
    """

    crew: _Crew | None = None
    told: Told = field(default_factory=Told)
    unsaid: bool = False

    @property
    def machine(self) -> Machine:
        return self.crew.supervisor.machine if self.crew else _NO_MACHINE


_NO_MACHINE = Machine()


class Reconciler:
    """Compares what xenstore says with the QEMUs that are, and brings these to it."""

    def __init__(self, client: Client, settings: Settings, hub: Hub, nursery: trio.Nursery) -> None:
        self._client = client
        self._hub = hub
        self._settings = settings
        self._nursery = nursery
        self._log = settings.log
        self._known: dict[int, _Known] = {}
        self._publisher = Publisher(client, self._config.daemon.domid)
        self.dirty = Dirty()
        self.first_pass = trio.Event()
        # Domains that somebody works for, and those that no watch tells all of.
        self._crews: dict[int, _Crew] = {}
        self._recheck: set[int] = set()
        # Domains that were known when the store had lost them, and have not been seen in it since.
        self._unproven: set[int] = set()
        self._lost: str | None = None

    @property
    def _config(self) -> Config:
        return self._settings.config

    def _policy(self) -> Policy:
        qemu = self._config.qemu
        return Policy(qemu.restart, Form(qemu.form), qemu.memory, closes=not self._settings.xen)

    @property
    def counts(self) -> tuple[int, int]:
        """How many domains are managed, and how many disks are known."""
        return (
            len([known for known in self._known.values() if known.told.status]),
            sum(len(known.told.devices) for known in self._known.values()),
        )

    # -- events ----------------------------------------------------------------------------------

    def roots(self) -> tuple[str, ...]:
        """Return what is watched: the backends, the toolstack's copies with the roles, and deaths."""
        return (backend_root(self._config.daemon.domid), "/libxl", "@releaseDomain")

    async def follow(self, watch: Watch) -> None:
        """Turn watch events into marks, for ever. They are hints: only their paths count."""
        calm = Calm()
        while True:
            paths: set[str] = set()
            with trio.move_on_after(calm.patience):
                paths = await watch.take()
            told = {domid for path in paths for domid in self._concerned(path)}
            for domid in calm.sift(told, trio.current_time()):
                self.dirty.mark(domid)

    def _concerned(self, path: str) -> Iterable[int | None]:
        if path == "@releaseDomain":
            return tuple(self._crews)
        about = hint(path)
        return (about.domid,) if about else ()

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
        """Look at everything again, at what was given up too, and say all of it again."""
        self._publisher.forget()
        for crew in self._crews.values():
            crew.supervisor.retry()
        self.dirty.mark()

    async def rest(self) -> None:
        """Begin no step of a replication any more, and wait for those that have a guest stand."""
        with trio.move_on_after(_REST):
            async with trio.open_nursery() as nursery:
                for crew in self._crews.values():
                    nursery.start_soon(crew.replicator.rest)

    # -- cycles ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look whenever something is marked, and at everything at times (XSA-115: events get lost)."""
        await self._adopt()
        rescan_at = trio.current_time() + self._config.daemon.rescan
        recheck_at = trio.current_time() + _RECHECK
        while True:
            await self.dirty.wait(self._patience(rescan_at, recheck_at))
            if trio.current_time() >= rescan_at:
                self.dirty.mark()
            # Not with whatever else is marked: one guest's disk would wait for all that miss their images.
            if trio.current_time() >= recheck_at:
                recheck_at = trio.current_time() + _RECHECK
                for domid in self._recheck:
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

    def _patience(self, rescan_at: float, recheck_at: float) -> float:
        until = min(rescan_at, recheck_at) if self._recheck else rescan_at
        return max(0.0, until - trio.current_time())

    def _mark_again(self, domains: Iterable[int], *, everything: bool) -> None:
        for domid in domains:
            self.dirty.mark(domid)
        if everything:
            self.dirty.mark()

    async def _adopt(self) -> None:
        """Find the QEMUs of an earlier xencolod: before anything is decided, and at each full pass
        those that had not got as far as their pid files.
        """
        where = files(self._config, 0)
        look = partial(trio.to_thread.run_sync, domains_with_qemu, where.runtime)
        for domid in await patiently(self._log, look):
            if domid not in self._crews:
                await self._supervise(domid, self._known.setdefault(domid, _Known()))

    async def _cycle(self, domains: set[int], *, everything: bool) -> None:
        started = trio.current_time()
        own = self._config.daemon.domid
        if everything:
            await self._recognise(own)
            await self._adopt()
            domains = domains | set(await domids(self._client, own)) | self._known.keys()
        self._done(started, len(domains), await self._look_at_all(sorted(domains)))

    async def _look_at_all(self, domids: Sequence[int]) -> int:
        """Look at domains, some being read while others are settled; return how many devices they have.

        :raises XenstoreError: xenstored failed.
        """
        parts = iter([domids[i : i + _TOGETHER] for i in range(0, len(domids), _TOGETHER)])
        devices, failures = 0, list[XenstoreError]()

        async def look() -> None:
            nonlocal devices
            while not failures and (part := next(parts, None)):
                try:
                    seen = await self._look(part)
                    devices += seen  # not in one: another part is counted meanwhile
                except XenstoreError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(look)
        if failures:
            raise failures[0]
        return devices

    async def _look(self, domids: Sequence[int]) -> int:
        """Read domains and settle them; return how many devices they have."""
        views = await patiently(self._log, partial(self._read, self._client, domids))
        if doubtful := [domid for domid, view in views.items() if self._has_new_errors(view)]:
            # Read while it was written or removed, perhaps: a transaction shows it as it was at once.
            views |= await self._client.transaction(lambda to: self._read(to, doubtful))
        # After all of it: before, it would not tell that the store was emptied meanwhile.
        if await read(self._client, mark_path(self._config.daemon.domid)) is None:
            self.dirty.mark()  # it is another store by now, which may tell less than it will
            return 0
        await self._believe({d for d in self._unproven & views.keys() if self._proves(views[d])})
        views = {domid: view for domid, view in views.items() if domid not in self._unproven}
        views = await only_allowed(views, self._config.images.directories)
        found = await self._look_at_images(views.values())
        async with trio.open_nursery() as nursery:
            for view in views.values():
                seen = view._replace(block_devices=found.block_devices)
                nursery.start_soon(self._settle, seen, found.missing.get(view.domid, {}))
        return sum(len(view.devices) for view in views.values())

    async def _read(self, to: Reads, domids: Sequence[int]) -> dict[int, Domain]:
        own = self._config.daemon.domid
        ours = {domid: crew.supervisor.machine.pid for domid, crew in self._crews.items()}
        return await read_domains(
            to, domids, own, trusted_domids(own), ours, xen=self._settings.xen
        )

    def _has_new_errors(self, view: Domain) -> bool:
        known = self._known.get(view.domid)
        before = known.told.complaints if known else {}
        return any(
            (devid, error.path, error.kind) not in before
            for devid, device in view.devices.items()
            for error in device.errors
        )

    async def _recognise(self, own: int) -> None:
        """Look for the daemon's mark: a store without it is another than the one before.

        Such a store has lost what it held. Until a domain is seen in it as it was, its absence does
        not tell that it has gone, and its QEMU is left alone. What does not know even this domain is
        waited for, without a deadline: nothing can be done before.

        :raises XenstoreError: xenstored failed.
        """
        home, mark = domain_path(own), mark_path(own)
        if await read(self._client, mark) is not None:
            if not self.first_pass.is_set():
                await self._inherit(mark)
            return
        self._unproven = set(self._known)
        filled = await read(self._client, home) is not None
        if self._known or not filled:
            emit(self._log, "xenstore.empty", path=mark if filled else home)
        while not filled:
            await trio.sleep(_RETRY)
            filled = await read(self._client, home) is not None
        marks = [requests.write(f"{mark}/{domid}", "") for domid in sorted(self._unproven)]
        marks.append(requests.write(mark, version("xencolo")))
        # At once: a daemon that ended in between would have the next one believe what is absent.
        await self._client.transaction(partial(demand, batch=marks))

    async def _inherit(self, mark: str) -> None:
        """Take over from an earlier xencolod which domains it had not seen again in this store."""
        left = set(numbers(await directory(self._client, mark), parse_domid))
        self._unproven = left & self._known.keys()
        await self._believe(left - self._unproven)

    async def _believe(self, domids: AbstractSet[int]) -> None:
        """Take the absence of these domains for an end from now on."""
        mark = mark_path(self._config.daemon.domid)
        forgotten = [requests.rm(f"{mark}/{domid}") for domid in domids]
        await demand(self._client, forgotten, absent_ok=[Op.RM])
        self._unproven -= domids

    def _proves(self, view: Domain) -> bool:
        """Whether a store that had lost a domain tells enough of it: all its disks, or another guest."""
        known = self._known[view.domid]
        launch = known.machine.launch
        disks = [device.disk for device in view.devices.values() if device.disk]
        images = {p for d in disks for p in (d.pdev_path, d.active_disk, d.hidden_disk)}
        # Of a QEMU that an earlier xencolod left no more is known than what it was started with.
        told = known.told.devices or not launch or image_drivers(launch.drives).keys() <= images
        return view.exists and (
            another_guest(launch, view)
            or (bool(told) and known.told.devices.keys() <= view.devices.keys() != set())
        )

    def _done(self, started: float, domains: int, devices: int) -> None:
        seconds = round(trio.current_time() - started, 4)
        if not self.first_pass.is_set():
            self.first_pass.set()
            emit(self._log, "daemon.ready", domains=domains, devices=devices, seconds=seconds)
        emit(self._log, "reconcile.done", domains=domains, devices=devices, seconds=seconds)

    async def _look_at_images(self, views: Iterable[Domain]) -> Found:
        """Look at the images of the domains whose QEMU does not have all their disks yet."""
        policy = self._policy()
        make = self._config.replication.make_images
        wanted = [
            # Active and hidden images are made, or missed, by who prepares a secondary.
            Wanted(view.domid, devid, images[0], images[1:])
            for view in views
            if view.managed and not self._has_all(view, policy)
            for devid, images in drives_of(view, policy, {}).images.items()
            if images
        ]
        if not wanted:
            return Found({}, frozenset())
        return await trio.to_thread.run_sync(partial(look_at, wanted, make=make))

    def _has_all(self, view: Domain, policy: Policy) -> bool:
        """Whether the QEMU was started with every disk: it keeps them, whatever became of the files."""
        known = self._known.get(view.domid)
        launch = known.machine.launch if known else None
        if not known or not launch or known.machine.phase is not Phase.RUNNING:
            return False
        return launch.drives == drives_of(view, policy, {}, launch).arguments

    # -- one domain ------------------------------------------------------------------------------

    async def _settle(self, view: Domain, missing: Mapping[int, str]) -> None:
        known = self._known.get(view.domid)
        if known is None and not (view.devices or view.managed or view.published):
            return
        known = known or self._known.setdefault(view.domid, _Known())
        if known.crew is None and (view.managed or view.command):
            await self._supervise(view.domid, known)
        if known.crew:
            performer = known.crew.replicator.performer
            view = await recall(performer, view)
            view = as_recorded(view, performer.record, known.machine.launch)
        policy = self._policy()
        running = known.machine.launch if known.machine.may_hold_guest else None
        if known.crew and known.crew.replicator.holds_checkpoint(running):
            policy = policy._replace(restart=False)  # the next QEMU would begin without it
        decided = plan(view, known.machine, policy, missing)
        unsized = not (policy.memory or view.memory)
        recheck = (
            bool(missing)
            or any_forbidden(view)
            or (view.managed and (unsized or view.foreign is not None))
        )
        if known.crew:
            decided = self._instruct(known.crew, view, decided)
        # What may stand of it in xenstore.
        known.unsaid = known.unsaid or known.told.status is not None
        known.told.tell(self._log, view, decided, missing)
        try:
            await self._publish(view, known, decided)
            for devid in decided.closed:
                await self._close(view.devices[devid])
        except XenstoreError as error:
            self._recheck.add(view.domid)
            emit(self._log, "xenstore.failed", domid=view.domid, error=str(error))
            return
        (self._recheck.add if recheck else self._recheck.discard)(view.domid)
        # Not before it is withdrawn: a QEMU may have ended while its ending was still published.
        if decided.status is None and known.machine == _NO_MACHINE:
            self._dismiss(view, known)

    def _instruct(self, crew: _Crew, view: Domain, decided: Plan) -> Plan:
        """Tell who works for a domain what was seen and decided; return that with what they add."""
        # Before anything is started: whether it may be is the replicator's to say.
        crew.replicator.see(self._seen(view, crew.supervisor))
        crew.supervisor.want(decided.launch)
        crew.obeying.see(view.command, view.command_error)
        if decided.status is None:
            return decided
        return decided._replace(status=overlay(crew.replicator, decided.status))

    def _dismiss(self, view: Domain, known: _Known) -> None:
        """Let those go who have nothing to do, and forget a domain that has nothing."""
        crew = known.crew
        if crew and not (view.devices and (view.command or crew.obeying.busy)):
            crew.scope.cancel()
            self._hub.remove(view.domid)
            del self._crews[view.domid]
            known.crew = None
        if not view.devices:
            self._recheck.discard(view.domid)
            del self._known[view.domid]

    def _seen(self, view: Domain, supervisor: Supervisor) -> Seen:
        colo = [device for device in view.devices.values() if device.is_colo]
        # What replicates has nothing to do with the QEMU of the guest before.
        qmp = None if another_guest(supervisor.machine.launch, view) else supervisor.qmp
        return Seen(
            view,
            qmp,
            supervisor.machine.launch,
            tuple(device.vdev or str(device.paths.devid) for device in colo if device.bypassed),
            refusal(view, qmp.version if qmp else None),
        )

    async def _supervise(self, domid: int, known: _Known) -> None:
        replicator = Replicator(domid, self._hub, lambda: supervisor.renew(), self.dirty.mark)  # noqa: PLW0108 - made next
        supervisor = Supervisor(domid, self._settings, self.dirty.mark, replicator)
        obeying = Obeying(replicator, self._client)
        crew = _Crew(supervisor, replicator, obeying, trio.CancelScope())
        known.crew = self._crews[domid] = crew
        self._hub.add(replicator)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with crew.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(replicator.run)
                    nursery.start_soon(obeying.run)
                    await supervisor.run(task_status=task_status)

        await self._nursery.start(run)

    async def _publish(self, view: Domain, known: _Known, decided: Plan) -> None:
        if not view.published:
            self._publisher.forget(view.domid)
        said, known.unsaid = known.unsaid, True
        if decided.status and view.exists:
            if not await self._publisher.publish(view.domid, decided.status, view.uuid):
                self.dirty.mark(view.domid)  # it was another one's by then, or nobody's
        elif decided.status is None and (said or view.published or not view.devices):
            await self._publisher.withdraw(view.domid)
        known.unsaid = False

    async def _close(self, device: Device) -> None:
        if await close(self._client, device.paths):
            log = self._log.bind(domid=device.paths.domid, devid=device.paths.devid)
            emit(log, "device.closed", vdev=device.vdev, backend=device.paths.backend)
