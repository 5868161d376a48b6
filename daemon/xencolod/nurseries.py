"""Two ways of running tasks that trio has no word for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks are cancelled when the block ends.

    What the block raises comes out as it is, in no group.
    """
    failure: Exception | KeyboardInterrupt | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised below
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        # Here and not below: a cancellation from outside that the nursery met must not hide it.
        if failure:
            raise failure


async def first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return as soon as one of the waits does; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def run(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(run, wait)
