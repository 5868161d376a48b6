"""One QEMU process: started with its QMP socket as a descriptor, found again, signalled, awaited.

QEMU itself holds a lock on its ``-pidfile`` while it lives. That lock answers every question about identity:
a second QEMU of the same domain refuses to start, and the kernel names the holder, so a pid that was used
again for something else is never taken for it.
"""

import fcntl
import os
import secrets
import select
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import trio

from xencolo.errors import DriveError
from xencolo.paths import numbers, parse_domid
from xencolo.plan import Launch
from xencolod import notify
from xencolod.argv import SOCKET_FD, command_line, nonce_in
from xencolod.config import Config

# struct flock on 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi0q")
_OUTPUT_TAIL = 600


class Files(NamedTuple):
    """Where a domain's QEMU keeps its things."""

    runtime: Path
    logs: Path
    domid: int

    @property
    def pidfile(self) -> Path:
        """QEMU's ``-pidfile``, locked while QEMU lives."""
        return self.runtime / f"{self.domid}.pid"

    @property
    def output(self) -> Path:
        """What QEMU says on stdout and stderr."""
        return self.logs / f"qemu-{self.domid}.log"

    def socket(self, nonce: str) -> Path:
        """QMP's socket; each start has its own, so that no start can cut another one off."""
        return self.runtime / f"{self.domid}-{nonce}.qmp"


def files(config: Config, domid: int) -> Files:
    """Return the places of one domain."""
    return Files(Path(config.daemon.runtime_directory), Path(config.daemon.log_directory), domid)


def lock_holder(pidfile: Path) -> int | None:
    """Return the pid of the process that holds a lock on the file, None if none does."""
    try:
        descriptor = os.open(pidfile, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    # Pids of another namespace are shown as 0: such a holder can't be reached.
    return None if kind == fcntl.F_UNLCK or pid <= 0 else pid


def domains_with_qemu(runtime: Path) -> list[int]:
    """Return the domids whose pid file is locked by a living QEMU."""
    names = (path.stem for path in runtime.glob("*.pid"))
    return [n for n in numbers(names, parse_domid) if lock_holder(runtime / f"{n}.pid")]


class Process:
    """A living QEMU, held by a pidfd: whatever is done to it can't reach another process.

    :ivar argv: what it was started with.
    :ivar output_start: bytes that were in its output file before it was started; 0 if it was adopted.
    :ivar socket: path of its QMP socket.
    :ivar started: on trio's clock, when it was started or found.
    """

    def __init__(self, pid: int, pidfd: int, argv: Sequence[str], where: Files) -> None:
        self.pid = pid
        self.argv = tuple(argv)
        self.output_start = 0
        self._pidfd = pidfd
        self._where = where
        self.socket = where.socket(nonce_in(argv))
        self.started = trio.current_time()

    def __repr__(self) -> str:
        return f"<QEMU {self.pid} of domain {self._where.domid}>"

    @property
    def exited(self) -> bool:
        """Whether it has ended, reaped or not."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> None:
        """Wait until it has ended, without a deadline: a QEMU runs for years."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def reap(self) -> str:
        """Return how it ended, and let go of it."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            result = None  # adopted: its parent was an earlier xencolod
        self.release()
        self.socket.unlink(missing_ok=True)
        if result is None:
            return "unknown"
        if result.si_code == os.CLD_EXITED:
            return f"exit status {result.si_status}"
        return f"signal {signal.Signals(result.si_status).name}"

    def release(self) -> None:
        """Let go of the descriptor; the process goes on."""
        os.close(self._pidfd)

    def last_words(self) -> str:
        """Return the end of what it wrote since its start."""
        try:
            with self._where.output.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(self.output_start, file.tell() - _OUTPUT_TAIL))
                lines = file.read().decode("utf-8", "backslashreplace").splitlines()
        except OSError:
            return ""  # what it was is in the file, for whoever can open it
        return " / ".join(line.strip() for line in lines[-3:])


def adopt(where: Files) -> Process | None:
    """Return the QEMU that holds the domain's pid file, None if none does.

    The holder is asked for again once the pidfd is open: only then is it certain that both are one.
    """
    pid = lock_holder(where.pidfile)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if lock_holder(where.pidfile) != pid:
        os.close(pidfd)
        return None
    try:
        return Process(pid, pidfd, _argv(pid), where)
    except DriveError:
        # A dying QEMU has no command line any more and may still hold the lock. Nobody else locks
        # this file; if somebody did, a QEMU started next would say so.
        os.close(pidfd)
        return None


def _argv(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return words.decode("utf-8", "surrogateescape").split("\0")[:-1]


def spawn(config: Config, launch: Launch, where: Files, *, xen: bool) -> Process:
    """Start QEMU in a session of its own, so that it outlives the daemon.

    :raises OSError: it can't be started, or its places can't be made; with the file's name.
    """
    for directory in (where.runtime, where.logs):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    nonce = secrets.token_hex(4)
    argv = command_line(config, launch, str(where.pidfile), nonce, xen=xen)
    output = os.open(where.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(os.fspath(where.socket(nonce)))
            where.socket(nonce).chmod(0o600)
            listener.listen(1)
            size = os.fstat(output).st_size
            pid = os.posix_spawnp(
                argv[0],
                argv,
                {k: v for k, v in os.environ.items() if k not in notify.VARIABLES},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), SOCKET_FD),
                ],
                setsid=True,
                # Python ignores these, and a child would inherit that.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
    except OSError as error:
        where.socket(nonce).unlink(missing_ok=True)
        # Python names no file where a socket can't be bound.
        error.filename = error.filename or os.fspath(where.socket(nonce))
        raise
    finally:
        os.close(output)
    process = Process(pid, os.pidfd_open(pid), argv, where)
    process.output_start = size
    return process
