"""The xenstore client on trio: pipelined requests, a pool, transactions, watches, reconnect.

Requests go out in batches and their answers are matched by id, so a batch costs one round trip. The
C xenstored serves one request of each connection per turn of its loop: reads over several connections
are faster than over one (``make bench``), which is what the pool is for.
"""

import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from xencolo import requests
from xencolo._pyxs import default_socket
from xencolo.errors import ConnectionLost, DeadlineExceeded, StoreError, XenstoreError
from xencolo.requests import Answer, Request
from xencolo.wire import Op, split
from xencolod.asks import TRANSACTION_ATTEMPTS
from xencolod.connection import Connection, connect
from xencolod.nurseries import background
from xencolod.transaction import Transaction
from xencolod.watch import Watch

T = TypeVar("T")

#: A connection is worth so many requests of a spread batch. xenstored serves one of each in turn, and in a
#: flood each turn has one of the flood's; but each connection is a turn of the loop here as well.
_SPREAD_MIN = 8
#: Seconds before the first attempt to reconnect; doubled from one to the next.
_RECONNECT_MIN = 0.05


class Client:
    """A pool of connections to one xenstored; made by :func:`open_client`."""

    def __init__(
        self,
        path: str,
        *,
        connections: int,
        timeout: float,
        reconnect_max: float,
        on_connection: Callable[[XenstoreError | None], None],
    ) -> None:
        self.path = path
        self._timeout = timeout
        self._reconnect_max = reconnect_max
        self._on_connection = on_connection
        self._pool: list[Connection | None] = [None] * connections
        self._connected = trio.Event()
        self._lost: str | None = None
        self._watches: dict[str, Watch] = {}
        self._tokens = 0

    @property
    def connections(self) -> int:
        """How many connections the pool has when all are up."""
        return len(self._pool)

    @property
    def connected(self) -> bool:
        """Whether the first connection, which carries the watches, is up; without it nothing is sent."""
        return self._connected.is_set() and self._living(0) is not None

    async def wait_connected(self) -> None:
        """Wait until xenstored is there, without a deadline: a dom0 has no other xenstored."""
        await self._connected.wait()
        while not self.connected:  # it died, and its task has not seen it yet
            await self._connected.wait()

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        """Send the requests together on one connection, in order; an answer or error for each.

        :raises ConnectionLost: before all answers came. What was sent may or may not be done.
        :raises DeadlineExceeded: xenstored was silent for ``timeout`` seconds.
        """
        connection = self._readers()[0]
        return await connection.wait(connection.submit(batch), self._timeout)

    async def spread(self, batch: Sequence[Request]) -> list[Answer]:
        """Send requests whose order does not matter over several connections; answers in order.

        :raises ConnectionLost: before all answers came.
        :raises DeadlineExceeded: xenstored was silent for ``timeout`` seconds.
        """
        return await self.post(batch)()

    def post(self, batch: Sequence[Request]) -> Callable[[], Awaitable[list[Answer]]]:
        """Spread requests as :meth:`spread`, and return what waits for their answers.

        So the next can be built, or the last answers used, while xenstored is at work.

        :raises ConnectionLost: there is no connection.
        """
        readers = self._readers()
        del readers[max(1, len(batch) // _SPREAD_MIN) :]
        size = -(-len(batch) // len(readers))
        parts = [(c, c.submit(batch[i * size : (i + 1) * size])) for i, c in enumerate(readers)]

        async def answers() -> list[Answer]:
            return [answer for c, part in parts for answer in await c.wait(part, self._timeout)]

        return answers

    async def transaction(
        self, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = TRANSACTION_ATTEMPTS
    ) -> T:
        """Run ``body`` in a transaction and commit; from the start again when there is a conflict.

        :param body: must be safe to repeat; what it raises aborts the transaction.
        :raises StoreError: EAGAIN after ``attempts`` conflicts, or what ``body`` met.
        """
        for attempt in range(attempts):
            if attempt:
                await trio.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.25)))  # noqa: S311 - no secret
            done, value = await self._attempt(body)
            if done:
                return value
        raise StoreError(errno.EAGAIN, Op.TRANSACTION_END.name)

    async def _attempt(self, body: Callable[[Transaction], Awaitable[T]]) -> tuple[bool, T]:
        transaction = await self._begin()
        try:
            value = await body(transaction)
        except BaseException:
            transaction.abort()
            raise
        try:
            await transaction.end()
        except StoreError as error:
            if error.errno != errno.EAGAIN:
                raise
            return False, value
        return True, value

    async def _begin(self) -> Transaction:
        connection = self._idlest()
        started = connection.submit([requests.TRANSACTION_START])
        try:
            (answer,) = await connection.wait(started, self._timeout)
        except trio.Cancelled:
            # The id may still come, and nobody else would end it.
            started.forsake(partial(self._abort_started, connection))
            raise
        return self._transaction(connection, answer)

    def _transaction(self, connection: Connection, answer: Answer) -> Transaction:
        if isinstance(answer, StoreError):
            raise answer
        if not answer.rstrip(b"\0").isdigit():
            broken = ConnectionLost(f"{self.path}: transaction id {answer[:40]!r} is no number")
            connection.close(broken)
            raise broken
        return Transaction(connection, int(answer.rstrip(b"\0")), self._timeout)

    def _abort_started(self, connection: Connection, answers: Sequence[Answer]) -> None:
        if isinstance(answers[0], bytes):
            self._transaction(connection, answers[0]).abort()

    @asynccontextmanager
    async def watch(self, *roots: str) -> AsyncIterator[Watch]:
        """Watch paths and all below them; each fires at once, and again after every reconnect.

        While there is no connection the watch waits for the next one.

        :raises StoreError: xenstored refused. Should it refuse after a reconnect, that connection is
            given up, and the next one tries again.
        """
        self._tokens += 1
        watch = Watch(roots, f"xencolo-{self._tokens}")
        self._watches[watch.token] = watch
        try:
            if connection := self._living(0):
                await self._register(connection, [watch])
            yield watch
        finally:
            del self._watches[watch.token]
            if connection := self._living(0):
                connection.submit([requests.unwatch(root, watch.token) for root in watch.roots])

    async def _register(self, connection: Connection, watches: Iterable[Watch]) -> None:
        batch = [requests.watch(root, watch.token) for watch in watches for root in watch.roots]
        try:
            answers = await connection.wait(connection.submit(batch), self._timeout)
        except (ConnectionLost, DeadlineExceeded):
            return  # no loss: the next connection registers every watch there is
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer

    def _living(self, slot: int) -> Connection | None:
        connection = self._pool[slot]
        return None if connection is None or connection.dead else connection

    def _main(self) -> Connection:
        if connection := self._living(0):
            return connection
        dead = self._pool[0].dead if self._pool[0] else self._lost
        raise ConnectionLost(f"not connected to xenstored: {dead or self.path}")

    def _living_ones(self) -> list[Connection]:  # the first of them is the main one
        self._main()
        return [c for slot in range(len(self._pool)) if (c := self._living(slot))]

    def _readers(self) -> list[Connection]:
        """Return the connections for requests without a transaction.

        No answer waits there for a flood of events on the first connection, and no transaction on the last
        one waits for the answers to a thousand reads: xenstored answers each connection in order.
        """
        living = self._living_ones()
        return living[1:-1] or living

    def _idlest(self) -> Connection:
        """Return the connection with the fewest answers to come, the last of equals; not the events'.

        So the transactions of several tasks don't wait for each other.
        """
        living = self._living_ones()
        if len(living) > 2:
            del living[0]
        return min(reversed(living), key=lambda connection: connection.missing)

    def _on_event(self, payload: bytes) -> None:
        path, token = ([*split(payload), b"", b""])[:2]
        watch = self._watches.get(token.decode("ascii", "replace"))
        if watch:
            watch.fire(path.decode("ascii", "replace"))

    async def connect(self) -> Connection:
        """Open a connection for the pool.

        :raises ConnectionLost: xenstored is absent or refuses; the message has path and remedy.
        """
        stream = await connect(self.path, self._timeout)
        return Connection(stream, self.path, self._on_event)

    async def keep(self, slot: int, connection: Connection | None) -> None:
        """Keep one connection of the pool open for ever, with growing pauses between attempts."""
        pause = _RECONNECT_MIN
        while True:
            began = trio.current_time()
            try:
                error = await self._serve(slot, connection or await self.connect())
            except ConnectionLost as lost:
                error = lost
            self._pool[slot] = connection = None
            if slot == 0:
                self._disconnected(error)
            if trio.current_time() - began >= self._reconnect_max:
                pause = (
                    _RECONNECT_MIN  # one that is closed as soon as it is open gets longer pauses
                )
            await trio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(pause * 2, self._reconnect_max)

    async def _serve(self, slot: int, connection: Connection) -> XenstoreError:
        """Run a connection; return what it died of."""
        self._pool[slot] = connection
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            if slot == 0:
                await self._first_connected(connection)
        return connection.dead or ConnectionLost(self.path)

    async def _first_connected(self, connection: Connection) -> None:
        """Put the watches on a new first connection, and tell who waits for it."""
        if self._watches:
            try:
                await self._register(connection, self._watches.values())
            except StoreError as error:
                # Without its watches it would look well and be deaf.
                connection.close(ConnectionLost(f"{self.path}: watch refused: {error}"))
        if not connection.dead:
            self._lost = None
            self._connected.set()
            self._on_connection(None)

    def _disconnected(self, error: XenstoreError) -> None:
        if self._connected.is_set():
            self._connected = trio.Event()
        if self._lost != str(error):  # an absent xenstored is told once, not at every attempt
            self._lost = str(error)
            self._on_connection(error)


def _ignore(_: XenstoreError | None) -> None:
    """Nobody asked to be told."""


@asynccontextmanager
async def open_client(
    path: str | os.PathLike[str] | None = None,
    *,
    connections: int = 1,
    timeout: float = 10.0,
    reconnect_max: float = 5.0,
    patient: bool = False,
    on_connection: Callable[[XenstoreError | None], None] = _ignore,
) -> AsyncIterator[Client]:
    """Connect to xenstored, and stay connected while the block lasts.

    What the block raises comes out as it is, in no group.

    :param path: the socket; by default as libxenstore finds it (``XENSTORED_PATH``,
        ``XENSTORED_RUNDIR``, ``/run/xenstored/socket``).
    :param connections: size of the pool; from three on, the first is for events and the last for
        transactions, and reads are spread over the others.
    :param timeout: seconds of silence after which a call fails and its connection is closed.
    :param reconnect_max: longest pause between attempts, in seconds.
    :param patient: enter the block even though xenstored is absent, and go on trying.
    :param on_connection: called with None when connected, with the error when that is lost or can't
        be had, again only if it is another one; must not raise.
    :raises ConnectionLost: xenstored is absent or refuses, unless ``patient``.
    """
    client = Client(
        os.fspath(path) if path else default_socket(),
        connections=connections,
        timeout=timeout,
        reconnect_max=reconnect_max,
        on_connection=on_connection,
    )
    first = None if patient else await client.connect()
    async with background() as nursery:
        for slot in range(connections):
            nursery.start_soon(client.keep, slot, first if slot == 0 else None)
        if not patient:
            await client.wait_connected()
        yield client
