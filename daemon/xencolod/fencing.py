"""The operator's fencing command: it alone may say that the primary is dead."""

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import trio

from xencolod.log import emit

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_WORDS_MAX = 400
#: Seconds from SIGTERM to SIGKILL.
_TERM_TIMEOUT = 5.0
#: Seconds that the last words of a command that has ended are waited for: what it left behind may hold its
#: stderr open for ever.
_LAST_WORDS = 0.2
#: Seconds between two looks whether what was asked to end has ended.
_LOOK = 0.05


async def fence(owner: "Replicator") -> bool:
    """Run the fencing command; return whether it succeeded, so that this side may take over.

    Not at once: the primary's daemon may be back soon, and the caller cancels this then.
    """
    config = owner.performer.host.settings.config.failover
    await trio.sleep(config.after)
    record, command = owner.performer.record, list(config.command)
    if record is None or not record.in_sync:
        why = "the disks hold no checkpoint of the primary, so there is nothing to take over with"
        emit(owner.log, "failover.fencing_failed", command=command, error=why)
        return False
    peer = owner.answering.last_peer
    emit(owner.log, "failover.fencing", command=command, peer=peer)
    environment = {
        "XENCOLO_DOMID": str(owner.domid),
        # No variable can hold a NUL.
        "XENCOLO_NAME": "".join(filter(str.isprintable, record.name)),
        "XENCOLO_UUID": record.uuid,
        "XENCOLO_GENERATION": str(record.generation),
        "XENCOLO_PEER": peer or "",
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
        process = await trio.lowlevel.open_process(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    said = bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, said)
            await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
    finally:
        if process.returncode != 0:
            with trio.CancelScope(shield=True):  # bounded, and SIGKILL comes at its end
                await _end(process)
    if process.returncode == 0:
        return ""
    words = " / ".join(said.decode("utf-8", "backslashreplace").splitlines()[-3:])
    return f"it ended with status {process.returncode}: {words[-_WORDS_MAX:]}"


async def _listen(process: trio.Process, said: bytearray) -> None:
    """Keep the end of what it says on stderr, however much that is."""
    if process.stderr is None:
        return
    async with process.stderr:
        async for data in process.stderr:
            said += data
            del said[:-_WORDS_MAX]


async def _end(process: trio.Process) -> None:
    """End a command with all that it has started: a late one would fence a primary that has come back."""
    _signalled(process.pid, signal.SIGTERM)
    with trio.move_on_after(_TERM_TIMEOUT):
        while process.poll() is None or _signalled(process.pid, 0):
            await trio.sleep(_LOOK)
        return
    _signalled(process.pid, signal.SIGKILL)
    await process.wait()


def _signalled(group: int, number: int) -> bool:
    """Send a signal to a process group, 0 for none; return False if nobody is left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
