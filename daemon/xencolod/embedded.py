"""Serves the in-memory xenstore on a unix socket, as xenstored does: to try things without Xen."""

import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

import trio

from xencolo import wire
from xencolo.errors import ConfigError, WireError
from xencolo.store import Session, Store

#: Bytes that may wait for a client that does not read; past them it is dropped.
UNSENT_MAX = 1 << 20
# Past this a client's own requests wait, so that only others' doings can drop it.
_UNSENT_HIGH = 1 << 16


@dataclass(slots=True, eq=False)
class _Client:
    stream: trio.SocketStream
    scope: trio.CancelScope
    unsent: bytearray = field(default_factory=bytearray)
    more: trio.Event = field(default_factory=trio.Event)
    less: trio.Event = field(default_factory=trio.Event)

    def queue(self, data: bytes) -> None:
        """Send later; drop the client when it has let too much pile up."""
        self.unsent += data
        self.more.set()
        if len(self.unsent) > UNSENT_MAX:
            self.scope.cancel()

    async def write(self) -> None:
        """Send what is queued, for ever.

        :raises trio.BrokenResourceError: the client is gone.
        """
        while True:
            await self.more.wait()  # no deadline: a client may be silent for as long as it likes
            self.more = trio.Event()
            data, self.unsent = self.unsent, bytearray()
            await self.stream.send_all(data)
            self.less.set()

    async def drain(self) -> None:
        """Wait until little is queued: the client must read before it asks on."""
        while len(self.unsent) > _UNSENT_HIGH:
            self.less = trio.Event()
            await self.less.wait()  # no deadline: it harms nobody but this client


class _Server:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._clients: dict[Session, _Client] = {}

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it goes, sends what is no message, or is too slow."""
        session = self._store.connect()
        try:
            async with stream, trio.open_nursery() as nursery:
                client = self._clients[session] = _Client(stream, nursery.cancel_scope)
                nursery.start_soon(client.write)
                await self._read(session, client)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, WireError):
            # A client that breaks off or talks nonsense ends its own connection and nothing else,
            # as with xenstored; the stream is closed already.
            pass
        finally:
            self._clients.pop(session, None)
            self._store.disconnect(session)

    async def _read(self, session: Session, client: _Client) -> None:
        decoder = wire.Decoder(any_op=True)
        async for data in client.stream:
            for packet in decoder.feed(bytes(data)):
                for receiver, answer in self._store.handle(session, packet):
                    self._clients[receiver].queue(wire.encode(*answer))
                await client.drain()


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at the path.

    :raises ConfigError: a living server, or something that is no socket, is there.
    """
    if path.exists():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # nobody connects before it listens
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path}: the embedded xenstore can't listen there: {error}") from error
    return listener


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"{path} is no socket: give the embedded xenstore another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"{path}: a xenstore is served there already; use it or another path")


async def serve_embedded(
    path: str | os.PathLike[str],
    store: Store,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a store on a unix socket (mode 0600) until cancelled; every client is dom0.

    Started when the socket answers. What a dead server left there is removed; the socket goes at
    the end. All sessions of the store must be this server's.

    :raises ConfigError: the socket can't be had.
    """
    where = Path(path)
    server = _Server(store)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(where)))
    task_status.started()
    try:
        await trio.serve_listeners(server.serve, [listener])
    finally:
        where.unlink(missing_ok=True)
