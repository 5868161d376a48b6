"""``python -m tests.rigs xenstored|oxenstored -- CMD ARGS…``: run a command against a real server.

XENSTORED_PATH says where the server's socket is. The exit status is the command's.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rigs.servers import start_oxenstored, start_xenstored

_STARTERS = {"xenstored": start_xenstored, "oxenstored": start_oxenstored}


def main() -> int:
    match sys.argv[1:]:
        case [kind, "--", *command] if kind in _STARTERS and command:
            pass
        case _:
            sys.stderr.write(f"usage: python -m tests.rigs {'|'.join(_STARTERS)} -- CMD ARGS...\n")
            return 2
    with (
        tempfile.TemporaryDirectory(prefix="xenstore-") as directory,
        _STARTERS[kind](Path(directory)) as server,
    ):
        environment = os.environ | {"XENSTORED_PATH": str(server.socket)}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
