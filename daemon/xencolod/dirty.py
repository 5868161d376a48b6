"""Which domains are to be looked at, and how soon."""

from collections.abc import Iterable

import trio

#: A domain of which watches tell so often, without a rest between, is then looked at only at times. The
#: first few are for a toolstack, which writes a guest's disks one after the other.
_OFTEN, _REST, _AT_TIMES = 16, 0.25, 0.05


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


class Calm:
    """Holds back what is told over and over, so that one guest's flood delays no other (XSA-326).

    :ivar waiting: what is held back; None stands for all domains.
    """

    def __init__(self) -> None:
        self.waiting: set[int | None] = set()
        self._told: dict[int | None, tuple[int, float]] = {}

    @property
    def patience(self) -> float:
        """Seconds until what waits is to be sifted again."""
        return _AT_TIMES if self.waiting else float("inf")

    def sift(self, domids: Iterable[int | None], now: float) -> set[int | None]:
        """Return what is to be looked at now, of what is told and of what waits.

        :param now: seconds on a clock that only goes forward.
        """
        self._told = {d: told for d, told in self._told.items() if told[1] > now - _REST}
        all_of_them = self.waiting.union(domids)
        due = {domid for domid in all_of_them if self._is_due(domid, now)}
        self.waiting = all_of_them - due
        for domid in due:
            self._told[domid] = self._told.get(domid, (0, now))[0] + 1, now
        return due

    def _is_due(self, domid: int | None, now: float) -> bool:
        count, last = self._told.get(domid, (0, now))
        return count < _OFTEN or now >= last + _AT_TIMES
