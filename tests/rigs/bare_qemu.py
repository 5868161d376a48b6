"""A real QEMU without a machine, for what is said to it over QMP."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio


@asynccontextmanager
async def bare_qemu(directory: Path) -> AsyncIterator[tuple[trio.Process, str]]:
    """Run one; yield its process and the path of its QMP socket."""
    path = str(directory / "qmp")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen(1)
        process = await trio.lowlevel.open_process(
            [
                "qemu-system-x86_64",
                *("-machine", "none", "-display", "none", "-nodefaults", "-S"),
                *("-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"),
                *("-mon", "chardev=qmp,mode=control"),
            ],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    try:
        yield process, path
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
