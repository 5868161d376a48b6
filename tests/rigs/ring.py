"""A guest's end of its ring page: how a domain other than dom0 speaks to a real server.

The server has mapped the same file (``standin.c``) when dom0 has introduced the domain.
"""

import mmap
import os
import select
import struct
from pathlib import Path
from typing import Self

from tests.rigs.servers import DEADLINE, RigError

# struct xenstore_domain_interface of xs_wire.h: two rings, then cons and prod of each.
_RING = 1024
_RESPONSES = 1024
_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD = 2048, 2052, 2056, 2060
_PAGE = 4096
# The stand-in's port of a domain.
_FIRST_PORT = 0x1000


class GuestRing:
    """The page of one guest that dom0 has introduced."""

    def __init__(self, directory: Path, domid: int) -> None:
        port = _FIRST_PORT + domid
        self._port = struct.pack("=I", port)
        page = directory / f"ring.{domid}"
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE)
        # The server reads an index at any time: each must change in one store, and struct.pack_into()
        # writes zeros first.
        self._words = memoryview(self._page).cast("I")
        woken = directory / f"evtchn.{port}"
        woken.unlink(missing_ok=True)
        os.mkfifo(woken)
        self._woken = os.open(woken, os.O_RDWR | os.O_NONBLOCK)
        self._wake = os.open(directory / "evtchn", os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._woken)
        os.close(self._wake)
        self._words.release()
        self._page.close()

    def sendall(self, data: bytes) -> None:
        """Put bytes into the ring as the server makes room.

        :raises RigError: the server does not take them.
        """
        while data:
            produced = self._index(_REQ_PROD)
            room = _RING - (produced - self._index(_REQ_CONS))
            at = produced % _RING
            chunk = data[: min(room, _RING - at)]
            if not chunk:
                self._wait()
                continue
            self._page[at : at + len(chunk)] = chunk
            self._advance(_REQ_PROD, len(chunk))
            data = data[len(chunk) :]

    def recv(self) -> bytes:
        """Return the bytes that the server has put into the ring, one at least.

        :raises RigError: it puts none.
        """
        while True:
            consumed = self._index(_RSP_CONS)
            count = (self._index(_RSP_PROD) - consumed) & 0xFFFF_FFFF
            at = consumed % _RING
            if count:
                start = _RESPONSES + at
                data = self._page[start : start + min(count, _RING - at)]
                self._advance(_RSP_CONS, len(data))
                return data
            self._wait()

    def _index(self, offset: int) -> int:
        return self._words[offset // 4]

    def _advance(self, offset: int, count: int) -> None:
        self._words[offset // 4] = (self._index(offset) + count) & 0xFFFF_FFFF
        os.write(self._wake, self._port)

    def _wait(self) -> None:
        if not select.select([self._woken], [], [], DEADLINE)[0]:
            raise RigError(f"the server leaves its event channel alone for {DEADLINE:g} s")
        os.read(self._woken, 4096)
