"""``xencolo demo``: the life of a replicated disk on three hosts, told step by step, and checked."""

import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from xencolod.demo.story import play
from xencolod.demo.telling import DemoError, step

HOSTS = 3

__all__ = ["HOSTS", "DemoError", "run"]


async def _interrupted(
    scope: trio.CancelScope,
    caught: list[int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Wait for a signal that ends the demo: what it has started is ended on the way out."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            scope.cancel()


async def _main(folder: Path, stores: Sequence[str]) -> None:
    caught: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(_interrupted, nursery.cancel_scope, caught)
        await play(folder, stores)
        nursery.cancel_scope.cancel()
    match caught:
        case [signal.SIGINT, *_]:
            raise KeyboardInterrupt
        case [number, *_]:
            raise DemoError(f"ended by {signal.Signals(number).name}")


def run(stores: Sequence[str]) -> None:
    """Play the demo.

    :param stores: sockets of running xenstoreds, one for each of the `HOSTS`; none: in-memory stores.
    :raises DemoError: something was not so.
    """
    with tempfile.TemporaryDirectory(prefix="xencolo-demo-") as name:
        trio.run(_main, Path(name), stores)
    step("All of it was so: every read matched.")
