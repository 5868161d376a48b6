"""``xencolo checkpoint``, ``resync``, ``failover`` and ``detach``: commands by node."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import click

from xencolod.commands.common import DOMID, examples, run
from xencolod.commands.output import printable, warn

if TYPE_CHECKING:
    from rich.live import Live

    from xencolo.command import Answer
    from xencolod.commands.status import Status
    from xencolod.xenstore import Client

F = TypeVar("F", bound=Callable[..., None])


class _Seconds(click.FloatRange):
    """A time of more than 0 seconds: ``nan`` and ``inf`` are none."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds, or fail with what is needed."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{seconds} is no number of seconds", param, ctx)
        return seconds


def _waits(function: F) -> F:
    """Give a command what all of them have."""
    timeout = click.option(
        "--timeout",
        type=_Seconds(),
        metavar="S",
        help="Seconds until the command is taken, and with --wait until it is done. By default 10 "
        "until it is taken and no end for the rest.",
    )
    wait = click.option(
        "--wait", is_flag=True, help="Show the progress, and return when the effect is seen."
    )
    return DOMID(wait(timeout(function)))


@click.command(epilog=examples("xencolo checkpoint 5 --wait"))
@_waits
def checkpoint(domid: int, wait: bool, timeout: float | None) -> None:
    """Make the secondary's disks what the primary's are now.

    What the secondary's own guest wrote since the last checkpoint is thrown away.
    """
    _perform(domid, "checkpoint", wait, timeout)


@click.command(
    epilog=examples(
        "xencolo resync 5 --wait",
        "xencolo resync 5 --to 192.0.2.7:9990     # another secondary, from now on",
    )
)
@_waits
@click.option(
    "--to", metavar="HOST[:PORT]", help="Another secondary than colo-host says, from now on."
)
@click.option(
    "--assume-equal", is_flag=True, help="Copy nothing: the disks of both hosts are known the same."
)
def resync(
    domid: int, wait: bool, timeout: float | None, to: str | None, assume_equal: bool
) -> None:
    """Copy a primary's disks to its secondary, then replicate.

    With --assume-equal a wrong assumption is noticed by nobody until a failover.
    """
    _perform(domid, "resync", wait, timeout, to=to, assume_equal=assume_equal)


@click.command(
    epilog=examples(
        "xencolo failover 5 --wait",
        "xencolo failover 5 --force     # even if no checkpoint was ever taken",
    )
)
@_waits
@click.option(
    "--force",
    is_flag=True,
    help="Even though the disks hold no checkpoint of the primary.",
)
def failover(domid: int, wait: bool, timeout: float | None, force: bool) -> None:
    """Let a secondary take over from its primary.

    What the primary wrote since the last checkpoint is lost. With --force on a secondary without a
    checkpoint the disks may hold what no guest ever saw. If the primary lives, which xencolod can't
    know, the two go separate ways, and what is written on one is lost with the next resync.
    """
    if force:
        run(lambda client: _say_what_is_lost(client, domid))
    _perform(domid, "failover", wait, timeout, force=force)


@click.command(epilog=examples("xencolo detach 5 --wait"))
@_waits
def detach(domid: int, wait: bool, timeout: float | None) -> None:
    """Stop replicating: a primary goes on alone, until a resync."""
    _perform(domid, "detach", wait, timeout)


async def _say_what_is_lost(client: "Client", domid: int) -> None:
    from xencolod.commands.status import last_checkpoint, read_status

    (status,) = await read_status(client, domid)
    if last := last_checkpoint(status):
        warn(f"what the primary of domain {domid} wrote since checkpoint {last}, is lost")
    else:
        warn(
            f"domain {domid} knows of no checkpoint: if a copy to its disks was begun, they may hold what no "
            f"guest ever saw; else what the guest wrote on the other host is lost"
        )


def _perform(
    domid: int,
    word: str,
    wait: bool,
    timeout: float | None,
    *,
    to: str | None = None,
    assume_equal: bool = False,
    force: bool = False,
) -> None:
    from xencolo.command import Command, Outcome, Word
    from xencolo.errors import CommandError
    from xencolod.commands import control

    command = Command(Word(word), to, assume_equal, force)

    async def performed(client: "Client") -> "Answer":
        with _live() as live:
            return await control.perform(
                client, domid, command, wait=wait, timeout=timeout, show=_Progress(domid, live)
            )

    answer = run(performed)
    if answer.outcome is Outcome.FAILED:
        raise CommandError(f"{word} of domain {domid} failed: {answer.text}", word)
    said = f"{answer.outcome}, {answer.text}" if answer.text else answer.outcome
    click.echo(printable(f"domain {domid}: {word} {said}"))


def _live() -> "AbstractContextManager[Live | None]":
    """Return a place for the progress that is gone when it ends; none in a pipe."""
    if not sys.stdout.isatty():
        return nullcontext()
    from rich.live import Live

    return Live(auto_refresh=False, transient=True)


class _Progress:
    """Shows a domain's states: each once in a pipe, with a bar for a resync on a terminal."""

    def __init__(self, domid: int, live: "Live | None") -> None:
        self._domid = domid
        self._live = live
        self._said: str | None = None

    def __call__(self, status: "Status") -> None:
        """Show the status."""
        from xencolod.commands.status import resync_bars

        line = printable(f"domain {self._domid}: {status.state or 'no state'}")
        if self._live:
            from rich.console import Group
            from rich.text import Text

            self._live.update(Group(Text(line), *resync_bars([status])), refresh=True)
        elif line != self._said:
            click.echo(line)
            self._said = line
