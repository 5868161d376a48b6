"""What the tests of the operator's command share: running it, and looking at the store from outside."""

import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from click.testing import CliRunner, Result
from pyxs import Client

from tests.rigs import Server
from tests.rigs.servers import DEADLINE
from xencolo import requests
from xencolod.asks import demand
from xencolod.cli import main
from xencolod.xenstore import open_client

PROGRAM = Path(sys.executable).with_name("xencolo")

COLO = {
    "vdev": "xvda",
    "backendtype": "qdisk",
    "colo": None,
    "colo-host": "192.0.2.2",
    "colo-port": "9000",
    "colo-export": "web",
    "active-disk": "/i/active.qcow2",
    "hidden-disk": "/i/hidden.qcow2",
    "target": "/i/web.raw",
}


def spec(**changes: str | None) -> str:
    """COLO's specification with other values; an empty one leaves its key out."""
    values = COLO | {key.replace("_", "-"): value for key, value in changes.items()}
    target = values.pop("target")
    words = [k if v is None else f"{k}={v}" for k, v in values.items() if v != ""]
    return ",".join([*words, f"target={target}"])


def xencolo(server: Server | Path, *args: str, status: int = 0) -> Result:
    """Run a command in this process, and check that it ends with the status and no traceback."""
    where = server.socket if isinstance(server, Server) else server
    result = CliRunner().invoke(main, ["--xenstore", str(where), *args])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


Process = subprocess.Popen[bytes]


@contextmanager
def started(server: Server, *args: str) -> Iterator[Process]:
    """Run the program itself, with stdout in a pipe; killed if it is still there at the end."""
    process = subprocess.Popen(
        [PROGRAM, *args],
        env=os.environ | {"XENSTORED_PATH": str(server.socket)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: Process) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, stdout.decode(), stderr.decode()


@contextmanager
def foreign(server: Server) -> Iterator[Client]:
    """pyxs's own client, which knows nothing of xencolo."""
    with Client(unix_socket_path=str(server.socket)) as client:
        yield client


Node = tuple[bytes, list[bytes]]


def store(server: Server, root: bytes = b"/") -> dict[str, Node]:
    """Every node below a path with value and permissions, in the server's order."""
    found: dict[str, Node] = {}

    def walk(client: Client, path: bytes) -> None:
        found[path.decode()] = client.read(path), client.get_perms(path)
        for name in client.list(path):
            walk(client, path.rstrip(b"/") + b"/" + name)

    with foreign(server) as client:
        walk(client, root)
    return found


def write(server: Server, path: str, value: bytes) -> None:
    with foreign(server) as client:
        client.write(path.encode(), value)


async def write_raw(server: Server, nodes: dict[str, bytes]) -> None:
    """Write what pyxs refuses to: control characters, as any guest can."""
    async with open_client(server.socket) as client:
        await demand(client, [requests.write(path, value) for path, value in nodes.items()])


def remove(server: Server, path: str) -> None:
    with foreign(server) as client:
        client.delete(path.encode())


class _Half(socketserver.BaseRequestHandler):
    """Hangs up in the middle of the first answer, and soon on who asks nothing."""

    request: socket.socket

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            self.request.settimeout(0.3)
            if self.request.recv(4096):
                self.request.sendall(b"\x02\x00\x00\x00\x01\x00\x00")


@contextmanager
def breaking_off(where: Path) -> Iterator[None]:
    """A server that ends each connection in the middle of its first answer."""
    with socketserver.ThreadingUnixStreamServer(str(where), _Half) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(DEADLINE)


GUEST = [b"n5", b"r0"]
SERVED = [b"n0", b"r5"]
TOOLSTACK = [b"n0"]
BE, FE = "/local/domain/0/backend/qdisk/5/51712", "/local/domain/5/device/vbd/51712"
LX = "/libxl/5/device/vbd/51712"

#: libxl's names, values and order (FACTS, "Nodes of a disk").
BACKEND_NODES = {
    "params": b"aio:/i/web.raw",
    "colo-host": b"192.0.2.2",
    "colo-port": b"9000",
    "colo-export": b"web",
    "active-disk": b"/i/active.qcow2",
    "hidden-disk": b"/i/hidden.qcow2",
    "frontend-id": b"5",
    "online": b"1",
    "removable": b"0",
    "bootable": b"1",
    "state": b"1",
    "dev": b"xvda",
    "type": b"qdisk",
    "mode": b"w",
    "device-type": b"disk",
    "discard-enable": b"1",
    "specification": b"xen",
}
FRONTEND_NODES = {
    "backend": BE.encode(),
    "backend-id": b"0",
    "state": b"1",
    "virtual-device": b"51712",
    "device-type": b"disk",
    "trusted": b"1",
}
LIBXL_NODES = {"frontend": FE.encode(), "backend": BE.encode(), **BACKEND_NODES}
