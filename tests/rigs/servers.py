"""The C xenstored and oxenstored, unmodified, each in a directory of its own.

The hypervisor below them is ``standin.c``, built here when it is newer than its library.
"""

import os
import select
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Self

from xencolo import wire

_HERE = Path(__file__).parent
_BUILD = _HERE.parent.parent / "build"
_XEN_BIN = Path("/usr/lib/xen-4.17/bin")

#: Seconds that a test waits for what it expects. Only a fault comes near it: a busy machine once took 13 s
#: to start a process.
DEADLINE = 60.0

#: What Debian's /etc/xen/oxenstored.conf says where it departs from the built-in defaults, and
#: where its files are.
_OXENSTORED_CONF = """\
pid-file = {0}/pid
xenstored-kva = {0}/xsd_kva
xenstored-port = {0}/xsd_port
merge-activate = true
perms-activate = true
perms-watch-activate = true
quota-activate = true
quota-maxentity = 1000
quota-maxsize = 2048
quota-maxwatch = 100
quota-transaction = 10
quota-maxrequests = 1024
quota-path-max = 1024
quota-maxoutstanding = 1024
quota-maxwatchevents = 1024
persistent = false
xenstored-log-file = {0}/log
xenstored-log-level = warn
"""

_SEED = {"/local/domain/0/name": "Domain-0", "/local/domain/0/domid": "0"}


class RigError(Exception):
    """A server that could not be built, did not come up, or does not answer; says what it wrote."""


def standin() -> Path:
    """Return the stand-in's library, built if its source is newer.

    :raises RigError: the compiler refused; libxen-dev and gcc are needed.
    """
    source, library = _HERE / "standin.c", _BUILD / "standin.so"
    if library.exists() and library.stat().st_mtime >= source.stat().st_mtime:
        return library
    _BUILD.mkdir(exist_ok=True)
    # Built aside and renamed: another test run may be doing the same.
    aside = _BUILD / f"standin.{os.getpid()}.so"
    build(source, aside, "-shared", "-fPIC", "-ldl")
    aside.rename(library)
    return library


def build(source: Path, built: Path, *options: str) -> None:
    """Have gcc build a C file.

    :raises RigError: the compiler refused; libxen-dev and gcc are needed.
    """
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RigError(f"gcc can't build {source} (apt install gcc libxen-dev):\n{done.stderr}")


class Server:
    """A running server.

    :ivar socket: where it listens.
    :ivar directory: its sockets, rings and logs; a restart uses the same.
    """

    def __init__(self, directory: Path, argv: Callable[[Path], list[str]]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self.socket = self.directory / "socket"
        self._argv = argv
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process id of the server, of the last one if it has ended."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once (SIGKILL): connections break off where they are."""
        self._process.kill()
        self._process.wait(DEADLINE)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), kill it when it does not."""
        self._process.terminate()
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Start it again on the same directory, its store empty; a living one is killed first."""
        if self.alive:
            self.kill()
        self._process = self._start()

    def output(self) -> str:
        """Return what the server wrote on stdout and stderr."""
        return (self.directory / "output").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.alive:
            self.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        self._prepare()
        ready, ready_child = os.pipe()
        environment = os.environ | {
            "LD_PRELOAD": str(standin()),
            "STANDIN_DIR": str(self.directory),
            "STANDIN_PARENT": str(os.getpid()),
            "STANDIN_READY_FD": str(ready_child),
            "XENSTORED_RUNDIR": str(self.directory),
            "XENSTORED_ROOTDIR": str(self.directory),
        }
        environment.pop("XENSTORED_PATH", None)
        try:
            with (self.directory / "output").open("wb") as output:
                process = subprocess.Popen(
                    self._argv(self.directory),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(ready_child,),
                )
        finally:
            os.close(ready_child)
        try:
            self._wait_ready(ready)
            self._seed()
        except BaseException:
            process.kill()
            process.wait(DEADLINE)
            raise
        finally:
            os.close(ready)
        return process

    def _prepare(self) -> None:
        """Lay out the files that the stand-in and the servers look for."""
        (self.directory / "xsd_kva").write_bytes(bytes(4096))
        (self.directory / "xsd_port").write_text("1")
        (self.directory / "oxenstored.conf").write_text(_OXENSTORED_CONF.format(self.directory))
        events = self.directory / "evtchn"
        events.unlink(missing_ok=True)
        os.mkfifo(events, 0o600)

    def _wait_ready(self, ready: int) -> None:
        """Wait for the byte that the stand-in sends from listen(); the end of file is a death."""
        readable, _, _ = select.select([ready], [], [], DEADLINE)
        if not readable or not os.read(ready, 1):
            what = "ended" if readable else f"does not listen after {DEADLINE:g} s"
            raise RigError(f"{self._argv(self.directory)[0]} {what}:\n{self.output()}")

    def _seed(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            try:
                client.connect(str(self.socket))
                for path, value in _SEED.items():
                    payload = wire.strings(path) + value.encode()
                    client.sendall(wire.encode(wire.Op.WRITE, 0, 0, payload))
                    _expect_ack(client)
            except OSError as error:
                raise RigError(
                    f"{self.socket} does not answer: {error}\n{self.output()}"
                ) from error


def _expect_ack(client: socket.socket) -> None:
    decoder = wire.Decoder()
    packets: list[wire.Packet] = []
    while not packets:
        data = client.recv(4096)
        if not data:
            raise ConnectionResetError("closed")
        packets = decoder.feed(data)
    if packets[0].op != wire.Op.WRITE:
        raise ConnectionRefusedError(f"refused a write: {packets[0].payload!r}")


def start_xenstored(directory: Path) -> Server:
    """Start the C xenstored; its socket, rings and logs are in the directory.

    :raises RigError: it did not come up.
    """
    return Server(
        directory, lambda at: [str(_XEN_BIN / "xenstored"), "-N", "-I", "-F", str(at / "pid")]
    )


def start_oxenstored(directory: Path) -> Server:
    """Start oxenstored; its socket, which is fixed, is moved into the directory by the stand-in.

    :raises RigError: it did not come up.
    """
    return Server(
        directory,
        lambda at: [
            str(_XEN_BIN / "oxenstored"),
            "--no-fork",
            "--config-file",
            str(at / "oxenstored.conf"),
        ],
    )
