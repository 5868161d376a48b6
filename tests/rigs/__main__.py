"""``python -m tests.rigs xenstored|oxenstored... -- CMD ARGS…``: run a command against real servers.

XENSTORED_PATHS says where their sockets are, with colons between, XENSTORED_PATH where the first one's
is. The exit status is the command's.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.rigs.servers import start_oxenstored, start_xenstored

_STARTERS = {"xenstored": start_xenstored, "oxenstored": start_oxenstored}


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the command's exit status; it gets a ^C itself and is waited for, whatever it does then."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _run(kinds: Sequence[str], command: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="xenstore-") as directory, ExitStack() as stack:
        sockets = [
            str(stack.enter_context(_STARTERS[kind](Path(directory, str(number)))).socket)
            for number, kind in enumerate(kinds)
        ]
        places = {"XENSTORED_PATH": sockets[0], "XENSTORED_PATHS": ":".join(sockets)}
        return _wait(subprocess.Popen(command, env=os.environ | places))


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else 0
    kinds, command = words[:cut], words[cut + 1 :]
    if not kinds or not command or not _STARTERS.keys() >= set(kinds):
        sys.stderr.write(f"usage: python -m tests.rigs {'|'.join(_STARTERS)}... -- CMD ARGS...\n")
        return 2
    return _run(kinds, command)


if __name__ == "__main__":
    sys.exit(main())
