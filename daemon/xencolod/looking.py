"""What domains are now: what their nodes say, and what the paths of their images lead to."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import trio

from xencolo.plan import Domain, Phase, Policy, drives_of
from xencolod.asks import Reads
from xencolod.crews import Crews
from xencolod.devices import trusted_domids
from xencolod.exhausted import patiently
from xencolod.image_paths import Found, Wanted, look_at
from xencolod.supervisor import Settings
from xencolod.telling import Told
from xencolod.views import read_domains
from xencolod.xenstore import Client


class Looking:
    """Looks at the domains of this host.

    :param told: what the look before saw of each.
    """

    def __init__(
        self, client: Client, settings: Settings, told: Mapping[int, Told], crews: Crews
    ) -> None:
        self._client = client
        self._settings = settings
        self._told = told
        self._crews = crews

    async def read(self, domids: Sequence[int]) -> dict[int, Domain]:
        """Return what the nodes of domains say.

        :raises XenstoreError: xenstored failed.
        """
        views = await patiently(self._settings.log, partial(self._read, self._client, domids))
        if doubtful := [domid for domid, view in views.items() if self._has_new_errors(view)]:
            # Read while it was written or removed, perhaps: a transaction shows it as it was at once.
            views |= await self._client.transaction(lambda to: self._read(to, doubtful))
        return views

    async def _read(self, to: Reads, domids: Sequence[int]) -> dict[int, Domain]:
        own = self._settings.config.daemon.domid
        return await read_domains(
            to, domids, own, trusted_domids(own), self._crews.pids, xen=self._settings.xen
        )

    def _has_new_errors(self, view: Domain) -> bool:
        told = self._told.get(view.domid)
        before = told.complaints if told else {}
        return any(
            (devid, error.path, error.kind) not in before
            for devid, device in view.devices.items()
            for error in device.errors
        )

    async def images(self, views: Iterable[Domain], policy: Policy) -> Found:
        """Return what the images are of the domains whose QEMU does not have all their disks yet."""
        make = self._settings.config.replication.make_images
        wanted = [
            # Active and hidden images are made, or missed, by who prepares a secondary.
            Wanted(view.domid, devid, images)
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
        machine = self._crews.machine(view.domid)
        if not machine.launch or machine.phase is not Phase.RUNNING:
            return False
        return machine.launch.drives == drives_of(view, policy, {}, machine.launch).arguments
