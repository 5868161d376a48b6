"""QEMU as it is, but for what it says of its age: run in its place.

The first argument is the version that its greeting has, the others are QEMU's own. What QEMU 6.0 brought it
does not know.
"""

import ctypes
import os
import re
import select
import signal
import socket
import sys

from xencolod.argv import SOCKET_FD

_PDEATHSIG = 1
_RELAY = "relay"


def _pass_on(near: socket.socket, far: socket.socket, version: bytes) -> None:
    """Be between the daemon and QEMU until one of them is gone."""
    first = True
    while True:
        ready, _, _ = select.select([near, far], [], [])
        for one in ready:
            data = one.recv(1 << 16)
            if not data:
                return
            if one is near:
                far.sendall(data.replace(b'"query-yank"', b'"query-yanc"'))
                continue
            if first:
                data, first = _older(data, version), False
            near.sendall(data)


def _older(greeting: bytes, version: bytes) -> bytes:
    for name, number in zip((b"major", b"minor", b"micro"), version.split(b"."), strict=True):
        greeting, count = re.subn(b'"%s": \\d+' % name, b'"%s": %s' % (name, number), greeting)
        assert count == 1
    return greeting


def _relay(version: str, name: str, listener: int) -> None:
    """Answer in QEMU's place for as long as it lives."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    outer = socket.socket(fileno=listener)
    while True:
        near, _ = outer.accept()
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(f"\0{name}")
            _pass_on(near, far, version.encode())


def main() -> None:
    """Become QEMU, with a child in front of its QMP."""
    version, *arguments = sys.argv[1:]
    if arguments[0] == _RELAY:
        _relay(version, arguments[1], int(arguments[2]))
    name = f"old-qemu-{os.getpid()}"
    inner = socket.socket(socket.AF_UNIX)
    inner.bind(f"\0{name}")
    inner.listen()
    outer = os.dup(SOCKET_FD)
    if not os.fork():  # not under QEMU's command line, by which QEMUs are found
        os.set_inheritable(outer, True)
        os.execv(
            sys.executable, [sys.executable, "-P", __file__, version, _RELAY, name, str(outer)]
        )
    os.close(outer)
    os.dup2(inner.fileno(), SOCKET_FD)
    os.execvp("qemu-system-x86_64", ["qemu-system-x86_64", *arguments])


if __name__ == "__main__":
    main()
