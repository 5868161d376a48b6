"""``make faults``: every fault of the table, with a count at the end: tried, survived, lost."""

import argparse
import os
import random
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.e2e.host import Images
from tests.faults.table import FAULTS
from tests.faults.trial import Fault, Trial


def _run(fault: Fault, trial: Trial, console: Console) -> None:
    try:
        with trial.stack:
            fault.run(trial)
    except Exception:  # noqa: BLE001 - whatever it was, this fault was not survived
        console.print(traceback.format_exc(), markup=False, highlight=False)
        trial.tried += trial.tried == trial.survived  # it was lost between two of them


def main() -> int:
    """Make the faults; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("XENCOLO_SEED") or 0))
    parser.add_argument("--times", type=int, help="how often each, instead of the table's number")
    parser.add_argument("words", nargs="*", help="only faults with one of these words")
    asked = parser.parse_args()
    seed = asked.seed or secrets.randbits(32)
    console = Console(width=110)
    console.print(f"XENCOLO_SEED={seed}", highlight=False)
    table = Table("fault", "seconds", "tried", "survived", "lost")
    lost = tried = survived = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        images = Images(Path(directory) / "images")
        for number, fault in enumerate(FAULTS):
            if asked.words and not any(word in fault.name for word in asked.words):
                continue
            own = Path(directory) / str(number)
            own.mkdir()
            rng = random.Random(f"{seed} {fault.name}")
            trial = Trial(own, images, asked.times or fault.full, rng)
            began = time.monotonic()
            _run(fault, trial, console)
            seconds = time.monotonic() - began
            row = trial.tried, trial.survived, trial.tried - trial.survived
            table.add_row(fault.name, f"{seconds:.1f}", *map(str, row))
            console.print(f"{fault.name}: {row[0]} tried, {row[2]} lost, {seconds:.1f} s")
            tried, survived, lost = tried + row[0], survived + row[1], lost + row[2]
    console.print(table)
    console.print(f"{tried} tried, {survived} survived, {lost} lost", highlight=False)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
