"""The operator's fencing command: it alone may say that the primary is dead."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from xencolod.log import emit

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_WORDS_MAX = 400
#: Seconds from SIGTERM to SIGKILL.
_TERM_TIMEOUT = 5.0


async def fence(owner: "Replicator") -> bool:
    """Run the fencing command; return whether it succeeded, so that this side may take over.

    Not at once: the primary's daemon may be back soon, and the caller cancels this then.
    """
    config = owner.performer.host.settings.config.failover
    await trio.sleep(config.after)
    record, command = owner.performer.known, list(config.command)
    if not record.in_sync:
        why = "the disks hold no checkpoint of the primary, so there is nothing to take over with"
        emit(owner.log, "failover.fencing_failed", command=command, error=why)
        return False
    emit(owner.log, "failover.fencing", command=command, peer=owner.answering.peer)
    environment = {
        "XENCOLO_DOMID": str(owner.domid),
        "XENCOLO_NAME": record.name,
        "XENCOLO_UUID": record.uuid,
        "XENCOLO_GENERATION": str(record.generation),
        "XENCOLO_PEER": owner.answering.peer or "",
    }
    why = f"it did not end within {config.timeout:g} s"
    with trio.move_on_after(config.timeout):
        why = await _run(command, environment)
    if why:
        emit(owner.log, "failover.fencing_failed", command=command, error=why)
    return not why


async def _run(command: list[str], environment: dict[str, str]) -> str:
    """Return why the command failed, empty if it did not."""
    try:
        done = await trio.run_process(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            capture_stderr=True,
            check=False,
            start_new_session=True,
            deliver_cancel=_end,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return ""
    words = " / ".join(done.stderr.decode("utf-8", "backslashreplace").splitlines()[-3:])
    return f"it ended with status {done.returncode}: {words[-_WORDS_MAX:]}"


async def _end(process: trio.Process) -> None:
    """End a command with all that it has started: a late one would fence a primary that has come back."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await trio.sleep(_TERM_TIMEOUT)
