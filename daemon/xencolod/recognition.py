"""Which store it is: one that has lost what it held does not tell which domains have gone."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from importlib.metadata import version

import trio

from xencolo import requests
from xencolo.paths import domain_path, mark_path
from xencolo.plan import Domain, Launch, another_guest
from xencolod.asks import demand, read
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

    async def recognise(self, known: Iterable[int]) -> None:
        """Look for the mark, and write it where it is not.

        What does not know even this domain is waited for, without a deadline: nothing can be done before.

        :param known: the domains that a store without it must have known.
        :raises XenstoreError: xenstored failed.
        """
        if await self.is_same():
            return
        self._unproven = set(known)
        filled = await self._is_filled()
        if self._unproven or not filled:
            emit(self._log, "xenstore.empty", path=self._mark if filled else self._home)
        while not filled:
            await trio.sleep(_AGAIN)
            filled = await self._is_filled()
        await demand(self._client, [requests.write(self._mark, version("xencolo"))])

    async def is_same(self) -> bool:
        """Return whether the mark stands: it vouches for what was read before, and for nothing after.

        :raises XenstoreError: xenstored failed.
        """
        return await read(self._client, self._mark) is not None

    async def _is_filled(self) -> bool:
        return await read(self._client, self._home) is not None

    def believed(
        self, views: Mapping[int, Domain], told: Mapping[int, Told], crews: Crews
    ) -> dict[int, Domain]:
        """Return the domains of which this store tells all there is, as far as anybody knows.

        :param told: what was seen of each before.
        """
        self._unproven -= {
            domid
            for domid in self._unproven & views.keys()
            if proves(views[domid], told[domid].devices.keys(), crews.machine(domid).launch)
        }
        return {domid: view for domid, view in views.items() if domid not in self._unproven}


def proves(view: Domain, devids: AbstractSet[int], launch: Launch | None) -> bool:
    """Whether a store that had lost a domain tells enough of it: all its disks, or another guest.

    :param devids: the disks that it had.
    :param launch: what its QEMU runs with.
    """
    return view.exists and (another_guest(launch, view) or devids <= view.devices.keys() != set())
