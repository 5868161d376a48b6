"""The table of rows, against the in-memory store, bare and on a socket, and both real servers."""

import random
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

import pytest
import trio

from tests.e2e.store_row import OXENSTORED, Row, Scenario, guest
from tests.e2e.store_rows import SCENARIOS
from tests.rigs import Server
from tests.rigs.ring import GuestRing
from tests.rigs.servers import DEADLINE
from xencolo import wire
from xencolo.store import Session, Store
from xencolo.wire import Op, Packet
from xencolod.embedded import serve_embedded


class Client(Protocol):
    """One connection to whatever is tested; events are those that came and were not taken yet."""

    events: list[str]

    def call(self, op: int, tx_id: int, payload: bytes) -> Packet: ...


class Pipe(Protocol):
    def sendall(self, data: bytes) -> None: ...

    def recv(self) -> bytes: ...


def _text(payload: bytes) -> str:
    return payload.decode("latin-1").replace("\0", "|")


class WireClient:
    """Speaks the wire format over a socket or a ring, one request at a time."""

    def __init__(self, pipe: Pipe) -> None:
        self.events: list[str] = []
        self._pipe = pipe
        self._decoder = wire.Decoder(payload_max=wire.REPLY_MAX)
        self._rq_id = 0

    def call(self, op: int, tx_id: int, payload: bytes) -> Packet:
        self._rq_id += 1
        # Not wire.encode(): operations that are none are sent as well.
        self._pipe.sendall(wire.HEADER.pack(op, self._rq_id, tx_id, len(payload)) + payload)
        answers: list[Packet] = []
        while not answers:
            data = self._pipe.recv()
            assert data, "the server closed the connection"
            for packet in self._decoder.feed(data):
                if packet.op == Op.WATCH_EVENT:
                    self.events.append(_text(packet.payload))
                else:
                    answers.append(packet)
        (answer,) = answers
        assert answer.rq_id == self._rq_id
        return answer


class SocketPipe:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def recv(self) -> bytes:
        return self._socket.recv(1 << 16)


class StoreClients:
    """The bare store's connections: events of one's request land with the others."""

    def __init__(self) -> None:
        self.store = Store()
        self.by_session: dict[Session, StoreClient] = {}
        self.open(0).call(Op.WRITE, 0, b"/local/domain/0/name\0Domain-0")

    def open(self, domid: int) -> "StoreClient":
        session = self.store.connect(domid)
        client = self.by_session[session] = StoreClient(self, session)
        return client


class StoreClient:
    def __init__(self, clients: StoreClients, session: Session) -> None:
        self.events: list[str] = []
        self._clients = clients
        self._session = session

    def call(self, op: int, tx_id: int, payload: bytes) -> Packet:
        answers = []
        packets = self._clients.store.handle(self._session, Packet(op, 1, tx_id, payload))
        for session, packet in packets:
            if packet.op == Op.WATCH_EVENT:
                self._clients.by_session[session].events.append(_text(packet.payload))
            else:
                assert session is self._session
                answers.append(packet)
        (answer,) = answers
        return answer


Open = Callable[[str], Client]
Steps = list[tuple[str, bool, Op, str]]


def run(scenario: Scenario, open_client: Open, server: str) -> None:
    """Run the rows; a client is opened by its first row."""
    clients: dict[str, Client] = {}
    transactions: dict[str, int] = {}
    for row in scenario.rows:
        if row.who not in clients:
            clients[row.who] = open_client(row.who)
        answer, events = _expected(row, server)
        got = _ask(clients[row.who], row, transactions)
        assert _matches(answer, got), f"{row}\n  answered {got!r}"
        if row.op == Op.RELEASE:
            clients.pop(f"dom{row.payload.rstrip('|')}", None)  # nobody answers it any more
        for who, client in clients.items():
            # Once this is answered, the events of the row have come as well.
            client.call(Op.GET_DOMAIN_PATH, 0, b"0\0")
            heard, client.events = tuple(client.events), []
            assert heard == tuple(events.get(who, ())), f"{row}\n  {who} heard {heard}"


def _expected(row: Row, server: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    differs = row.oxenstored if server == OXENSTORED else None
    answer, events = row.answer, dict(row.events)
    if differs and differs.answer is not None:
        answer = differs.answer
    if differs and differs.events is not None:
        events = dict(differs.events)
    return answer, events


def _ask(client: Client, row: Row, transactions: dict[str, int]) -> str:
    opens = row.op == Op.TRANSACTION_START and row.tx not in transactions
    tx_id = 0 if opens else row.tx
    number = tx_id if isinstance(tx_id, int) else transactions[tx_id]
    reply = client.call(row.op, number, row.payload.replace("|", "\0").encode("latin-1"))
    text = _text(reply.payload)
    if reply.op == Op.ERROR:
        return text.removesuffix("|")
    assert reply.op == row.op
    if opens and isinstance(row.tx, str):
        transactions[row.tx] = int(text[:-1])
    return text


def _matches(answer: str, got: str) -> bool:
    if not answer.startswith("#|"):
        return answer == got
    return re.fullmatch(r"\d+" + re.escape(answer[1:]), got) is not None


_domid = {"dom0": 0, "tool": 0, "dom5": 5, "dom6": 6}


@contextmanager
def _real(server: Server) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_client(who: str) -> Client:
            domid = _domid[who]
            if domid:
                return WireClient(stack.enter_context(GuestRing(server.directory, domid)))
            return WireClient(stack.enter_context(SocketPipe(server.socket)))

        yield open_client


def _store_clients() -> Open:
    clients = StoreClients()
    return lambda who: clients.open(_domid[who])


_scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@_scenarios
def test_in_memory_store(scenario: Scenario) -> None:
    run(scenario, _store_clients(), "store")


@_scenarios
def test_c_xenstored(scenario: Scenario, xenstored: Server) -> None:
    with _real(xenstored) as open_client:
        run(scenario, open_client, "xenstored")


@_scenarios
def test_oxenstored(scenario: Scenario, oxenstored: Server) -> None:
    with _real(oxenstored) as open_client:
        run(scenario, open_client, OXENSTORED)


@pytest.mark.parametrize(
    "scenario",
    # Every client of a socket is dom0: guests have ring pages, which the embedded store has not.
    [scenario for scenario in SCENARIOS if not scenario.guests],
    ids=lambda scenario: scenario.name,
)
async def test_embedded_store(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    store = Store()
    store.handle(store.connect(), Packet(Op.WRITE, 0, 0, b"/local/domain/0/name\0Domain-0"))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_embedded, path, store)

        def run_all() -> None:
            with ExitStack() as stack:
                run(
                    scenario,
                    lambda _who: WireClient(stack.enter_context(SocketPipe(path))),
                    "embedded",
                )

        await trio.to_thread.run_sync(run_all)
        nursery.cancel_scope.cancel()


_PATHS = ("/w", "/w/a", "/w/a/b", "/w/b", "/v/x/y", "/local/domain/5/d", "d", "d/e")
_PERMISSIONS = ("n0", "n0|r5", "n0|b5", "r0", "n5", "w0")
#: What the random requests are drawn from, with weights.
_DRAWS: dict[Op, tuple[int, Callable[[random.Random], str]]] = {
    Op.READ: (8, lambda draw: f"{draw.choice(_PATHS)}|"),
    Op.WRITE: (12, lambda draw: f"{draw.choice(_PATHS)}|{draw.choice('12')}"),
    Op.MKDIR: (4, lambda draw: f"{draw.choice(_PATHS)}|"),
    Op.RM: (4, lambda draw: f"{draw.choice(_PATHS)}|"),
    Op.DIRECTORY: (4, lambda draw: f"{draw.choice(_PATHS)}|"),
    Op.GET_PERMS: (2, lambda draw: f"{draw.choice(_PATHS)}|"),
    Op.SET_PERMS: (6, lambda draw: f"{draw.choice(_PATHS)}|{draw.choice(_PERMISSIONS)}|"),
    Op.WATCH: (3, lambda draw: f"{draw.choice(_PATHS)}|{draw.choice('tu')}|"),
    Op.UNWATCH: (1, lambda draw: f"{draw.choice(_PATHS)}|{draw.choice('tu')}|"),
    Op.TRANSACTION_START: (4, lambda _draw: "|"),
    Op.TRANSACTION_END: (5, lambda draw: draw.choice(("T|", "T|", "T|", "F|"))),
}


def _random_steps(seed: int) -> Steps:
    draw = random.Random(seed)
    weights = [weight for weight, _ in _DRAWS.values()]
    return [
        (draw.choice(("dom0", "tool", "dom5")), draw.random() < 0.7, op, _DRAWS[op][1](draw))
        for op in draw.choices(list(_DRAWS), weights, k=150)
    ]


def _play(steps: Steps, open_client: Open) -> list[tuple[str, dict[str, list[str]]]]:
    """Return what each step was answered, and what each client heard because of it."""
    first = open_client("dom0")
    for row in guest(5):
        _ask(first, row, {})
    clients = {"dom0": first, "tool": open_client("tool"), "dom5": open_client("dom5")}
    transactions: dict[str, dict[str, int]] = {who: {} for who in clients}
    results = []
    for who, inside, op, payload in steps:
        mine = transactions[who]
        tx = who if inside and who in mine else 0
        if op == Op.TRANSACTION_START and not mine:
            tx = who
        answer = _ask(clients[who], Row(who, op, payload, "", tx), mine)
        if op == Op.TRANSACTION_END and tx:
            mine.clear()
        heard = {}
        for name, client in clients.items():
            client.call(Op.GET_DOMAIN_PATH, 0, b"0\0")
            heard[name], client.events = client.events, []
        results.append((answer, heard))
    return results


@pytest.mark.parametrize("seed", range(30))
def test_random_requests_agree_with_c_xenstored(seed: int, xenstored: Server) -> None:
    steps = _random_steps(seed)
    with _real(xenstored) as open_client:
        expected = _play(steps, open_client)
    for step, real, ours in zip(steps, expected, _play(steps, _store_clients()), strict=True):
        assert ours == real, step


def test_named_differences_differ() -> None:
    differing = [row for scenario in SCENARIOS for row in scenario.rows if row.oxenstored]
    assert differing
    for row in differing:
        assert _expected(row, OXENSTORED) != _expected(row, "xenstored"), row
