"""QMP on trio: one connection, commands answered by id, each with a deadline."""

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from xencolo.errors import QmpClosed, QmpProtocolError
from xencolo.qmp import Event, Greeting, Reply, Session
from xencolod.exhausted import is_exhausted
from xencolod.nurseries import background

_RECEIVE = 1 << 16
#: Seconds that a line may take to be sent.
_SENDING = 1.0
#: Seconds between attempts while QEMU's queue of new connections is full.
_BUSY_PAUSE = 0.01


class Qmp:
    """A greeted connection to one QEMU; made by :func:`open_qmp`.

    :ivar version: QEMU's (major, minor, micro).
    """

    def __init__(self, stream: trio.SocketStream, on_event: Callable[[Event], None]) -> None:
        self._stream = stream
        self._on_event = on_event
        self._session = Session()
        self._replies: dict[int, trio.MemorySendChannel[Reply]] = {}
        self._greeted = trio.Event()
        self._sending = trio.Lock()
        self._closed: QmpClosed | None = None
        self._ended = trio.Event()
        self._oob = False
        self.version = (0, 0, 0)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        oob: bool = False,
    ) -> Any:  # noqa: ANN401 - JSON
        """Return what the command returns.

        Cancelled or late, the command may still be performed by QEMU.

        :param timeout: seconds to wait for the reply.
        :param oob: overtake the commands before it, one that QEMU hangs in too; in turn where QEMU
            can't (before 2.12).
        :raises QmpCommandError: QEMU refused it.
        :raises QmpClosed: QEMU went away, or did not reply in time.
        """
        if self._closed:
            raise QmpClosed(*self._closed.args)
        number, line = self._session.command(command, arguments or {}, oob=oob and self._oob)
        send, receive = trio.open_memory_channel[Reply](1)
        self._replies[number] = send
        try:
            with trio.fail_after(timeout):
                await self._send(line)
                reply = await receive.receive()
        except trio.TooSlowError:
            raise QmpClosed(f"QEMU did not answer {command} within {timeout:g} s") from None
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            raise QmpClosed(f"QEMU closed QMP before it answered {command}") from None
        finally:
            self._replies.pop(number, None)
        if reply.error:
            raise reply.error
        return reply.value

    async def _send(self, line: bytes) -> None:
        async with self._sending:
            # Shielded, as a line is sent whole or not at all, and short, as QEMU may not read it.
            with trio.move_on_after(_SENDING, shield=True) as sending:
                await self._stream.send_all(line)
            if sending.cancelled_caught:
                # Part of the line may be out, and the next one would be taken for its rest.
                self._stream.socket.shutdown(socket.SHUT_RDWR)
                raise QmpClosed(f"QEMU read no command for {_SENDING:g} s")

    async def negotiate(self, deadline: float) -> None:
        """Wait for the greeting and leave the capabilities mode.

        :param deadline: on trio's clock.
        :raises QmpClosed: no greeting in time; somebody else may hold the only connection.
        :raises QmpCommandError: QEMU refused to leave the capabilities mode.
        """
        with trio.move_on_at(deadline):
            await self._greeted.wait()
        if self._closed:
            raise QmpClosed(*self._closed.args)
        if not self._greeted.is_set():
            raise QmpClosed("QEMU sent no QMP greeting in time; another client may be connected")
        await self.execute(
            "qmp_capabilities",
            {"enable": ["oob"]} if self._oob else {},
            timeout=max(0.0, deadline - trio.current_time()),
        )

    async def receive(self) -> None:
        """Take what QEMU says until it closes; then every command under way ends with QmpClosed."""
        reason = "QEMU closed QMP"
        try:
            while data := await self._stream.receive_some(_RECEIVE):
                for message in self._session.feed(data):
                    self._take(message)
        except trio.BrokenResourceError as error:
            reason = f"QMP broke: {error.__cause__}"
        except QmpProtocolError as error:
            reason = str(error)
        finally:
            self._closed = QmpClosed(reason)
            for channel in self._replies.values():
                channel.close()
            self._greeted.set()
            self._ended.set()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed is not None

    async def wait_closed(self) -> None:
        """Wait until QEMU closes the connection, without a deadline."""
        await self._ended.wait()

    def _take(self, message: Greeting | Reply | Event) -> None:
        match message:
            case Greeting(version, oob):
                self.version, self._oob = version, oob
                self._greeted.set()
            case Reply(number):
                # Nobody waits any more for a reply that came after its deadline.
                if channel := self._replies.get(number):
                    channel.send_nowait(message)
            case Event():
                self._on_event(message)


async def _connect(path: str, deadline: float) -> trio.socket.SocketType:
    """Connect; wait only while others wait already.

    :raises QmpClosed: nobody listens, or others waited until the deadline.
    :raises OSError: the host is exhausted; nothing is wrong with QEMU.
    """
    while True:
        try:
            return _connect_now(path)
        except BlockingIOError:
            if trio.current_time() >= deadline:
                busy = f"QMP at {path}: busy; another client may be connected"
                raise QmpClosed(busy) from None
        except OSError as error:
            if is_exhausted(error):
                raise
            raise QmpClosed(f"QMP at {path}: {error}") from None
        await trio.sleep(_BUSY_PAUSE)


def _connect_now(path: str) -> trio.socket.SocketType:
    """Connect by a plain socket: trio takes EAGAIN, which a full queue gives, for EINPROGRESS."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.setblocking(False)
    try:
        plain.connect(path)
    except OSError:
        plain.close()
        raise
    return trio.socket.from_stdlib_socket(plain)


@asynccontextmanager
async def open_qmp(
    path: str, *, timeout: float, on_event: Callable[[Event], None] = lambda _: None
) -> AsyncIterator[Qmp]:
    """Connect to QEMU's QMP socket and greet it.

    :param timeout: seconds for connecting and greeting together.
    :raises QmpClosed: nobody listens, others wait already, or no greeting came in time.
    :raises OSError: the host is exhausted; nothing is wrong with QEMU.
    :raises QmpCommandError: QEMU refused to leave the capabilities mode.
    """
    deadline = trio.current_time() + timeout
    stream_socket = await _connect(path, deadline)
    async with trio.SocketStream(stream_socket) as stream, background() as nursery:
        qmp = Qmp(stream, on_event)
        nursery.start_soon(qmp.receive)
        await qmp.negotiate(deadline)
        yield qmp
