"""A guest that speaks to a real xenstored through its ring page, as its kernel may."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tests.e2e.host import Disk, Store
from tests.rigs import Server
from tests.rigs.ring import GuestRing
from tests.rigs.servers import DEADLINE
from xencolo import wire
from xencolo.wire import Op

#: Requests under way at once in a flood: a ring of 1024 bytes holds about that many.
_BURST = 12


class Guest:
    """One guest's end."""

    def __init__(self, ring: GuestRing) -> None:
        self._ring = ring
        self._decoder = wire.Decoder(payload_max=wire.REPLY_MAX)
        self._rq_id = 0

    def ask(self, op: Op, path: str, value: bytes = b"") -> str:
        """Return ``OK`` or the name of xenstored's error."""
        self._send(op, path, value)
        (packet,) = self._answers(1)
        return packet.payload[:-1].decode() if packet.op == Op.ERROR else "OK"

    def write(self, path: str, value: str) -> str:
        """Write a node; return ``OK`` or the error."""
        return self.ask(Op.WRITE, path, value.encode())

    def remove(self, path: str) -> str:
        """Remove a node; return ``OK`` or the error."""
        return self.ask(Op.RM, path)

    def permit(self, path: str, *permissions: str) -> str:
        """Set permissions; return ``OK`` or the error."""
        return self.ask(Op.SET_PERMS, path, wire.strings(*permissions))

    def burst(self, path: str) -> int:
        """Write a node many times at once; return how often."""
        for number in range(_BURST):
            self._send(Op.WRITE, path, str(number).encode())
        assert all(packet.op == Op.WRITE for packet in self._answers(_BURST))
        return _BURST

    def _send(self, op: Op, path: str, value: bytes) -> None:
        self._rq_id += 1
        self._ring.sendall(wire.encode(op, self._rq_id, 0, wire.strings(path) + value))

    def _answers(self, count: int) -> list[wire.Packet]:
        found: list[wire.Packet] = []
        while len(found) < count:
            packets = self._decoder.feed(self._ring.recv())
            found += [packet for packet in packets if packet.op != Op.WATCH_EVENT]
        return found


@contextmanager
def guest(store: Store, server: Server, domid: int) -> Iterator[Guest]:
    """Introduce a domain that has been created, and speak as its kernel does."""
    store.client.introduce_domain(domid, domid, domid)
    with GuestRing(server.directory, domid) as ring:
        yield Guest(ring)


class Flood:
    """A process in which a guest writes a node all the time, while it is told to."""

    def __init__(self, directory: Path, domid: int, path: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._on, self._ready, self._end = context.Event(), context.Event(), context.Event()
        self._count = context.Value("q", 0)
        events = (self._on, self._ready, self._end, self._count)
        self._process = context.Process(target=_flood, args=(directory, domid, path, *events))
        self._process.start()
        assert self._ready.wait(DEADLINE)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Flood as long as the block lasts."""
        self._on.set()
        try:
            yield
        finally:
            self._on.clear()

    def end(self) -> int:
        """End it; return how many writes it was."""
        self._end.set()
        self._on.set()
        self._process.join(DEADLINE)
        assert self._process.exitcode == 0
        return int(self._count.value)


def _flood(
    directory: Path, domid: int, path: str, on: Event, ready: Event, end: Event, count: Any
) -> None:
    with GuestRing(directory, domid) as ring:
        guest = Guest(ring)
        ready.set()
        while on.wait() and not end.is_set():
            count.value += guest.burst(path)


def copies(disk: Disk) -> list[str]:
    """Return every node that says what the disk is, in both places."""
    return [f"{place}/{name}" for place in (disk.backend, disk.libxl) for name in disk.nodes]
