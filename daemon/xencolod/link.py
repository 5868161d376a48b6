"""The link on trio, the asking end: a connection to another host's daemon, one for each domain.

:mod:`xencolod.listener` is the answering end. Nothing is said or heard before both ends have shown
keys that the same authority signed, except in the plain mode that the configuration has to name.

A connection has a task that reads, one that writes whole lines, and one that pings or answers, so
cancelling who asks never leaves half a line. What either end waits for has a deadline.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, overload

import trio

from xencolo.errors import (
    LinkClosed,
    LinkError,
    LinkProtocolError,
    LinkRefused,
    LinkSilent,
    LinkUnreachable,
    LinkUntrusted,
)
from xencolo.lines import LineFramer
from xencolo.link import (
    LINE_MAX,
    Done,
    Hello,
    Ping,
    Refusal,
    Reply,
    Request,
    Welcome,
    decode_reply,
    encode,
)
from xencolod.nurseries import background
from xencolod.security import Security, secure

_RECEIVE = 1 << 14
_LINES_QUEUED = 16
# Seconds to say good-bye; the connection is over anyway.
_CLOSING = 1.0


# -- a connection -------------------------------------------------------------------------------


class Wire:
    """Lines both ways on one connection."""

    def __init__(self, stream: trio.abc.Stream, timeout: float) -> None:
        self.stream = stream
        self._timeout = timeout
        self._out, self._queue = trio.open_memory_channel[bytes](_LINES_QUEUED)
        self._framer = LineFramer(LINE_MAX, LinkProtocolError)
        self._begun = False

    async def send(self, line: bytes) -> None:
        """Have a line written, after those before it; waits when many are."""
        await self._out.send(line)

    async def write(self) -> None:
        """Write what is sent, for ever.

        :raises LinkSilent: the other end does not read.
        :raises LinkClosed: it is gone.
        """
        async for line in self._queue:
            await self.write_line(line)

    async def write_line(self, line: bytes) -> None:
        """Write one line, as :meth:`write` does, for who has none running."""
        try:
            with trio.fail_after(self._timeout):
                await self.stream.send_all(line)
        except trio.TooSlowError:
            raise LinkSilent(f"it did not read for {self._timeout:g} s") from None
        except trio.BrokenResourceError as error:
            raise _broken(error) from error

    async def read(self) -> list[bytes]:
        """Wait for the next lines, without a deadline.

        :raises LinkClosed: there will be none.
        :raises LinkProtocolError: what came can't be a line.
        """
        lines: list[bytes] = []
        while not lines:
            try:
                data = await self.stream.receive_some(_RECEIVE)
            except trio.BrokenResourceError as error:
                raise _broken(error) from error
            if not data:
                raise LinkClosed("it closed the connection")
            # Seen at once: what speaks something else may wait for an answer.
            if not self._begun and data[:1] != b"{":
                raise LinkProtocolError(
                    f"{bytes(data[:40])!r} begins no message; both hosts have to have the same "
                    "link.unencrypted_and_unauthenticated, and nothing else may use the port"
                )
            self._begun = True
            lines = self._framer.feed(bytes(data))
        return lines


def _broken(error: trio.BrokenResourceError) -> LinkClosed:
    if isinstance(error.__cause__, ssl.SSLEOFError):
        return LinkClosed("it closed the connection without a good-bye")
    return LinkClosed(f"the connection broke: {error.__cause__ or error}")


async def close(stream: trio.abc.Stream) -> None:
    """Say good-bye and close, soon whatever the other end does."""
    with trio.move_on_after(_CLOSING):
        await stream.aclose()


async def first_failure(*tasks: Callable[[], Awaitable[None]]) -> LinkError:
    """Run tasks that only end by failing, until the first does; return how."""
    failures: list[LinkError] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except LinkError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    return failures[0]


# -- the asking end -----------------------------------------------------------------------------


class _Question(NamedTuple):
    expected: type[Welcome | Done]
    channel: trio.MemorySendChannel[Welcome | Done | Refusal]


class Link:
    """A connection to another host's daemon; made by :func:`open_link`.

    The first thing to ask is :class:`~xencolo.link.Hello`. From then on the link pings by itself.

    :ivar lost: why the link is over, None while it is not.
    """

    def __init__(
        self, stream: trio.abc.Stream, where: str, timeout: float, ping_interval: float
    ) -> None:
        self._where = where
        self._timeout = timeout
        self._ping_interval = ping_interval
        self._wire = Wire(stream, timeout)
        self._last_id = 0
        self._questions: dict[int, _Question] = {}
        self._greeted = trio.Event()
        self._ended = trio.Event()
        self.lost: LinkError | None = None

    @overload
    async def ask(self, request: Hello, timeout: float | None = None) -> Welcome: ...

    @overload
    async def ask(self, request: Request, timeout: float | None = None) -> Welcome | Done: ...

    async def ask(self, request: Request, timeout: float | None = None) -> Welcome | Done:
        """Return the answer: :class:`~xencolo.link.Welcome` to a hello, else Done.

        Cancelled or late, what was asked may still be done. Requests are performed in the order in
        which they were asked, one after the other.

        :param timeout: seconds for the answer; None: the link's.
        :raises LinkRefused: the other daemon said no; the link goes on.
        :raises LinkSilent: no answer in time. The link goes on, unless it was a ping's.
        :raises LinkClosed: the link is or was lost.
        :raises LinkProtocolError: the request can't be sent, or the other end talks nonsense.
        """
        if self._ended.is_set():
            raise self._loss()
        self._last_id += 1
        line = encode(self._last_id, request)
        send, receive = trio.open_memory_channel[Welcome | Done | Refusal](1)
        expected = Welcome if isinstance(request, Hello) else Done
        self._questions[self._last_id] = _Question(expected, send)
        seconds = self._timeout if timeout is None else timeout
        what = type(request).__name__.lower()
        try:
            with receive, trio.fail_after(seconds):
                await self._wire.send(line)
                if isinstance(request, Hello):
                    self._greeted.set()
                reply = await receive.receive()
        except trio.TooSlowError:
            raise LinkSilent(f"{self._where}: no answer to {what} within {seconds:g} s") from None
        except trio.EndOfChannel:
            raise self._loss() from None
        if isinstance(reply, Refusal):
            raise LinkRefused(reply.kind, reply.reason, reply.generation)
        return reply

    async def wait_closed(self) -> LinkError:
        """Wait until the link is lost, and return why; pings are the deadline."""
        await self._ended.wait()
        return self._loss()

    def _loss(self) -> LinkError:
        """A new one each time: several tasks may raise it."""
        if self.lost is None:
            return LinkClosed(f"{self._where}: closed by this host")
        return type(self.lost)(*self.lost.args)

    async def run(self) -> None:
        """Keep the link until it is lost; then all that wait for an answer end with the reason."""
        try:
            lost = await first_failure(self._wire.write, self._receive, self._ping)
            self.lost = type(lost)(f"{self._where}: {str(lost).removeprefix(f'{self._where}: ')}")
        finally:
            for question in self._questions.values():
                question.channel.close()
            self._ended.set()

    async def _receive(self) -> None:
        while True:
            for line in await self._wire.read():
                self._take(*decode_reply(line))

    def _take(self, number: int, reply: Reply) -> None:
        question = self._questions.get(number)
        if question is None:
            raise LinkProtocolError(f"it answers {number}, which was not asked")
        if not isinstance(reply, question.expected | Refusal):
            raise LinkProtocolError(f"it answers {reply!r} where that is no answer")
        del self._questions[number]
        try:
            question.channel.send_nowait(reply)
        except trio.BrokenResourceError:
            # Nobody waits any more for an answer that came after its deadline.
            return

    async def _ping(self) -> None:
        await self._greeted.wait()  # no deadline: who asks has one
        while True:
            await trio.sleep(self._ping_interval)
            try:
                await self.ask(Ping())
            except LinkRefused as error:
                raise LinkProtocolError(f"it refuses a ping: {error.reason}") from error


@asynccontextmanager
async def open_link(
    host: str, port: int, security: Security, *, timeout: float, ping_interval: float
) -> AsyncIterator[Link]:
    """Connect to another host's daemon.

    :param timeout: seconds for connecting, for an answer unless it is asked with its own, and for
        the answer to a ping, without which the link is lost.
    :param ping_interval: seconds between two pings.
    :raises LinkUnreachable: nobody answers there.
    :raises LinkUntrusted: somebody does, without our keys.
    """
    where = f"{host} port {port}"
    stream = await _connect(host, port, where, security, timeout)
    try:
        async with background() as nursery:
            link = Link(stream, where, timeout, ping_interval)
            nursery.start_soon(link.run)
            yield link
    finally:
        await close(stream)


async def _connect(
    host: str, port: int, where: str, security: Security, timeout: float
) -> trio.abc.Stream:
    try:
        with trio.fail_after(timeout):
            plain = await trio.open_tcp_stream(host, port)
            return await secure(plain, security.client, server=False)
    except trio.TooSlowError:
        raise LinkUnreachable(f"{where} did not answer within {timeout:g} s") from None
    except LinkUntrusted as error:
        raise LinkUntrusted(f"{where}: {error}") from error
    except (OSError, ValueError) as error:
        # ValueError: a name that can't be one.
        raise LinkUnreachable(f"{where}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What stands behind trio's error for all addresses of a name: one for each."""
    cause = error.__cause__
    causes = cause.exceptions if isinstance(cause, ExceptionGroup) else [cause or error]
    return "; ".join(dict.fromkeys(getattr(one, "strerror", None) or str(one) for one in causes))
