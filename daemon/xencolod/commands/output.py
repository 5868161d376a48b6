"""What the commands print: tables for people, tab-separated lines for pipes, JSON, and messages."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from xencolo.errors import SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from xencolo.status import Resync

Row = Sequence[str | int | None]

#: How a word is coloured in the columns of _COLOURED.
STYLES: Mapping[str, str] = {
    "ready": "green",
    "running": "green",
    "replicating": "green",
    "listening": "green",
    "promoted": "green",
    "standalone": "yellow",
    "resyncing": "yellow",
    "failing-over": "yellow",
    "bypassed": "yellow",
    "degraded": "bold red",
    "waiting": "yellow",
    "launching": "yellow",
    "ending": "yellow",
    "outdated": "yellow",
    "foreign": "yellow",
    "skipped": "yellow",
    "failed": "bold red",
    "error": "bold red",
    "warning": "yellow",
    "debug": "dim",
}
_ERROR_COLUMN = "ERROR"
_COLOURED = frozenset({"STATE", "LEVEL"})
#: These may be folded where the terminal is too narrow; the others are short.
_FOLDED = frozenset({"NAME", "TARGET", "COLO", "PEER", "FIELDS", "MEANING", _ERROR_COLUMN})


def printable(text: str) -> str:
    """Return the text with all that could move a cursor, end a line or hide escaped, ``\\x1b``.

    What stands in xenstore may have been written by a guest, and reaches no terminal raw.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def message(error: BaseException) -> str:
    """Return an error as it is shown: on one line, and a wrong specification with the place."""
    if isinstance(error, SpecError):
        before, spec = printable(error.spec[: error.position]), printable(error.spec)
        return f"{printable(error.reason)}\n  {spec}\n  {' ' * len(before)}^"
    return printable(str(error))


def warn(text: str) -> None:
    """Say something on stderr that does not stop the command; the text is already printable."""
    click.echo(f"xencolo: {text}", err=True)


def print_json(value: object) -> None:
    """Print one JSON document; ASCII alone, so no control character of a node's gets out."""
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """Print one JSON document on a line of its own, as those of a stream are; ASCII alone."""
    click.echo(json.dumps(value))


def cell(value: str | int | None) -> str:
    """Return a value as it stands in a table: ``-`` where there is none."""
    return "-" if value is None or value == "" else printable(str(value))


def line(row: Row) -> str:
    """Return a row for a pipe: its cells with a tab between them; no cell holds one."""
    return "\t".join(map(cell, row))


def print_table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows: aligned and coloured on a terminal, else a line each under the columns' names."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(columns, rows))
        return
    for row in (columns, *rows):
        click.echo(line(row))


def rich_table(columns: Sequence[str], rows: Sequence[Row]) -> "Table":
    """Return the table for a terminal, without the columns that say nothing; no cell is markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = [[cell(value) for value in row] for row in rows]
    told = [i for i in range(len(columns)) if not cells or any(row[i] != "-" for row in cells)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i in told:
        table.add_column(columns[i], overflow="fold", no_wrap=columns[i] not in _FOLDED)
    for row in cells:
        table.add_row(*(Text(row[i], _style(columns[i], row[i])) for i in told))
    return table


_DURATIONS = ((86400, "d"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has two: ``90 s``, ``3 min``."""
    for size, unit in _DURATIONS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(size: float) -> str:
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.{0 if unit == 'B' else 1}f} {unit}"


def percent(resync: "Resync") -> int:
    """Return how much of a resync is done; 100 only when all is."""
    return min(resync.done, resync.total) * 100 // resync.total if resync.total else 0


def resync_words(resync: "Resync") -> str:
    """Return the progress of a resync in words."""
    left = "" if resync.left is None else f", {duration(resync.left)} left"
    return (
        f"{percent(resync)} %, {_size(resync.done)} of {_size(resync.total)}, "
        f"{_size(resync.rate)}/s{left}"
    )


def resync_bar(label: str, resync: "Resync") -> "Table":
    """Return the progress of a resync for a terminal."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(resync.total, 1), completed=resync.done, width=40)
    grid.add_row(Text(printable(label)), bar, Text(resync_words(resync)))
    return grid


def _style(column: str, text: str) -> str:
    if column == _ERROR_COLUMN and text != "-":
        return "red"
    return STYLES.get(text, "") if column in _COLOURED else ""


__all__ = [
    "cell",
    "duration",
    "line",
    "message",
    "percent",
    "print_json",
    "print_table",
    "printable",
    "resync_bar",
    "resync_words",
    "rich_table",
    "warn",
]
