"""Every row of replication's table is walked on real QEMUs by some test, or it is said here why not."""

import importlib
from pathlib import Path

from xencolo.replication import TABLE

#: Rows that are there so that no order of events is a fault, and that nothing outside brings about at will.
NOT_AT_WILL = {
    "primary promoted peer-lost": "the welcome is dealt with before the loss, and leads elsewhere",
    "primary promoted peer-silent": "the same",
    "secondary replicating fenced": "the fencing command is cancelled when the primary is back",
}


def test_every_row_is_walked() -> None:
    walked: set[str] = set()
    for path in Path(__file__).parent.glob("test_replication*.py"):
        module = importlib.import_module(f"tests.e2e.{path.stem}")
        for test in vars(module).values():
            for mark in getattr(test, "pytestmark", []):
                walked |= set(mark.args) if mark.name == "walks" else set()
    rows = {f"{role} {state} {event}" for role, state, event in TABLE}
    assert walked <= rows, f"no rows of the table: {sorted(walked - rows)}"
    assert NOT_AT_WILL.keys() <= rows
    assert not walked & NOT_AT_WILL.keys(), "these are walked after all"
    assert walked | NOT_AT_WILL.keys() == rows, f"not walked: {sorted(rows - walked)}"
