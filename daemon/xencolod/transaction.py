"""A transaction of xenstored's, which lives on one connection."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from xencolo import requests
from xencolo.requests import Answer, Request
from xencolod.asks import ask
from xencolod.connection import Connection


class Transaction:
    """An open transaction on one connection; made by :meth:`Client.transaction`."""

    def __init__(self, connection: Connection, tx_id: int, timeout: float) -> None:
        self._connection = connection
        self._tx_id = tx_id
        self._timeout = timeout

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        """Send the requests together, in order, inside the transaction."""
        under_way = self._connection.submit(batch, self._tx_id)
        return await self._connection.wait(under_way, self._timeout)

    async def spread(self, batch: Sequence[Request]) -> list[Answer]:
        """Send the requests as :meth:`batch`: a transaction lives on one connection."""
        return await self.batch(batch)

    def post(self, batch: Sequence[Request]) -> Callable[[], Awaitable[list[Answer]]]:
        """Send the requests, and return what waits for their answers."""
        under_way = self._connection.submit(batch, self._tx_id)
        return partial(self._connection.wait, under_way, self._timeout)

    async def end(self) -> None:
        """Commit.

        :raises StoreError: EAGAIN when somebody else changed what this one read or wrote.
        """
        await ask(self, requests.COMMIT)

    def abort(self) -> None:
        """Give up; nothing is awaited, so this is right under cancellation too."""
        if not self._connection.dead:
            self._connection.submit([requests.ABORT], self._tx_id)
