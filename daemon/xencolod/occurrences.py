"""What happened to a domain's replication and was not dealt with yet: one queue for each domain."""

from collections import deque
from collections.abc import Callable

import trio

from xencolo.errors import XencoloError
from xencolo.replication import Event


class Occurrence:
    """An event in the queue, and who waits for what becomes of it.

    :ivar begin: called when the table takes it, just before its actions: what it brings with it.
    :ivar void: whether it means nothing any more, asked when its turn has come: who asked has gone.
    """

    def __init__(
        self,
        event: Event,
        error: str | None = None,
        begin: Callable[[], None] = lambda: None,
        void: Callable[[], bool] = lambda: False,
    ) -> None:
        self.event = event
        self.error = error
        self.begin = begin
        self.void = void
        self._failure: XencoloError | None = None
        self._over = trio.Event()

    def finish(self, failure: XencoloError | None = None) -> None:
        """Tell who waits; ``failure`` is why it came to nothing."""
        self._failure = failure
        self._over.set()

    async def outcome(self) -> None:
        """Wait until it was dealt with, without a deadline: each action has its own.

        :raises XencoloError: it came to nothing.
        """
        await self._over.wait()
        if self._failure:
            raise self._failure


class Occurrences:
    """The events that wait, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[Occurrence] = deque()
        self._some = trio.Event()

    def __bool__(self) -> bool:
        """Return whether one waits."""
        return bool(self._waiting)

    def add(self, occurrence: Occurrence) -> None:
        """Queue one behind all others."""
        self._waiting.append(occurrence)
        self._some.set()

    def put_first(self, occurrence: Occurrence) -> None:
        """Queue one before all others: what a step brought about is dealt with before anything else."""
        self._waiting.appendleft(occurrence)
        self._some.set()

    async def wait(self) -> None:
        """Wait until there is one, without a deadline: a domain to which nothing happens is well."""
        await self._some.wait()

    def take(self) -> Occurrence:
        """Return the first of them, which must be there."""
        occurrence = self._waiting.popleft()
        if not self._waiting:
            self._some = trio.Event()
        return occurrence
