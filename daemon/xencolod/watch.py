"""What a watch has told since somebody looked last."""

from collections.abc import Sequence

import trio

#: More distinct paths than this in a watch fall together into its roots: memory stays bounded
#: (XSA-326).
_WATCH_PATHS_MAX = 10_000


class Watch:
    """Paths below some roots that changed, each kept once: levels, not a queue of events.

    :ivar roots: the watched paths. Each fires when it is registered and again after every reconnect,
        which is when everything below it must be read anew.
    """

    def __init__(self, roots: Sequence[str], token: str) -> None:
        self.roots = tuple(roots)
        self.token = token
        self._paths: set[str] = set()
        self._fired = trio.Event()

    async def take(self) -> set[str]:
        """Return the paths that fired since the last call; wait for the first one.

        Waits without a deadline: that nothing changes is no fault.
        """
        await self._fired.wait()
        self._fired = trio.Event()
        paths, self._paths = self._paths, set()
        return paths

    def fire(self, path: str) -> None:
        """Note a path; too many fall together into the roots."""
        if len(self._paths) >= _WATCH_PATHS_MAX:
            self._paths = set(self.roots)
        self._paths.add(path)
        self._fired.set()
