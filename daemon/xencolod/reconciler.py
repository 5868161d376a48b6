"""One cycle after the other: read the dirty, plan, perform, say."""

from collections.abc import Iterable, Mapping, Sequence

import trio

from xencolo.device import Device
from xencolo.drives import Form
from xencolo.errors import XenstoreError
from xencolo.paths import backend_root, hint
from xencolo.plan import BadImage, Domain, Machine, Plan, Policy, plan
from xencolod.config import Config
from xencolod.crews import Crews
from xencolod.devices import close, domids
from xencolod.dirty import Calm, Dirty
from xencolod.hub import Hub
from xencolod.log import emit
from xencolod.looking import Looking
from xencolod.places import any_forbidden, only_allowed
from xencolod.publish import Publisher
from xencolod.recognition import Recognition
from xencolod.supervisor import Settings
from xencolod.telling import Told
from xencolod.watch import Watch
from xencolod.xenstore import Client

#: What no watch tells of is looked at this often, in seconds: an image that was missing, the end of
#: somebody else's device model, the size of a domain's memory.
#: What could not be published is tried again then.
_RECHECK = 5.0
#: A pass that xenstored failed is repeated after this many seconds.
_RETRY = 0.5
#: So many domains are read and settled together, while the next are read: what a pass holds does not grow
#: with the host.
_TOGETHER, _AT_ONCE = 32, 2


class Reconciler:
    """Compares what xenstore says with the QEMUs that are, and brings these to it.

    :ivar first_pass: set once all has been looked at.
    :ivar crews: who works for the domains.
    """

    def __init__(self, client: Client, settings: Settings, hub: Hub, nursery: trio.Nursery) -> None:
        self._client = client
        self._settings = settings
        self._log = settings.log
        self._dirty = Dirty()
        self.first_pass = trio.Event()
        self.crews = Crews(client, settings, hub, nursery, self._dirty.mark)
        # What the last cycle saw of each domain: all that are known.
        self._told: dict[int, Told] = {}
        self._recognition = Recognition(client, self._config.daemon.domid, self._log)
        self._looking = Looking(client, settings, self._told, self.crews)
        self._publisher = Publisher(client, self._config.daemon.domid)
        # Domains that no watch tells all of, and those of which something else may stand than was seen.
        self._recheck: set[int] = set()
        self._unsaid: set[int] = set()
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
            len([told for told in self._told.values() if told.status]),
            sum(len(told.devices) for told in self._told.values()),
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
            self._dirty.mark_each(calm.sift(told, trio.current_time()))

    def _concerned(self, path: str) -> Iterable[int | None]:
        if path == "@releaseDomain":
            return self.crews.domids
        about = hint(path)
        return (about.domid,) if about else ()

    def connection_changed(self, error: XenstoreError | None) -> None:
        """Note that xenstored came or went; what was written to it counts no more."""
        if error is None:
            self._lost = None
            emit(self._log, "xenstore.connected", socket=self._client.path)
            self._publisher.forget()
            self._dirty.mark()
        elif str(error) != self._lost:  # once, and not at each attempt
            self._lost = str(error)
            emit(self._log, "xenstore.lost", socket=self._client.path, error=self._lost)

    def start_over(self) -> None:
        """Look at everything again, at what was given up too, and say all of it again."""
        self._publisher.forget()
        self.crews.retry()
        self._dirty.mark()

    # -- cycles ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look whenever something is marked, and at everything at times (XSA-115: events get lost)."""
        await self._adopt()
        rescan_at = trio.current_time() + self._config.daemon.rescan
        recheck_at = trio.current_time() + _RECHECK
        while True:
            await self._dirty.wait(self._patience(rescan_at, recheck_at))
            if trio.current_time() >= rescan_at:
                self._dirty.mark()
            # Not with whatever else is marked: one guest's disk would wait for all that miss their images.
            if trio.current_time() >= recheck_at:
                recheck_at = trio.current_time() + _RECHECK
                self._dirty.mark_each(self._recheck)
            if self._dirty.everything:
                rescan_at = trio.current_time() + self._config.daemon.rescan
            await self._client.wait_connected()
            everything, domains = self._dirty.take()
            try:
                await self._cycle(domains, everything=everything)
            except XenstoreError as error:
                emit(self._log, "xenstore.failed", error=str(error))
                self._dirty.mark_each({*domains, None} if everything else domains)
                await trio.sleep(_RETRY)

    def _patience(self, rescan_at: float, recheck_at: float) -> float:
        until = min(rescan_at, recheck_at) if self._recheck else rescan_at
        return max(0.0, until - trio.current_time())

    async def _adopt(self) -> None:
        """Find the QEMUs of an earlier xencolod: before anything is decided, and at each full pass
        those that had not got as far as their pid files.
        """
        for domid in await self.crews.adopt():
            self._told.setdefault(domid, Told())

    async def _cycle(self, domains: set[int], *, everything: bool) -> None:
        started = trio.current_time()
        if everything:
            await self._recognition.recognise(self._told.keys())
            await self._adopt()
            there = await domids(self._client, self._config.daemon.domid)
            domains = domains.union(there, self._told)
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
        views = await self._looking.read(domids)
        # After all of it: before, it would not tell that the store was emptied meanwhile.
        if not await self._recognition.is_same():
            self._dirty.mark()  # it is another store by now, which may tell less than it will
            return 0
        views = await self._recognition.believed(views, self._told, self.crews)
        views = await only_allowed(views, self._config.images.directories)
        found = await self._looking.images(views.values(), self._policy())
        async with trio.open_nursery() as nursery:
            for view in views.values():
                seen = view._replace(block_devices=found.block_devices)
                nursery.start_soon(self._settle, seen, found.missing.get(view.domid, {}))
        return sum(len(view.devices) for view in views.values())

    def _done(self, started: float, domains: int, devices: int) -> None:
        seconds = round(trio.current_time() - started, 4)
        if not self.first_pass.is_set():
            self.first_pass.set()
            emit(self._log, "daemon.ready", domains=domains, devices=devices, seconds=seconds)
        emit(self._log, "reconcile.done", domains=domains, devices=devices, seconds=seconds)

    # -- one domain ------------------------------------------------------------------------------

    async def _settle(self, view: Domain, missing: Mapping[int, BadImage]) -> None:
        domid = view.domid
        if domid not in self._told and not (view.devices or view.managed or view.published):
            return
        told = self._told.setdefault(domid, Told())
        crew = self.crews.get(domid)
        if crew is None and (view.managed or view.command):
            crew = await self.crews.hire(domid)
        if crew:
            view = await crew.recorded(view)
        policy = self._policy()
        if crew and crew.keeps_checkpoint:
            policy = policy._replace(restart=False)
        decided = plan(view, self.crews.machine(domid), policy, missing)
        recheck = bool(missing) or _waits_unwatched(view, policy)
        if crew:
            decided = crew.instruct(view, decided)
        if told.status is not None:
            self._unsaid.add(domid)
        told.tell(self._log, view, decided, missing)
        try:
            await self._publish(view, decided)
            for devid in decided.closed:
                await self._close(view.devices[devid])
        except XenstoreError as error:
            self._recheck.add(domid)
            emit(self._log, "xenstore.failed", domid=domid, error=str(error))
            return
        (self._recheck.add if recheck else self._recheck.discard)(domid)
        # Not before it is withdrawn: a QEMU may have ended while its ending was still published.
        if decided.status is None and self.crews.machine(domid) == Machine():
            self._dismiss(view)

    def _dismiss(self, view: Domain) -> None:
        """Let those go who have nothing to do, and forget a domain that has nothing."""
        crew = self.crews.get(view.domid)
        if crew and not (view.devices and (view.command or crew.obeying.busy)):
            self.crews.dismiss(view.domid)
        if not view.devices:
            self._recheck.discard(view.domid)
            del self._told[view.domid]

    async def _publish(self, view: Domain, decided: Plan) -> None:
        if not view.published:
            self._publisher.forget(view.domid)
        stands = view.published or view.domid in self._unsaid
        self._unsaid.add(view.domid)
        if decided.status and view.exists:
            if not await self._publisher.publish(view.domid, decided.status, view.uuid):
                self._dirty.mark(view.domid)  # it was another one's by then, or nobody's
        elif decided.status is None and (stands or not view.devices):
            await self._publisher.withdraw(view.domid)
        self._unsaid.discard(view.domid)

    async def _close(self, device: Device) -> None:
        if await close(self._client, device.paths):
            log = self._log.bind(domid=device.paths.domid, devid=device.paths.devid)
            emit(log, "device.closed", vdev=device.vdev, backend=device.paths.backend)


def _waits_unwatched(view: Domain, policy: Policy) -> bool:
    """Whether no watch tells of what a domain waits for."""
    unsized = not (policy.memory or view.memory)
    return any_forbidden(view) or (view.managed and (unsized or view.foreign is not None))
