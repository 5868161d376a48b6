"""The guest of the demo: it writes patterns, and what its disk has to hold is kept count of."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from xencolod.demo.telling import DemoError
from xencolod.qmp import open_qmp

MIB = 1 << 20
_TIMEOUT = 10.0


class Run(NamedTuple):
    """So many MiB from a place on, full of one byte."""

    pattern: int
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.length} MiB of {self.pattern:#04x} at {self.start} MiB"


class Content:
    """What a disk holds: one byte for each MiB, repeated."""

    def __init__(self, patterns: list[int]) -> None:
        self._patterns = patterns

    @classmethod
    def various(cls, count: int) -> "Content":
        """Return so many MiB that look different where they are misplaced."""
        return cls([0x80 + index for index in range(count)])

    def copy(self) -> "Content":
        """Return what it is now."""
        return Content(self._patterns.copy())

    def write(self, run: Run) -> None:
        """Note what was written."""
        self._patterns[run.start : run.start + run.length] = [run.pattern] * run.length

    def runs(self) -> Iterator[Run]:
        """Yield all of it, equal neighbours together."""
        start = 0
        for pattern, group in groupby(self._patterns):
            count = len(list(group))
            yield Run(pattern, start, count)
            start += count

    def make(self, path: Path) -> None:
        """Write a raw image that holds it."""
        with path.open("wb") as file:
            for pattern in self._patterns:
                file.write(bytes([pattern]) * MIB)

    def is_in(self, path: Path) -> bool:
        """Tell whether a raw image holds this, byte by byte, and no more."""
        with path.open("rb") as file:
            equal = all(file.read(MIB) == bytes([p]) * MIB for p in self._patterns)
            return equal and not file.read(1)


class Guest:
    """The guest's side of a QEMU: its I/O goes through the emulated disk, as a guest's does.

    :param monitor: a second QMP socket of the QEMU; xencolod holds the first one.
    :param output: what QEMU prints: qemu-io says there what it did.
    """

    def __init__(self, monitor: Path, output: Path, devid: int) -> None:
        self._monitor = monitor
        self._output = output
        self._devid = devid

    async def _io(self, word: str, run: Run) -> str:
        start = self._output.stat().st_size
        io = f"{word} -P {run.pattern:#04x} {run.start}M {run.length}M"
        line = f'qemu-io -d disk-{self._devid} "{io}"'
        async with open_qmp(str(self._monitor), timeout=_TIMEOUT) as qmp:
            await qmp.execute("human-monitor-command", {"command-line": line}, timeout=_TIMEOUT)
        said = self._output.read_bytes()[start:].decode("utf-8", "backslashreplace")
        size = run.length * MIB
        done = {"read": "read", "write": "wrote"}[word]
        if f"{done} {size}/{size} bytes" not in said:
            raise DemoError(f"the guest could not {io}: {said.strip() or 'QEMU said nothing'}")
        return said

    async def write(self, run: Run) -> None:
        """Write.

        :raises DemoError: QEMU reports an error.
        """
        await self._io("write", run)

    async def reads(self, run: Run) -> bool:
        """Read; tell whether it was nothing but this.

        :raises DemoError: QEMU reports an error.
        """
        return "verification failed" not in await self._io("read", run)
