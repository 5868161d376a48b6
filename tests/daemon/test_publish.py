"""What is published of several domains at once: together, and no one's trouble hits another."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import trio

from tests.rigs import Server
from xencolo import requests
from xencolo.disk import Role
from xencolo.errors import StoreError
from xencolo.requests import Answer, Request
from xencolo.status import DeviceState, DomainState, DomainStatus
from xencolod.asks import demand, directory, read
from xencolod.publish import Publisher
from xencolod.transaction import Transaction
from xencolod.xenstore import Client, open_client

T = TypeVar("T")

DEVID = 51712
ERRORS = "/local/domain/0/error/backend/qdisk"


def uuid(domid: int) -> str:
    return f"00000000-0000-4000-8000-{domid:012x}"


def status(error: str | None = None) -> DomainStatus:
    state = DeviceState.ERROR if error else DeviceState.READY
    return DomainStatus(DomainState.STANDALONE, Role.PRIMARY, None, None, {DEVID: (state, error)})


class Counting(Client):
    """A client that counts the commits, and in which somebody disturbs those that read some domain."""

    def __init__(self, client: Client, disturbed: str | None = None) -> None:
        self._client = client
        self._disturbed = disturbed
        self.commits = 0

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        return await self._client.batch(batch)

    async def transaction(
        self, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = 30
    ) -> T:
        async def counted(transaction: Transaction) -> T:
            value = await body(transaction)
            if self._disturbed:
                await demand(self._client, [requests.write(self._disturbed, "/vm/another")])
            return value

        self.commits += 1
        return await self._client.transaction(counted, attempts=min(attempts, 5))


@asynccontextmanager
async def domains(server: Server, domids: Sequence[int]) -> AsyncIterator[Client]:
    async with open_client(server.socket, connections=3) as client:
        homes = [(f"/local/domain/{d}/vm", f"/vm/{uuid(d)}") for d in domids]
        await demand(client, [requests.write(*home) for home in homes])
        yield client


async def publish_all(
    publisher: Publisher, statuses: dict[int, DomainStatus]
) -> dict[int, bool | StoreError]:
    """Publish all at once; return what became of each."""
    outcomes: dict[int, bool | StoreError] = {}

    async def publish(domid: int, status: DomainStatus) -> None:
        try:
            outcomes[domid] = await publisher.publish(domid, status, uuid(domid))
        except StoreError as error:
            outcomes[domid] = error

    async with trio.open_nursery() as nursery:
        for pair in statuses.items():
            nursery.start_soon(publish, *pair)
    return outcomes


async def state(client: Client, domid: int) -> bytes | None:
    return await read(client, f"/libxl/{domid}/colo/state")


async def test_what_comes_at_once_is_written_together(xenstored: Server) -> None:
    domids = range(1, 101)
    async with domains(xenstored, domids) as client:
        counting = Counting(client)
        publisher = Publisher(counting, 0)
        assert all((await publish_all(publisher, {d: status() for d in domids})).values())
        assert counting.commits < 20
        assert {await state(client, d) for d in domids} == {b"standalone"}
        assert all((await publish_all(publisher, {d: status() for d in domids})).values())
        assert counting.commits < 20


async def test_one_that_meets_conflicts_without_end_costs_no_other(xenstored: Server) -> None:
    domids = range(1, 7)
    async with domains(xenstored, domids) as client:
        publisher = Publisher(Counting(client, "/local/domain/3/vm"), 0)
        outcomes = await publish_all(publisher, {d: status() for d in domids})
        conflict = outcomes.pop(3)
        assert isinstance(conflict, StoreError)
        assert conflict.errno == errno.EAGAIN
        assert outcomes == dict.fromkeys([1, 2, 4, 5, 6], True)
        assert await state(client, 3) is None
        assert {await state(client, d) for d in outcomes} == {b"standalone"}


async def test_nothing_is_said_of_one_that_has_gone_or_is_another(xenstored: Server) -> None:
    domids = range(1, 7)
    async with domains(xenstored, domids) as client:
        await demand(client, [requests.rm("/local/domain/3")])
        await demand(client, [requests.write("/local/domain/4/vm", f"/vm/{uuid(40)}")])
        outcomes = await publish_all(Publisher(client, 0), {d: status() for d in domids})
        assert outcomes == {1: True, 2: True, 3: False, 4: False, 5: True, 6: True}
        assert [await state(client, d) for d in (3, 4)] == [None, None]


async def test_a_new_xencolod_writes_what_differs(xenstored: Server) -> None:
    domids = range(1, 5)
    async with domains(xenstored, domids) as client:
        counting = Counting(client)
        await publish_all(Publisher(counting, 0), {d: status("no image") for d in domids})
        theirs = {
            f"/libxl/1/colo/{name}": name.encode()
            for name in ("record", "role", "command", "answer")
        }
        left = [
            *theirs,
            "/libxl/1/colo/peer",
            "/libxl/1/colo/device/768/state",
            f"{ERRORS}/1/768/error",
        ]
        await demand(client, [requests.write(path, path.rpartition("/")[2]) for path in left])
        counting.commits = 0
        outcomes = await publish_all(
            Publisher(counting, 0), {d: status("no image") for d in domids}
        )
        assert outcomes == dict.fromkeys(domids, True)
        assert counting.commits == 1
        assert {path: await read(client, path) for path in theirs} == theirs
        assert set(await directory(client, "/libxl/1/colo")) == {
            *("record", "role", "command", "answer"),
            *("state", "role-in-force", "device"),
        }
        assert await directory(client, "/libxl/1/colo/device") == [str(DEVID)]
        assert await directory(client, f"{ERRORS}/1") == [str(DEVID)]
        assert await read(client, f"{ERRORS}/1/{DEVID}/error") == b"no image"


async def test_what_somebody_removed_is_said_again(xenstored: Server) -> None:
    async with domains(xenstored, [1]) as client:
        publisher = Publisher(client, 0)
        await publish_all(publisher, {1: status("no image")})
        await demand(client, [requests.rm("/libxl/1"), requests.rm("/local/domain/0/error")])
        await publish_all(publisher, {1: status("another")})
        assert await state(client, 1) == b"standalone"
        assert await read(client, f"/libxl/1/colo/device/{DEVID}/state") == b"error"
        assert await read(client, f"{ERRORS}/1/{DEVID}/error") == b"another"


class Forgetting(Counting):
    """A client in which somebody overwrites a node, and all is forgotten, at one moment of a publication."""

    def __init__(self, client: Client, moment: int) -> None:
        super().__init__(client)
        self._moment = moment
        self.publisher = Publisher(self, 0)

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        answers = await super().batch(batch)
        await self._passed()
        return answers

    async def transaction(
        self, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = 30
    ) -> T:
        value = await super().transaction(body, attempts=attempts)
        await self._passed()
        return value

    async def _passed(self) -> None:
        self._moment -= 1
        if self._moment == 0:
            await demand(self._client, [requests.write("/libxl/1/colo/role-in-force", "none")])
            self.publisher.forget()


@pytest.mark.parametrize("moment", [1, 2, 3])
async def test_what_is_forgotten_while_it_is_said_is_said_again(
    xenstored: Server, moment: int
) -> None:
    """Both parts of what stands are read, and the difference is written: after each of these."""
    async with domains(xenstored, [1]) as client:
        await publish_all(Publisher(client, 0), {1: status()})
        forgetting = Forgetting(client, moment)
        for error in ("no image", "no image"):
            outcomes = await publish_all(forgetting.publisher, {1: status(error)})
            assert outcomes == {1: True}
        assert await read(client, "/libxl/1/colo/role-in-force") == b"primary"


@pytest.mark.parametrize("theirs", ["77", "78"])
async def test_the_device_model_of_somebody_else_stays(xenstored: Server, theirs: str) -> None:
    async with domains(xenstored, [1]) as client:
        places = [
            f"/local/domain/{where}"
            for where in ("1/image/device-model-pid", "0/device-model/1/state")
        ]
        running = status()._replace(state=DomainState.RUNNING, qemu_pid=77)
        await publish_all(Publisher(client, 0), {1: running})
        await demand(client, [requests.write(places[0], theirs)])
        await publish_all(Publisher(client, 0), {1: status()._replace(state=DomainState.WAITING)})
        stays = [await read(client, place) is not None for place in places]
        assert stays == [theirs != "77"] * 2
        assert await read(client, "/libxl/1/colo/qemu-pid") is None


@pytest.mark.parametrize("anew", [False, True])
async def test_the_last_error_of_one_and_the_first_of_another(
    xenstored: Server, anew: bool
) -> None:
    """Directories that one leaves empty go, unless another puts something there in the same transaction."""
    domids = range(1, 7)
    async with domains(xenstored, domids) as client:
        publisher = Publisher(client, 0)
        bad = {1, 2, 3}
        for wrong in (bad, set(domids) - bad, set[int]()):
            said = {d: status("no image" if d in wrong else None) for d in domids}
            if anew:
                publisher = Publisher(client, 0)
            assert all((await publish_all(publisher, said)).values())
            assert set(await directory(client, ERRORS)) == set(map(str, wrong))
            for domid in wrong:
                assert await read(client, f"{ERRORS}/{domid}/{DEVID}/error") == b"no image"
        assert "error" not in await directory(client, "/local/domain/0")
