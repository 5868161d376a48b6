"""Which domains are to be looked at."""

import trio


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
