"""``python -m tests.bench [NAME…]``."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench import client, crowd, flood, libxl, replication, settling, start
from tests.bench.table import Row, show

PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "client": client.run,
    "libxl": libxl.run,
    "start": start.run,
    "settling": settling.run,
    "crowd": crowd.run,
    "flood": flood.run,
    "replication": replication.run,
}


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in PARTS]:
        sys.stderr.write(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}\n")
        return 2
    rows: list[Row] = []
    for name in names or PARTS:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            part = PARTS[name](Path(directory))
        show(
            part
        )  # at once: the whole takes many minutes, and a run that is broken off has told what it has
        rows += part
    show(rows)
    missed = [row.what for row in rows if row.missed]
    if missed:
        sys.stderr.write(f"target missed: {'; '.join(missed)}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
