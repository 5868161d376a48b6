"""The xenstore client against a scripted server: what a real one can't be made to do."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.rigs.servers import DEADLINE
from xencolo import requests
from xencolo.errors import ConnectionLost, DeadlineExceeded, StoreError, WireError, XenstoreError
from xencolo.requests import Request
from xencolo.wire import HEADER, ID_MASK, Decoder, Op, Packet, strings
from xencolod.asks import ask, demand, read
from xencolod.connection import Connection
from xencolod.transaction import Transaction
from xencolod.xenstore import open_client

READ_T = requests.read("/t")


def message(op: int, rq_id: int, payload: bytes, tx_id: int = 0) -> bytes:
    return HEADER.pack(op, rq_id, tx_id, len(payload)) + payload


def answer(packet: Packet, payload: bytes = b"OK\0", op: int | None = None) -> bytes:
    return message(packet.op if op is None else op, packet.rq_id, payload, packet.tx_id)


def event(path: str, token: bytes) -> bytes:
    return message(Op.WATCH_EVENT, 0, strings(path) + token)


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = Decoder()

    async def receive(self, count: int = 1) -> list[Packet]:
        """Return at least so many requests; fewer if the client hangs up."""
        packets: list[Packet] = []
        while len(packets) < count and (data := await self.stream.receive_some(1 << 16)):
            packets += self._decoder.feed(bytes(data))
        return packets

    async def send(self, *messages: bytes) -> None:
        await self.stream.send_all(b"".join(messages))

    async def serve(self) -> None:
        """Say OK to everything, until the client hangs up."""
        while packets := await self.receive():
            await self.send(*map(answer, packets))


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, *scripts: Script) -> AsyncIterator[None]:
    """Play one script for each connection, in the order in which they come; then hang up on it."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    aside = path.with_suffix(".new")
    await listener.bind(str(aside))
    listener.listen(16)
    aside.rename(path)  # not there before it listens

    async def play(script: Script, stream: trio.SocketStream) -> None:
        # A client that hangs up with answers unread resets the connection: that is the script's end.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await script(Peer(stream))

    async def accept() -> None:
        for script in scripts:
            accepted, _ = await listener.accept()
            nursery.start_soon(play, script, trio.SocketStream(accepted))

    async with trio.open_nursery() as nursery:
        with listener, trio.fail_after(DEADLINE * 1000):
            nursery.start_soon(accept)
            yield
            nursery.cancel_scope.cancel()


def replies(*make: Callable[[Packet], bytes]) -> Script:
    """Answer the first requests so, and then no more."""

    async def script(peer: Peer) -> None:
        for each in make:
            for packet in await peer.receive():
                await peer.send(each(packet))
        await peer.receive(1_000_000)

    return script


# -- answers --------------------------------------------------------------------------------------


async def test_answers_are_matched_by_id_and_not_by_order(tmp_path: Path) -> None:
    async def backwards(peer: Peer) -> None:
        packets = await peer.receive(3)
        await peer.send(*(answer(p, p.payload[1:-1]) for p in reversed(packets)))
        await peer.receive()

    async with listening(tmp_path / "s", backwards), open_client(tmp_path / "s") as client:
        asked = [requests.read(f"/{name}") for name in "abc"]
        assert await client.batch(asked) == [b"a", b"b", b"c"]


async def test_an_answer_byte_by_byte_with_events_between(tmp_path: Path) -> None:
    async def bytewise(peer: Peer) -> None:
        (packet,) = await peer.receive()
        for byte in event("/x", b"nobody\0") + answer(packet, b"value"):
            await peer.send(bytes([byte]))
        await peer.receive()

    async with listening(tmp_path / "s", bytewise), open_client(tmp_path / "s") as client:
        assert await read(client, "/t") == b"value"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"ENOENT\0", errno.ENOENT),
        (b"EQUOTA\0", errno.ENOSPC),
        (b"EMOON\0", errno.EIO),
        (b"", errno.EIO),
    ],
)
async def test_errors_by_name(tmp_path: Path, name: bytes, number: int) -> None:
    script = replies(lambda packet: answer(packet, name, Op.ERROR))
    async with listening(tmp_path / "s", script), open_client(tmp_path / "s") as client:
        with pytest.raises(StoreError) as caught:
            await ask(client, READ_T)
        assert (caught.value.errno, caught.value.operation, caught.value.path) == (
            number,
            "READ",
            "/t",
        )


ENDS: dict[str, tuple[Callable[[Packet], bytes], str]] = {
    "at once": (lambda _: b"", "closed the connection$"),
    "in the header": (lambda p: answer(p)[:7], r"in the middle of a message \(7 bytes\)"),
    "in the payload": (lambda p: answer(p)[:18], r"in the middle of a message \(18 bytes\)"),
    "garbage": (lambda _: b"\xff" * 16, "header f+ is no xenstore message"),
    "too long": (lambda p: HEADER.pack(p.op, p.rq_id, 0, 1 << 30), "no xenstore message"),
    "unknown id": (lambda p: message(p.op, 4711, b""), "request 4711, which is not under way"),
    "wrong type": (lambda p: answer(p, op=Op.DIRECTORY), "answer of type 1 to a request of type 2"),
}


@pytest.mark.parametrize(("spoil", "reason"), ENDS.values(), ids=ENDS)
async def test_every_pending_call_of_that_connection_ends(
    tmp_path: Path, spoil: Callable[[Packet], bytes], reason: str
) -> None:
    """Two calls share a connection that goes wrong; a third waits on another, and gets its answer."""
    spoilt = trio.Event()

    async def wrong(peer: Peer) -> None:
        packets = await peer.receive(3)
        await peer.send(spoil(packets[0]))
        if not spoil(packets[0]) or len(spoil(packets[0])) in {7, 18}:
            await peer.stream.send_eof()
        await peer.receive()
        spoilt.set()

    async def right(peer: Peer) -> None:
        (packet,) = await peer.receive()
        await spoilt.wait()
        await peer.send(answer(packet, b"late"))
        await peer.receive()

    ended: list[str] = []

    async def lose(*paths: str) -> None:
        with pytest.raises(ConnectionLost, match=reason) as caught:
            await first.batch([requests.read(path) for path in paths])
        ended.append(str(caught.value))

    with trio.fail_after(DEADLINE):
        async with (
            listening(tmp_path / "s", wrong, right),
            open_client(tmp_path / "s") as first,
            open_client(tmp_path / "s") as second,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose, "/t")
                nursery.start_soon(lose, "/t", "/u")
                assert await read(second, "/t") == b"late"
            assert len(ended) == 2
            assert ended[0].startswith(str(tmp_path))
            assert not first.connected
            with pytest.raises(ConnectionLost, match="not connected to xenstored"):
                await first.batch([READ_T])


async def test_the_rest_of_the_pool_goes_on(tmp_path: Path) -> None:
    hang_up = trio.Event()

    async def mortal(_: Peer) -> None:
        await hang_up.wait()

    with trio.fail_after(DEADLINE):
        async with (
            listening(tmp_path / "s", Peer.serve, mortal),
            open_client(tmp_path / "s", connections=2, reconnect_max=60) as client,
        ):
            many = [READ_T] * 100
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:

                async def lose() -> None:
                    with pytest.raises(ConnectionLost):
                        await client.spread(many)

                nursery.start_soon(lose)
                await trio.testing.wait_all_tasks_blocked()
                hang_up.set()
            assert await client.spread(many) == [b"OK\0"] * 100
            assert client.connected


async def test_a_big_request_does_not_wait_for_its_answers_to_be_read(tmp_path: Path) -> None:
    """Far more than the sockets hold goes out while as much comes in."""
    value = "v" * 3000
    async with listening(tmp_path / "s", Peer.serve), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE):
            batch = [requests.write(f"/t/{i}", value) for i in range(2000)]
            assert await client.batch(batch) == [b"OK\0"] * 2000


# -- ids ------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected_pair(
    first_id: int, on_event: Callable[[bytes], None] = lambda _: None
) -> AsyncIterator[tuple[Connection, Peer]]:
    ours, theirs = trio.socket.socketpair()
    connection = Connection(trio.SocketStream(ours), "pair", on_event, first_id=first_id)
    async with trio.open_nursery() as nursery, trio.SocketStream(theirs) as stream:
        nursery.start_soon(connection.run)
        yield connection, Peer(stream)
        nursery.cancel_scope.cancel()


async def test_ids_wrap_at_32_bits_and_pass_over_those_under_way() -> None:
    async with connected_pair(ID_MASK - 1) as (connection, peer):
        old = connection.submit([READ_T] * 4)  # …fffe, …ffff, 0, 1
        under_way = await peer.receive(4)
        assert [packet.rq_id for packet in under_way] == [ID_MASK - 1, ID_MASK, 0, 1]
        await peer.send(*(answer(packet, b"x") for packet in under_way[:2]))
        await trio.testing.wait_all_tasks_blocked()
        connection._next_id = ID_MASK  # once around: 0 and 1 are still under way
        # The ids of a batch follow each other, so the new one begins after the old.
        new = connection.submit([READ_T] * 2)
        packets = await peer.receive(2)
        assert [packet.rq_id for packet in packets] == [2, 3]
        await peer.send(*(answer(p, b"new") for p in packets))
        await peer.send(*(answer(p, b"old") for p in under_way[2:]))
        assert await connection.wait(new, 1) == [b"new", b"new"]
        assert await connection.wait(old, 1) == [b"x", b"x", b"old", b"old"]


async def test_a_payload_over_the_limit_is_refused_and_nothing_sent() -> None:
    async with connected_pair(1) as (connection, peer):
        with pytest.raises(WireError, match="READ: 5000 bytes, 4096 at most"):
            connection.submit([READ_T, Request(Op.READ, b"x" * 5000)])
        good = connection.submit([READ_T])
        (packet,) = await peer.receive()
        assert packet.rq_id == 1
        await peer.send(answer(packet, b"fine"))
        assert await connection.wait(good, 1) == [b"fine"]


# -- deadlines ------------------------------------------------------------------------------------


async def test_silence_ends_every_call_and_what_follows_is_a_lost_connection(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    silent = replies()
    async with (
        listening(tmp_path / "s", silent, silent),
        open_client(tmp_path / "s", timeout=7) as client,
    ):
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="no answer for 7 s"):
            await ask(client, READ_T)
        assert trio.current_time() - began == pytest.approx(7, abs=0.1)
        with pytest.raises(ConnectionLost, match="no answer for 7 s"):
            await ask(client, READ_T)
        await client.wait_connected()
        assert client.connected


async def test_the_deadline_is_for_silence_and_not_for_the_whole(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0

    async def leisurely(peer: Peer) -> None:
        for packet in await peer.receive(10):
            await trio.sleep(6)
            await peer.send(answer(packet, b"v"))
        await peer.receive()

    async with (
        listening(tmp_path / "s", leisurely),
        open_client(tmp_path / "s", timeout=7) as client,
    ):
        began = trio.current_time()
        assert await client.batch([READ_T] * 10) == [b"v"] * 10
        assert trio.current_time() - began == pytest.approx(60, abs=0.1)


async def test_time_without_requests_is_no_silence(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    async with (
        listening(tmp_path / "s", Peer.serve),
        open_client(tmp_path / "s", timeout=7) as client,
    ):
        for _ in range(3):
            await trio.sleep(1000)
            assert await read(client, "/t") == b"OK\0"


# -- connecting -----------------------------------------------------------------------------------


class Told:
    """What ``on_connection`` was told, and when."""

    def __init__(self) -> None:
        self.said: list[tuple[float, str]] = []

    def __call__(self, error: XenstoreError | None) -> None:
        self.said.append((trio.current_time(), str(error or "connected")))


async def test_a_patient_client_waits_for_a_server_that_comes_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    told = Told()
    async with open_client(tmp_path / "s", patient=True, on_connection=told) as client:
        assert not client.connected
        with pytest.raises(ConnectionLost, match="not connected"):
            await read(client, "/t")
        await trio.sleep(60)
        # Said once, although it was tried many times.
        assert len(told.said) == 1
        assert f"{tmp_path / 's'}: No such file or directory" in told.said[0][1]
        assert "XENSTORED_PATH" in told.said[0][1]
        async with listening(tmp_path / "s", Peer.serve):
            with trio.fail_after(6):
                await client.wait_connected()
            assert await read(client, "/t") == b"OK\0"
        assert [what for _, what in told.said[1:]] == ["connected"]


async def test_pauses_grow_to_their_maximum_and_begin_anew_after_a_good_connection(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    at: list[float] = []

    async def hang_up(peer: Peer) -> None:
        at.append(trio.current_time())
        peer.stream.socket.shutdown(trio.socket.SHUT_RDWR)

    async def last(_: Peer) -> None:
        at.append(trio.current_time())
        await trio.sleep(100)

    async with (
        listening(tmp_path / "s", *[hang_up] * 9, last, *[hang_up] * 2),
        open_client(tmp_path / "s", reconnect_max=4.0),
    ):
        await trio.sleep(150)
    pauses = [after - before for before, after in pairwise(at)]
    for number, pause in enumerate(pauses[:9]):
        longest = min(0.05 * 2**number, 4.0)
        assert longest / 2 - 0.01 <= pause <= longest + 0.01
    assert 100 <= pauses[9] <= 100.1
    assert pauses[10] <= 0.11


async def test_a_full_queue_of_connections_is_waited_for(tmp_path: Path) -> None:
    """The C xenstored listens with a backlog of one, and a pool connects all at once."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "s"))
    listener.listen(0)
    with listener, trio.socket.socket(trio.socket.AF_UNIX) as ahead:
        await ahead.connect(str(tmp_path / "s"))
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:

                async def accept() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    (await listener.accept())[0].close()
                    stream = trio.SocketStream((await listener.accept())[0])
                    async with stream:
                        await Peer(stream).serve()

                nursery.start_soon(accept)
                async with open_client(tmp_path / "s") as client:
                    assert await read(client, "/t") == b"OK\0"


async def test_a_queue_that_stays_full_is_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "s"))
    listener.listen(0)
    with listener, trio.socket.socket(trio.socket.AF_UNIX) as ahead:
        await ahead.connect(str(tmp_path / "s"))
        with pytest.raises(ConnectionLost, match="takes no new connections for 3 s"):
            async with open_client(tmp_path / "s", timeout=3):
                pass


# -- the block ------------------------------------------------------------------------------------


async def test_what_the_block_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    for error in (LookupError("mine"), KeyboardInterrupt()):
        async with listening(tmp_path / f"s{type(error).__name__}", Peer.serve):
            with pytest.raises(type(error)) as caught:
                async with open_client(tmp_path / f"s{type(error).__name__}"):
                    raise error
            assert caught.value is error


async def test_an_error_is_not_hidden_by_a_cancellation_at_the_same_time(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", Peer.serve):
        with pytest.raises(LookupError), trio.CancelScope() as scope:
            await fail_while_cancelled(tmp_path / "s", scope)


async def fail_while_cancelled(path: Path, scope: trio.CancelScope) -> None:
    async with open_client(path):
        scope.cancel()
        raise LookupError


async def test_a_cancelled_block_ends_and_says_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", Peer.serve):
        with trio.CancelScope() as scope:
            async with open_client(tmp_path / "s"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


# -- transactions ---------------------------------------------------------------------------------


async def nothing(_: Transaction) -> None:
    """Do nothing in a transaction."""


async def test_cancelled_while_it_starts_it_is_ended_when_its_id_comes(tmp_path: Path) -> None:
    """The connection lives on: others use it."""
    started, go = trio.Event(), trio.Event()
    seen: list[Packet] = []

    async def late(peer: Peer) -> None:
        (start,) = await peer.receive()
        started.set()
        await go.wait()
        await peer.send(answer(start, b"99\0"))
        while packets := await peer.receive():
            seen.extend(packets)
            await peer.send(*map(answer, packets))

    with trio.fail_after(DEADLINE):
        async with listening(tmp_path / "s", late), open_client(tmp_path / "s") as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.transaction, nothing)
                await started.wait()
                nursery.cancel_scope.cancel()
            assert client.connected
            go.set()
            await read(client, "/t")
            while len(seen) < 2:
                await read(client, "/t")
    ends = [(p.tx_id, p.payload) for p in seen if p.op == Op.TRANSACTION_END]
    assert ends == [(99, b"F\0")]


async def test_cancelled_in_its_body_it_is_ended(tmp_path: Path) -> None:
    seen: list[Packet] = []

    async def record(peer: Peer) -> None:
        while packets := await peer.receive():
            seen.extend(packets)
            await peer.send(*(answer(p, b"7\0") for p in packets))

    async with listening(tmp_path / "s", record), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:

                async def body(_: Transaction) -> None:
                    nursery.cancel_scope.cancel()
                    await trio.sleep_forever()

                nursery.start_soon(client.transaction, body)
            await read(client, "/t")
    assert [(p.op, p.tx_id, p.payload) for p in seen] == [
        (Op.TRANSACTION_START, 0, b"\0"),
        (Op.TRANSACTION_END, 7, b"F\0"),
        (Op.READ, 0, b"/t\0"),
    ]


async def test_transactions_of_two_tasks_go_side_by_side(tmp_path: Path) -> None:
    """The first has answers to come on its connection, so the second takes another."""
    open_at: list[str] = []
    both = trio.Event()

    def waits(name: str) -> Script:
        async def script(peer: Peer) -> None:
            (start,) = await peer.receive()
            open_at.append(name)
            if len(open_at) == 2:
                both.set()
            await both.wait()
            await peer.send(answer(start, b"1\0"))
            await peer.serve()

        return script

    with trio.fail_after(DEADLINE):
        async with (
            listening(tmp_path / "s", waits("first"), waits("second")),
            open_client(tmp_path / "s", connections=2) as client,
        ):
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.transaction, nothing)
                nursery.start_soon(client.transaction, nothing)
    assert sorted(open_at) == ["first", "second"]


async def test_events_reads_and_transactions_have_connections_of_their_own(tmp_path: Path) -> None:
    """A flood of events delays no answer, and a thousand reads no transaction."""
    seen: list[list[str]] = [[], [], []]

    def notes(names: list[str]) -> Script:
        async def script(peer: Peer) -> None:
            while packets := await peer.receive():
                names.extend(Op(packet.op).name for packet in packets)
                await peer.send(*(answer(packet, b"1\0") for packet in packets))

        return script

    with trio.fail_after(DEADLINE):
        async with (
            listening(tmp_path / "s", *map(notes, seen)),
            open_client(tmp_path / "s", connections=3) as client,
        ):
            await trio.testing.wait_all_tasks_blocked()
            async with client.watch("/t"):
                await client.batch([READ_T] * 2)
                await client.spread([READ_T] * 100)
                await client.transaction(nothing)
    kinds = {frozenset(names) - {"UNWATCH"} for names in seen}
    assert kinds == {
        frozenset({"WATCH"}),
        frozenset({"READ"}),
        frozenset({"TRANSACTION_START", "TRANSACTION_END"}),
    }


async def test_a_transaction_id_that_is_no_number(tmp_path: Path) -> None:
    script = replies(partial(answer, payload=b"soon\0"))
    async with listening(tmp_path / "s", script), open_client(tmp_path / "s") as client:
        with pytest.raises(ConnectionLost, match="transaction id"):
            await client.transaction(nothing)


async def test_a_transaction_in_which_the_connection_dies(tmp_path: Path) -> None:
    async def dies(peer: Peer) -> None:
        (start,) = await peer.receive()
        await peer.send(answer(start, b"1\0"))
        await peer.receive()

    attempts = 0

    async def body(transaction: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        await demand(transaction, [READ_T])

    async with listening(tmp_path / "s", dies), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE), pytest.raises(ConnectionLost):
            await client.transaction(body)
    assert attempts == 1


# -- watches --------------------------------------------------------------------------------------


def token_of(packet: Packet) -> bytes:
    return packet.payload.partition(b"\0")[2]


async def fires(peer: Peer) -> None:
    (packet,) = await peer.receive()
    await peer.send(answer(packet), event("/a", token_of(packet)))
    await peer.serve()


async def test_a_flood_of_events_is_bounded_and_falls_together_into_the_roots(
    tmp_path: Path,
) -> None:
    async def flood(peer: Peer) -> None:
        (packet,) = await peer.receive()
        token = token_of(packet)
        await peer.send(answer(packet), event("/r", token))
        for start in range(0, 100_000, 1000):
            numbers = range(start, start + 1000)
            await peer.send(*(event(f"/r/{number % 20_000}", token) for number in numbers))
        await peer.serve()

    async with listening(tmp_path / "s", flood), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE):
            async with client.watch("/r") as watch:
                await read(client, "/t")  # its answer comes after all the events
                paths = await watch.take()
                assert "/r" in paths
                assert len(paths) <= 10_001


def test_a_flood_of_events_is_read_in_big_pieces_and_delays_no_answer() -> None:
    clock, told = trio.testing.MockClock(), list[bytes]()

    async def flood() -> None:
        async with connected_pair(1, told.append) as (connection, peer):
            await peer.send(*[event("/a", b"t")] * 100)
            await trio.testing.wait_all_tasks_blocked()
            assert told == [b"/a\0t"]  # one of its kind is enough
            for path in ("/b", "/c"):
                await peer.send(*[event(path, b"t")] * 100)
                await trio.testing.wait_all_tasks_blocked()
            assert len(told) == 1
            clock.jump(0.002)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(told) == [b"/a\0t", b"/b\0t", b"/c\0t"]
            clock.jump(0.002)
            connection.submit([READ_T] * 100)
            await peer.send(*map(answer, await peer.receive(100)))
            await trio.testing.wait_all_tasks_blocked()
            under_way = connection.submit([READ_T])
            (packet,) = await peer.receive()
            for _ in range(3):
                await peer.send(*[event("/a", b"t")] * 100)
                await trio.testing.wait_all_tasks_blocked()
            await peer.send(answer(packet, b"fine"))
            await trio.testing.wait_all_tasks_blocked()
            assert under_way.answers == [b"fine"]

    trio.run(flood, clock=clock)


async def test_a_watch_that_is_refused_is_an_error_and_taken_back(tmp_path: Path) -> None:
    seen: list[Packet] = []

    async def refuse(peer: Peer) -> None:
        while packets := await peer.receive():
            seen.extend(packets)
            for packet in packets:
                bad = packet.op == Op.WATCH and packet.payload.startswith(b"/b")
                await peer.send(answer(packet, b"EACCES\0", Op.ERROR) if bad else answer(packet))

    async with listening(tmp_path / "s", refuse), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE):
            with pytest.raises(StoreError) as caught:
                async with client.watch("/a", "/b"):
                    pytest.fail("entered")
            assert (caught.value.errno, caught.value.path) == (errno.EACCES, "/b")
            await read(client, "/t")
    assert [Op(p.op).name for p in seen] == ["WATCH", "WATCH", "UNWATCH", "UNWATCH", "READ"]


async def test_a_connection_lost_while_a_watch_is_registered_is_no_loss(tmp_path: Path) -> None:
    async def dies(peer: Peer) -> None:
        await peer.receive()

    async with listening(tmp_path / "s", dies, fires), open_client(tmp_path / "s") as client:
        with trio.fail_after(DEADLINE):
            async with client.watch("/a") as watch:
                assert await watch.take() == {"/a"}
                await client.wait_connected()


async def test_a_watch_that_is_refused_after_a_reconnect_costs_the_connection(
    tmp_path: Path,
) -> None:
    """Else the client would look well, and be deaf."""
    hang_up = trio.Event()

    async def mortal(peer: Peer) -> None:
        (packet,) = await peer.receive()
        await peer.send(answer(packet), event("/a", token_of(packet)))
        await hang_up.wait()

    told = Told()
    scripts: Sequence[Script] = (mortal, replies(lambda p: answer(p, b"ENOSPC\0", Op.ERROR)), fires)
    async with (
        listening(tmp_path / "s", *scripts),
        open_client(tmp_path / "s", on_connection=told) as client,
    ):
        with trio.fail_after(DEADLINE):
            async with client.watch("/a") as watch:
                assert await watch.take() == {"/a"}
                hang_up.set()
                assert await watch.take() == {"/a"}
                await client.wait_connected()
    first, lost, refused, again = [what for _, what in told.said]
    assert (first, again) == ("connected", "connected")
    assert "closed the connection" in lost
    assert "watch refused: WATCH /a: No space left on device" in refused


async def test_a_silent_server_at_a_reconnect_is_left_for_the_next(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0

    async def mortal(peer: Peer) -> None:
        await peer.receive()

    async with (
        listening(tmp_path / "s", mortal, replies(), fires),
        open_client(tmp_path / "s", timeout=7) as client,
        client.watch("/a") as watch,
    ):
        with trio.fail_after(60):
            assert await watch.take() == {"/a"}


async def test_events_without_a_watch_and_of_no_form_are_nothing(tmp_path: Path) -> None:
    async def odd(peer: Peer) -> None:
        for packet in await peer.receive():
            await peer.send(
                event("/a", b"nobody\0"),
                message(Op.WATCH_EVENT, 0, b""),
                message(Op.WATCH_EVENT, 0, b"\xff"),
                answer(packet, b"fine"),
            )
        await peer.receive()

    async with listening(tmp_path / "s", odd), open_client(tmp_path / "s") as client:
        assert await read(client, "/t") == b"fine"
