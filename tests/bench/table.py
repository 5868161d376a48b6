"""One table for all parts: what was measured, what it is compared with, and the ratio that counts."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """A comparison; times are medians in seconds.

    :ivar ours: what xencolo takes.
    :ivar against: what it is compared with.
    :ivar theirs: what that takes, or what is allowed.
    :ivar target: the least ratio of theirs to ours; None where it is for information.
    :ivar unit: of both figures: ``s`` is shown as s, ms or µs.
    """

    what: str
    ours: float
    against: str
    theirs: float
    target: float | None = None
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """How many times less xencolo takes."""
        return self.theirs / self.ours if self.ours else float("inf")

    @property
    def missed(self) -> bool:
        """Whether the target was not reached."""
        return self.target is not None and self.ratio < self.target


@contextmanager
def stopwatch(times: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    began = perf_counter()
    yield
    times.append(perf_counter() - began)


def percentile(times: Sequence[float], percent: int) -> float:
    """Return the time that so many percent of all do not exceed."""
    return sorted(times)[max(0, -(-len(times) * percent // 100) - 1)]


def _shown(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.3g} {unit}"
    scale, name = next(
        (pair for pair in ((1, "s"), (1e3, "ms")) if value * pair[0] >= 1), (1e6, "µs")
    )
    return f"{value * scale:.3g} {name}"


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    table = Table(title=f"{os.cpu_count()} cores, {memory:.0f} GiB; medians", title_justify="left")
    for heading in ("", "xencolo", "compared with", "takes", "ratio", "target"):
        table.add_column(heading, justify="left" if heading in {"", "compared with"} else "right")
    for row in rows:
        table.add_row(
            row.what,
            _shown(row.ours, row.unit),
            row.against,
            _shown(row.theirs, row.unit),
            f"{row.ratio:.1f}" if row.ratio > 2 else f"{row.ratio:.2f}",
            "" if row.target is None else f"≥ {row.target:.3g}",
        )
    Console(width=130 if not sys.stdout.isatty() else None).print(table)
