"""Who works for one domain; most domains of a host have no COLO disk, and need nobody."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple

import trio

from xencolo.plan import Domain, Machine, Plan, another_guest, refusal
from xencolod.exhausted import patiently
from xencolod.hub import Hub
from xencolod.obeying import Obeying
from xencolod.overlay import overlay
from xencolod.preparation import as_recorded, recall
from xencolod.process import domains_with_qemu, files
from xencolod.replicator import Replicator, Seen
from xencolod.supervisor import Settings, Supervisor
from xencolod.xenstore import Client

#: Seconds that an end may be put off for guests that stand: less than systemd gives the daemon (20 s).
_REST = 12.0


class Crew(NamedTuple):
    """Who works for one domain, until ``scope`` is cancelled."""

    supervisor: Supervisor
    replicator: Replicator
    obeying: Obeying
    scope: trio.CancelScope

    @property
    def machine(self) -> Machine:
        """What is: the domain's QEMU."""
        return self.supervisor.machine

    @property
    def keeps_checkpoint(self) -> bool:
        """Whether its QEMU has a checkpoint that the next one would begin without."""
        launch = self.machine.launch if self.machine.may_hold_guest else None
        return self.replicator.holds_checkpoint(launch)

    async def recorded(self, view: Domain) -> Domain:
        """Return what the nodes say of the domain with what its record adds to it."""
        performer = self.replicator.performer
        view = await recall(performer, view)
        return as_recorded(view, performer.record, self.machine.launch)

    def instruct(self, view: Domain, decided: Plan) -> Plan:
        """Tell all of them what was seen and decided; return that with what they add."""
        # Before anything is started: whether it may be is the replicator's to say.
        self.replicator.see(self._seen(view))
        self.supervisor.want(decided.launch)
        self.obeying.see(view.command, view.command_error)
        if decided.status is None:
            return decided
        return decided._replace(status=overlay(self.replicator, decided.status))

    def _seen(self, view: Domain) -> Seen:
        colo = [device for device in view.devices.values() if device.is_colo]
        # What replicates has nothing to do with the QEMU of the guest before.
        qmp = None if another_guest(self.machine.launch, view) else self.supervisor.qmp
        return Seen(
            view,
            qmp,
            self.machine.launch,
            tuple(device.vdev or str(device.paths.devid) for device in colo if device.bypassed),
            refusal(view, qmp.version if qmp else None),
        )


class Crews:
    """The crews of this host's domains.

    :param on_change: called with a domid when its domain is to be looked at.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        hub: Hub,
        nursery: trio.Nursery,
        on_change: Callable[[int], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._hub = hub
        self._nursery = nursery
        self._on_change = on_change
        self._crews: dict[int, Crew] = {}

    @property
    def domids(self) -> AbstractSet[int]:
        """The domains that somebody works for."""
        return self._crews.keys()

    @property
    def pids(self) -> dict[int, int | None]:
        """The pid of each one's QEMU, None while it has none."""
        return {domid: crew.machine.pid for domid, crew in self._crews.items()}

    def get(self, domid: int) -> Crew | None:
        """Return who works for a domain."""
        return self._crews.get(domid)

    def machine(self, domid: int) -> Machine:
        """Return what a domain's QEMU is: absent where nobody works for it."""
        crew = self._crews.get(domid)
        return crew.machine if crew else Machine()

    async def hire(self, domid: int) -> Crew:
        """Have a domain worked for; return once it is known whether its QEMU lives."""
        replicator = Replicator(domid, self._hub, lambda: supervisor.renew(), self._on_change)  # noqa: PLW0108 - made next
        supervisor = Supervisor(domid, self._settings, self._on_change, replicator)
        obeying = Obeying(replicator, self._client)
        crew = Crew(supervisor, replicator, obeying, trio.CancelScope())
        self._crews[domid] = crew
        self._hub.add(replicator)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with crew.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(replicator.run)
                    nursery.start_soon(obeying.run)
                    await supervisor.run(task_status=task_status)

        await self._nursery.start(run)
        return crew

    async def adopt(self) -> list[int]:
        """Have the domains worked for whose QEMUs an earlier xencolod left; return their domids."""
        where = files(self._settings.config, 0)
        look = partial(trio.to_thread.run_sync, domains_with_qemu, where.runtime)
        found = await patiently(self._settings.log, look)
        new = [domid for domid in found if domid not in self._crews]
        for domid in new:
            await self.hire(domid)
        return new

    def dismiss(self, domid: int) -> None:
        """Let those go who work for a domain."""
        self._crews.pop(domid).scope.cancel()
        self._hub.remove(domid)

    def retry(self) -> None:
        """Begin anew what was given up."""
        for crew in self._crews.values():
            crew.supervisor.retry()

    async def rest(self) -> None:
        """Begin no step of a replication any more, and wait for those that have a guest stand."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + _REST
            for crew in self._crews.values():
                nursery.start_soon(crew.replicator.rest)
