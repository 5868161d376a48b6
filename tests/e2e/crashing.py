"""xencolod that ends, or has QEMUs end, at one moment of a replication: run as the daemon itself.

``CRASH_DIRECTORY`` holds ``plan`` while a moment is to come, ``struck`` once it came, and ``trace``, the
actions that were performed. The daemon's own code knows nothing of it.
"""

import json
import os
import signal
import time
from pathlib import Path

from xencolo.replication import Action
from xencolod.cli import daemon_main
from xencolod.performer import Performer
from xencolod.process import lock_holder

_DIRECTORY = Path(os.environ["CRASH_DIRECTORY"])
_PLAN, _STRUCK = _DIRECTORY / "plan", _DIRECTORY / "struck"
_perform = Performer.perform


async def _crashing(self: Performer, action: Action) -> None:
    _strike("before", action)
    with (_DIRECTORY / "trace").open("a") as trace:
        trace.write(f"{action.name}\n")
    await _perform(self, action)
    _strike("after", action)


def _strike(when: str, action: Action) -> None:
    if not _PLAN.exists():
        return
    plan = json.loads(_PLAN.read_text())
    if (plan["when"], plan["action"]) != (when, action.name):
        return
    plan["occurrence"] -= 1
    _PLAN.write_text(json.dumps(plan))
    if plan["occurrence"]:
        return
    _PLAN.rename(_STRUCK)
    for pidfile in map(Path, plan["qemus"]):
        pid = lock_holder(pidfile)
        if pid:
            os.kill(pid, signal.SIGKILL)
        while pid and lock_holder(pidfile) == pid:  # the next one may have it at once
            time.sleep(0.001)
    for pid in plan["daemons"]:
        os.kill(pid, signal.SIGKILL)


Performer.perform = _crashing  # type: ignore[method-assign]

if __name__ == "__main__":
    daemon_main()
