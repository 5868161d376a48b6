"""How the demo talks: steps, what is done, and what was so; plain in a pipe, as click has it."""

from collections.abc import Iterable, Iterator
from typing import Self

import click
from rich.console import Console
from rich.live import Live
from rich.padding import Padding

from xencolo.errors import XencoloError
from xencolo.status import Resync
from xencolod.commands.output import percent, resync_bar, resync_words

#: Percent of a resync between two lines in a pipe.
_EVERY = 20


class DemoError(XencoloError):
    """Something was not as it must be."""


def step(text: str) -> None:
    """Begin a chapter."""
    click.secho(f"\n== {text}", bold=True)


def tell(text: str) -> None:
    """Say what is done or seen."""
    click.echo(f"   {text}")


def check(so: bool, what: str) -> None:
    """Say that something is so.

    :raises DemoError: it is not.
    """
    if not so:
        raise DemoError(f"not so: {what}")
    click.echo(f"   {click.style('ok:', fg='green')} {what}")


def columns(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of tab-separated cells with the cells below each other."""
    rows = [line.split("\t") for line in lines]
    widths: dict[int, int] = {}
    for row in rows:
        for index, cell in enumerate(row[:-1]):
            widths[index] = max(widths.get(index, 0), len(cell))
    for row in rows:
        yield "  ".join(cell.ljust(widths.get(index, 0)) for index, cell in enumerate(row)).rstrip()


class Bar:
    """The progress of a resync: a bar on a terminal, some lines in a pipe.

    :ivar seen: how often it was seen to have come further.
    """

    def __init__(self, label: str) -> None:
        console = Console()
        self.seen = 0
        self._label = label
        self._last = -1
        self._told = -_EVERY
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, resync: Resync) -> None:
        """Show how far it is."""
        now = percent(resync)
        self.seen += now > self._last
        self._last = now
        if self._live:
            self._live.update(Padding(resync_bar(self._label, resync), (0, 3)), refresh=True)
        elif now >= self._told + _EVERY:
            self._told = now
            tell(f"{self._label}: {resync_words(resync)}")
