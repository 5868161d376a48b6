"""The link on trio, the answering end: other hosts' daemons connect, say hello and ask.

Anybody on the network can connect, so who has not said hello, which takes the keys, is bounded in
number, in time and in bytes, and can't keep others out: one more drops the oldest.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from xencolo.errors import (
    ConfigError,
    LinkClosed,
    LinkError,
    LinkProtocolError,
    LinkSilent,
    XencoloError,
)
from xencolo.link import (
    Done,
    Hello,
    Ping,
    Refusal,
    Reply,
    Request,
    Welcome,
    decode_opening,
    decode_request,
    encode,
    refusal,
)
from xencolod.link import Wire, close, first_failure
from xencolod.log import Logger, emit
from xencolod.security import Security, secure

#: Connections that have not said hello yet.
PENDING_MAX = 64
#: Connections that have, one a domain; one more is refused and closed.
PEERS_MAX = 512
#: Requests that one connection may have waiting, beside pings; one more ends it.
REQUESTS_MAX = 8
#: Keys that end sooner are warned of, once a day.
EXPIRING = timedelta(days=90)

_DAY = 86400.0
# Seconds between two refusals in the log: a flood is not for the journal.
_QUIET = 1.0


class Peer:
    """Who asks: a connection that has said hello.

    :ivar address: its IP address.
    :ivar hello: its last hello.
    :ivar welcomed: the hello was answered by a welcome.
    :ivar closed: set when the connection is over.
    :ivar lost: then, why: LinkClosed, LinkSilent or LinkProtocolError.
    """

    def __init__(self, address: str, hello: Hello, end: Callable[[str], None]) -> None:
        self._end = end
        self.address = address
        self.hello = hello
        self.welcomed = False
        self.closed = trio.Event()
        self.lost: LinkError | None = None

    def close(self, reason: str) -> None:
        """End the connection; what is being answered is cancelled."""
        self._end(reason)


Answer = Callable[[Request, Peer], Awaitable[Reply]]
_LOST_KINDS: dict[type[LinkError], str] = {
    LinkClosed: "closed",
    LinkSilent: "silent",
    LinkProtocolError: "wrong",
}


class _Server:
    """What the connections share."""

    def __init__(
        self,
        security: Security,
        answer: Answer,
        on_gone: Callable[[Peer], None],
        timeout: float,
        log: Logger,
    ) -> None:
        self.security = security
        self.answer = answer
        self.timeout = timeout
        self.peers: set[Peer] = set()
        self._on_gone = on_gone
        self._log = log
        self._pending: dict[_Connection, None] = {}  # the oldest first
        self._quiet_until = 0.0
        self._unlogged = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it is over; what the other end does ends nothing else."""
        connection = _Connection(self, _address(stream))
        if len(self._pending) >= PENDING_MAX:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.end(f"dropped for newer ones: {PENDING_MAX} had not said hello yet")
        self._pending[connection] = None
        try:
            await connection.serve(stream)
        finally:
            self._pending.pop(connection, None)
            self._leave(connection)

    def said_hello(self, connection: "_Connection", peer: Peer) -> None:
        """Take in a connection that has shown its keys and its version."""
        self._pending.pop(connection, None)
        self.peers.add(peer)

    def welcome(self, peer: Peer) -> None:
        """Note that a hello was answered by a welcome."""
        peer.welcomed = True
        hello = peer.hello
        emit(self._log, "link.connected", peer=peer.address, uuid=hello.uuid, name=hello.name)

    def _leave(self, connection: "_Connection") -> None:
        peer, lost = connection.peer, connection.lost
        if peer is None:
            self._refused(connection.address, lost)
            return
        self.peers.remove(peer)
        peer.lost = lost
        peer.closed.set()
        if peer.welcomed:
            emit(
                self._log,
                "link.lost",
                peer=peer.address,
                uuid=peer.hello.uuid,
                kind=_LOST_KINDS[type(lost)],
                error=str(lost),
            )
        self._on_gone(peer)

    def _refused(self, address: str, error: LinkError) -> None:
        now = trio.current_time()
        if now < self._quiet_until:
            self._unlogged += 1
            return
        emit(self._log, "link.refused", peer=address, error=str(error), unlogged=self._unlogged)
        self._quiet_until = now + _QUIET
        self._unlogged = 0

    async def watch_keys(self) -> None:
        """Warn of keys that will end soon, once a day, for ever."""
        while keys := self.security.keys:
            left = keys.expires - datetime.now(UTC)
            if left < EXPIRING:
                emit(
                    self._log,
                    "link.keys_expiring",
                    file=keys.path,
                    expires=f"{keys.expires:%Y-%m-%d}",
                    days=left.days,
                )
            await trio.sleep(_DAY)


class _Connection:
    """One connection.

    :ivar peer: who asks, once he has said hello.
    :ivar lost: why it is over, when it is.
    """

    def __init__(self, server: _Server, address: str) -> None:
        self._server = server
        self._scope = trio.CancelScope()
        self._last_id = -1
        self._asked, self._requests = trio.open_memory_channel[tuple[int, Request]](REQUESTS_MAX)
        self.address = address
        self.peer: Peer | None = None
        self.lost: LinkError = LinkClosed("this host listens no more")

    def end(self, reason: str) -> None:
        """End it from this side."""
        self.lost = LinkClosed(reason)
        self._scope.cancel()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve it until it is over; `lost` says why."""
        with self._scope:
            try:
                self.lost = await self._serve(stream)
            except LinkError as error:
                self.lost = error

    async def _serve(self, stream: trio.SocketStream) -> LinkError:
        wire: Wire | None = None
        try:
            with trio.fail_after(self._server.timeout):
                context = self._server.security.server
                wire = Wire(await secure(stream, context, server=True), self._server.timeout)
                first, *more = await wire.read()
            number, hello = decode_opening(first)
            if not isinstance(hello, Refusal) and len(self._server.peers) >= PEERS_MAX:
                hello = _FULL
            if isinstance(hello, Refusal):
                await wire.write_line(encode(number, hello))
                return LinkClosed(hello.reason)
            self.peer = peer = Peer(self.address, hello, self.end)
            self._server.said_hello(self, peer)
            self._take(number, hello)
            return await first_failure(
                wire.write, partial(self._receive, wire, more), partial(self._work, wire, peer)
            )
        except trio.TooSlowError:
            return LinkSilent(f"it said no hello within {self._server.timeout:g} s")
        finally:
            await close(wire.stream if wire else stream)

    async def _receive(self, wire: Wire, lines: list[bytes]) -> None:
        while True:
            for line in lines:
                number, request = decode_request(line)
                self._take(number, request)
                if isinstance(request, Ping):
                    await wire.send(encode(number, Done()))
            with trio.move_on_after(self._server.timeout) as waiting:
                lines = await wire.read()
            if waiting.cancelled_caught:
                raise LinkSilent(f"nothing came for {self._server.timeout:g} s")

    def _take(self, number: int, request: Request) -> None:
        """Queue a request to be answered; pings are not, for answers may take long."""
        if number <= self._last_id:
            raise LinkProtocolError(f"request {number} came after {self._last_id}")
        self._last_id = number
        if isinstance(request, Ping):
            return
        try:
            self._asked.send_nowait((number, request))
        except trio.WouldBlock:
            raise LinkProtocolError(f"more than {REQUESTS_MAX} requests at once") from None

    async def _work(self, wire: Wire, peer: Peer) -> None:
        async for number, request in self._requests:
            await wire.send(encode(number, await self._answer(request, peer)))

    async def _answer(self, request: Request, peer: Peer) -> Reply:
        server = self._server
        if not isinstance(request, Hello):
            return await self._ask(request, peer) if peer.welcomed else _NOT_WELCOMED
        if peer.welcomed:
            return _WELCOMED
        peer.hello = request
        reply = await self._ask(request, peer)
        if isinstance(reply, Welcome):
            server.welcome(peer)
        return reply

    async def _ask(self, request: Request, peer: Peer) -> Reply:
        try:
            return await self._server.answer(request, peer)
        except XencoloError as error:
            return refusal("failed", str(error))


_NOT_WELCOMED = refusal("state", "no hello of this connection was welcomed yet")
_WELCOMED = refusal("state", "hello was said on this connection; open another one")
_FULL = refusal("busy", f"{PEERS_MAX} daemons are connected to this host; it takes no more")


def _address(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "gone already"


async def serve_link(
    address: str,
    port: int,
    security: Security,
    answer: Answer,
    log: Logger,
    *,
    timeout: float,
    on_gone: Callable[[Peer], None] = lambda _: None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer other hosts' daemons until cancelled. Started, with the port, when it listens.

    :param port: 0 takes a free one.
    :param answer: is given each request but pings, of one connection one after the other; hello
        first, and others only after it was answered by a Welcome. May take long: the deadline is
        with who asks. Cancelled when the connection is over. An XencoloError that it raises is
        answered as a refusal, ``failed``.
    :param timeout: seconds for TLS and hello together, then for a silence.
    :param on_gone: is told of each peer whose connection is over, welcomed or not; `Peer.lost` says
        why.
    :raises ConfigError: the address can't be had.
    """
    server = _Server(security, answer, on_gone, timeout, log)
    try:
        listeners = await trio.open_tcp_listeners(port, host=address)
    except (OSError, ValueError) as error:  # ValueError: a name that can't be one
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"link.listen: can't listen on {address} port {port}: {why}; "
            "set link.listen and link.port to what is this host's own and free"
        ) from error
    bound = int(listeners[0].socket.getsockname()[1])
    encrypted = security.server is not None
    emit(log, "link.listening", address=address, port=bound, encrypted=encrypted)
    if not encrypted:
        emit(log, "link.insecure")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch_keys)
        task_status.started(bound)
        await trio.serve_listeners(server.serve, listeners)
