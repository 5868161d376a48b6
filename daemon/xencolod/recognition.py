"""Which store it is: one that has lost what it held does not tell which domains have gone."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from importlib.metadata import version

import trio

from xencolo import requests
from xencolo.drives import image_drivers
from xencolo.paths import domain_path, mark_path, numbers, parse_domid
from xencolo.plan import Domain, Launch, another_guest
from xencolo.wire import Op
from xencolod.asks import demand, directory, read
from xencolod.crews import Crews
from xencolod.log import Logger, emit
from xencolod.telling import Told
from xencolod.xenstore import Client

#: Seconds until an empty store is looked at again.
_AGAIN = 0.5


class Recognition:
    """Knows a store by the daemon's mark in it: without it, it is another than the one before.

    Such a store has lost what it held. Until a domain is seen in it as it was, its absence does not tell
    that it has gone, and its QEMU is left alone.
    """

    def __init__(self, client: Client, own_domid: int, log: Logger) -> None:
        self._client = client
        self._home, self._mark = domain_path(own_domid), mark_path(own_domid)
        self._log = log
        # Domains that were known when the store had lost them, and have not been seen in it since.
        self._unproven: set[int] = set()
        self._begun = False

    async def recognise(self, known: AbstractSet[int]) -> None:
        """Look for the mark, and write it where it is not.

        What does not know even this domain is waited for, without a deadline: nothing can be done before.

        :param known: the domains that a store without it must have known.
        :raises XenstoreError: xenstored failed.
        """
        if await self.is_same():
            if not self._begun:
                await self._inherit(known)
        else:
            await self._begin_anew(known)
        self._begun = True

    async def _inherit(self, known: AbstractSet[int]) -> None:
        """Take over from an earlier xencolod which domains it had not seen again in this store."""
        left = set(numbers(await directory(self._client, self._mark), parse_domid))
        self._unproven = left & known
        await self._believe(left - known)

    async def _begin_anew(self, known: AbstractSet[int]) -> None:
        self._unproven = set(known)
        filled = await self._is_filled()
        if self._unproven or not filled:
            emit(self._log, "xenstore.empty", path=self._mark if filled else self._home)
        while not filled:
            await trio.sleep(_AGAIN)
            filled = await self._is_filled()
        marks = [requests.write(f"{self._mark}/{domid}", "") for domid in sorted(self._unproven)]
        marks.append(requests.write(self._mark, version("xencolo")))
        # At once: a daemon that ended in between would have the next one believe what is absent.
        await self._client.transaction(partial(demand, batch=marks))

    async def _believe(self, domids: AbstractSet[int]) -> None:
        """Take the absence of these domains for an end from now on."""
        forgotten = [requests.rm(f"{self._mark}/{domid}") for domid in domids]
        await demand(self._client, forgotten, absent_ok=[Op.RM])
        self._unproven -= domids

    async def is_same(self) -> bool:
        """Return whether the mark stands: it vouches for what was read before, and for nothing after.

        :raises XenstoreError: xenstored failed.
        """
        return await read(self._client, self._mark) is not None

    async def _is_filled(self) -> bool:
        return await read(self._client, self._home) is not None

    async def believed(
        self, views: Mapping[int, Domain], told: Mapping[int, Told], crews: Crews
    ) -> dict[int, Domain]:
        """Return the domains of which this store tells all there is, as far as anybody knows.

        :param told: what was seen of each before.
        :raises XenstoreError: xenstored failed.
        """
        await self._believe(
            {
                domid
                for domid in self._unproven & views.keys()
                if proves(views[domid], told[domid].devices.keys(), crews.machine(domid).launch)
            }
        )
        return {domid: view for domid, view in views.items() if domid not in self._unproven}


def proves(view: Domain, devids: AbstractSet[int], launch: Launch | None) -> bool:
    """Whether a store that had lost a domain tells enough of it: all its disks, or another guest.

    :param devids: the disks that it had.
    :param launch: what its QEMU runs with.
    """
    return view.exists and (another_guest(launch, view) or _is_whole(view, devids, launch))


def _is_whole(view: Domain, devids: AbstractSet[int], launch: Launch | None) -> bool:
    if devids or launch is None:
        return devids <= view.devices.keys() != set()
    # Of a QEMU that an earlier xencolod left no more is known than what it was started with.
    disks = [device.disk for device in view.devices.values() if device.disk]
    images = {path for d in disks for path in (d.pdev_path, d.active_disk, d.hidden_disk)}
    return image_drivers(launch.drives).keys() <= images != set()
