"""The xenstore client: against the real servers, and a scripted one for what can't be had for real."""

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pyxs
import trio
import trio.testing

from tests.rigs import Server
from xencolo import requests
from xencolo._pyxs import ConnectionError as PyxsConnectionError
from xencolo.errors import ConnectionLost, DeadlineExceeded, StoreError
from xencolo.wire import HEADER, Op
from xencolod.asks import ask, demand, directory, read
from xencolod.transaction import Transaction
from xencolod.xenstore import open_client

# -- real servers ---------------------------------------------------------------------------------


async def test_answers_and_errors_come_in_the_order_of_the_requests(xenstored: Server) -> None:
    async with open_client(xenstored.socket, connections=4) as client:
        await demand(client, [requests.write(f"/t/{i}", str(i)) for i in range(500)])
        asked = [requests.read(f"/t/{i}") for i in range(501)]
        for answers in (await client.batch(asked), await client.spread(asked)):
            assert answers[:500] == [str(i).encode() for i in range(500)]
            assert isinstance(answers[500], StoreError)
            assert (answers[500].errno, answers[500].path) == (errno.ENOENT, "/t/500")


async def test_a_listing_over_4096_bytes(xenstored: Server, oxenstored: Server) -> None:
    names = [f"a-rather-long-name-of-a-node-{i:04}" for i in range(300)]
    for server in (xenstored, oxenstored):
        async with open_client(server.socket) as client:
            await demand(client, [requests.mkdir(f"/big/{name}") for name in names])
            assert sorted(await directory(client, "/big")) == names


async def test_a_transaction_is_redone_after_a_conflict(xenstored: Server) -> None:
    attempts = 0

    async with open_client(xenstored.socket) as client, open_client(xenstored.socket) as other:
        await demand(client, [requests.write("/t/n", "0")])

        async def body(transaction: Transaction) -> bytes | None:
            nonlocal attempts
            attempts += 1
            seen = await read(transaction, "/t/n")
            if attempts < 3:
                await demand(other, [requests.write("/t/n", str(attempts))])
            await demand(transaction, [requests.write("/t/mine", "yes")])
            return seen

        assert await client.transaction(body) == b"2"
        assert attempts == 3
        assert await read(other, "/t/mine") == b"yes"


async def test_a_conflict_without_end_is_an_error(xenstored: Server) -> None:
    async with open_client(xenstored.socket) as client, open_client(xenstored.socket) as other:

        async def body(transaction: Transaction) -> None:
            await read(transaction, "/t/n")
            await demand(other, [requests.write("/t/n", "x")])
            await demand(transaction, [requests.write("/t/n", "y")])

        with pytest.raises(StoreError) as caught:
            await client.transaction(body, attempts=3)
        assert caught.value.errno == errno.EAGAIN
        assert await read(other, "/t/n") == b"x"


async def test_what_a_transaction_raises_aborts_it(xenstored: Server) -> None:
    async with open_client(xenstored.socket) as client:

        async def body(transaction: Transaction) -> None:
            await demand(transaction, [requests.write("/t/half", "written")])
            raise LookupError

        with pytest.raises(LookupError):
            await client.transaction(body)
        assert await read(client, "/t/half") is None


async def test_a_watch_fires_at_once_for_children_and_after_a_reconnect(
    xenstored: Server,
) -> None:
    async with (
        open_client(xenstored.socket, reconnect_max=0.1) as client,
        client.watch("/t") as watch,
    ):
        with trio.fail_after(10):
            assert await watch.take() == {"/t"}
            with pyxs.Client(unix_socket_path=str(xenstored.socket)) as foreign:
                foreign.write(b"/t/child", b"1")
            assert await watch.take() == {"/t/child"}
            xenstored.kill()
            with pytest.raises(ConnectionLost):
                await read(client, "/t")
            xenstored.restart()
            assert "/t" in await watch.take()
            assert await read(client, "/t/child") is None


async def test_absent_and_refusing_are_named_with_the_path(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(ConnectionLost, match=str(absent)):
        async with open_client(absent):
            pass
    refusing = tmp_path / "refusing"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(refusing))
    listener.close()
    with pytest.raises(PyxsConnectionError, match="refused"):
        async with open_client(refusing):
            pass


# -- a scripted server ----------------------------------------------------------------------------

Script = Callable[[trio.SocketStream], Awaitable[None]]


async def _scripted(path: Path, script: Script, *, task_status: trio.TaskStatus[None]) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen(4)
    with listener:
        task_status.started()
        while True:
            async with trio.SocketStream((await listener.accept())[0]) as stream:
                await script(stream)


def _answer(data: bytes, payload: bytes, op: int | None = None, rq_id: int | None = None) -> bytes:
    asked_op, asked_id, tx_id, _ = HEADER.unpack_from(data)
    answer_op = asked_op if op is None else op
    answer_id = asked_id if rq_id is None else rq_id
    return HEADER.pack(answer_op, answer_id, tx_id, len(payload)) + payload


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "closes without an answer": lambda data: b"",  # noqa: ARG005
    "ends in the header": lambda data: _answer(data, b"value")[:7],
    "ends in the payload": lambda data: _answer(data, b"value")[:18],
    "garbage": lambda data: b"\xff" * 32,  # noqa: ARG005
    "an id that was never sent": lambda data: _answer(data, b"value", rq_id=77_777),
    "the wrong type": lambda data: _answer(data, b"value", op=Op.DIRECTORY),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_every_pending_call_ends_when_the_connection_dies(
    answer: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    ended = 0

    async def script(stream: trio.SocketStream) -> None:
        await trio.testing.wait_all_tasks_blocked()
        data = await stream.receive_some(4096)
        await stream.send_all(answer(bytes(data)))

    async with trio.open_nursery() as nursery:
        await nursery.start(_scripted, path, script)
        async with open_client(path) as client, trio.open_nursery() as calls:

            async def call() -> None:
                nonlocal ended
                with pytest.raises(ConnectionLost):
                    await read(client, "/t")
                ended += 1

            with trio.fail_after(10):
                for _ in range(3):
                    calls.start_soon(call)
        nursery.cancel_scope.cancel()
    assert ended == 3


async def test_silence_is_an_error_after_the_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "socket"

    async def script(stream: trio.SocketStream) -> None:
        while await stream.receive_some(4096):
            pass

    async with trio.open_nursery() as nursery:
        await nursery.start(_scripted, path, script)
        async with open_client(path, timeout=7) as client:
            before = trio.current_time()
            with pytest.raises(DeadlineExceeded, match="7 s"):
                await ask(client, requests.read("/t"))
            assert trio.current_time() - before == pytest.approx(7, abs=0.1)
        nursery.cancel_scope.cancel()
    assert autojump_clock.autojump_threshold == 0
