"""Which domains are to be looked at, and how soon."""

from collections.abc import Iterable

import trio

#: How often a domain may be looked at in a second because watches tell of it, and how often on top of that
#: after a rest: a toolstack writes a guest's disks one after the other. Others wait while it is looked at.
_RATE, _BURST = 20.0, 500.0


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

    def mark_each(self, domids: Iterable[int | None]) -> None:
        """Mark each of them; None stands for all domains."""
        for domid in domids:
            self.mark(domid)

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
        # What is left of the burst of each, and when that was reckoned; who is not here has all of it.
        self._left: dict[int | None, tuple[float, float]] = {}

    @property
    def patience(self) -> float:
        """Seconds until what waits is to be sifted again."""
        return 1 / _RATE if self.waiting else float("inf")

    def sift(self, domids: Iterable[int | None], now: float) -> set[int | None]:
        """Return what is to be looked at now, of what is told and of what waits.

        :param now: seconds on a clock that only goes forward.
        """
        left = {d: min(_BURST, some + (now - at) * _RATE) for d, (some, at) in self._left.items()}
        told = self.waiting.union(domids)
        due = {domid for domid in told if left.get(domid, _BURST) >= 1}
        left |= {domid: left.get(domid, _BURST) - 1 for domid in due}
        self._left = {domid: (some, now) for domid, some in left.items() if some < _BURST}
        self.waiting = told - due
        return due
