"""The in-memory store where the table of rows (tests/e2e/store_rows.py) does not go."""

import pytest

from xencolo import wire
from xencolo.store import Quotas, Session, Store
from xencolo.wire import Op, Packet


def _ask(store: Store, session: Session, op: int, payload: str, tx_id: int = 0) -> str:
    """Return the reply with NULs as ``|``; events are not looked at."""
    answers = store.handle(session, Packet(op, 1, tx_id, payload.replace("|", "\0").encode()))
    (reply,) = [packet for _, packet in answers if packet.op != Op.WATCH_EVENT]
    text = reply.payload.decode().replace("\0", "|")
    return text.removesuffix("|") if reply.op == Op.ERROR else text


def _with_home(domid: int, quotas: Quotas | None = None) -> tuple[Store, Session, Session]:
    store = Store(quotas)
    dom0, guest = store.connect(), store.connect(domid)
    _ask(store, dom0, Op.MKDIR, f"/local/domain/{domid}|")
    _ask(store, dom0, Op.SET_PERMS, f"/local/domain/{domid}|n{domid}|")
    _ask(store, dom0, Op.INTRODUCE, f"{domid}|1|1|")
    return store, dom0, guest


@pytest.mark.parametrize("op", [Op.READ, Op.DIRECTORY, Op.MKDIR, Op.RM, Op.GET_PERMS])
@pytest.mark.parametrize("payload", ["", "/a", "/a|b", "/a|b|"])
def test_not_one_string(op: Op, payload: str) -> None:
    store = Store()
    assert _ask(store, store.connect(), op, payload) == "EINVAL"


def test_replies_carry_the_request_s_ids() -> None:
    store = Store()
    session = store.connect()
    assert store.handle(session, Packet(Op.READ, 77, 0, b"/tool\0")) == [
        (session, Packet(Op.READ, 77, 0, b""))
    ]
    assert store.handle(session, Packet(Op.READ, 78, 5, b"/tool\0")) == [
        (session, Packet(Op.ERROR, 78, 5, b"ENOENT\0"))
    ]


def test_order_of_reply_and_events() -> None:
    store = Store()
    watcher, writer = store.connect(), store.connect()
    event = Packet(Op.WATCH_EVENT, 0, 0, b"/w\0t\0")
    assert store.handle(watcher, Packet(Op.WATCH, 1, 0, b"/w\0t\0")) == [
        (watcher, Packet(Op.WATCH, 1, 0, b"OK\0")),
        (watcher, event),
    ]
    assert store.handle(writer, Packet(Op.WRITE, 2, 0, b"/w\0v")) == [
        (watcher, event),
        (writer, Packet(Op.WRITE, 2, 0, b"OK\0")),
    ]


def test_a_disconnected_session_is_forgotten() -> None:
    store = Store()
    gone, other = store.connect(), store.connect()
    _ask(store, gone, Op.WATCH, "/w|t|")
    store.disconnect(gone)
    store.disconnect(gone)
    assert [to for to, _ in store.handle(other, Packet(Op.WRITE, 1, 0, b"/w\0v"))] == [other]
    assert store.handle(gone, Packet(Op.READ, 1, 0, b"/w\0")) == []


def test_a_released_domain_gets_no_answers() -> None:
    store, dom0, guest = _with_home(5)
    assert _ask(store, guest, Op.READ, "/local/domain/5|") == ""
    assert _ask(store, dom0, Op.RELEASE, "5|") == "OK|"
    assert store.handle(guest, Packet(Op.READ, 1, 0, b"/local/domain/5\0")) == []


def test_an_event_that_is_too_long_is_not_sent() -> None:
    store = Store()
    session = store.connect()
    for token in ("fits" + "t" * 2082, "too-long" + "t" * 2082):
        assert _ask(store, session, Op.WATCH, f"/w|{token}|") == "OK|"
    # 2007 bytes of path, 2086 and 2090 of token, two NULs: 4095 and 4099.
    answers = store.handle(session, Packet(Op.WRITE, 1, 0, wire.strings("/w/" + "p" * 2004)))
    assert [packet.op for _, packet in answers] == [Op.WATCH_EVENT, Op.WRITE]
    assert b"fits" in answers[0][1].payload


def test_quota_of_nodes() -> None:
    store, dom0, guest = _with_home(5, Quotas(nodes=4))
    assert _ask(store, guest, Op.WRITE, "a/b/c|1") == "OK|"
    assert _ask(store, guest, Op.WRITE, "d|1") == "ENOSPC"
    assert _ask(store, guest, Op.RM, "a/b/c|") == "OK|"
    assert _ask(store, guest, Op.WRITE, "d/e|1") == "ENOSPC"
    assert _ask(store, guest, Op.WRITE, "d|1") == "OK|"
    assert _ask(store, dom0, Op.WRITE, "/local/domain/5/e|1") == "OK|"


def test_quota_of_nodes_at_a_commit() -> None:
    store, _, guest = _with_home(5, Quotas(nodes=3))
    tx_id = int(_ask(store, guest, Op.TRANSACTION_START, "|")[:-1])
    assert _ask(store, guest, Op.WRITE, "a|1", tx_id) == "OK|"
    assert _ask(store, guest, Op.WRITE, "b|1", tx_id) == "OK|"
    assert _ask(store, guest, Op.TRANSACTION_END, "T|", tx_id) == "ENOSPC"
    assert _ask(store, guest, Op.DIRECTORY, "/local/domain/5|") == ""


def test_quota_of_accesses() -> None:
    store, _, guest = _with_home(5, Quotas(accesses=3))
    tx_id = int(_ask(store, guest, Op.TRANSACTION_START, "|")[:-1])
    assert _ask(store, guest, Op.READ, "a|", tx_id) == "ENOENT"
    assert _ask(store, guest, Op.READ, "b|", tx_id) == "ENOENT"
    assert _ask(store, guest, Op.READ, "c|", tx_id) == "ENOSPC"
    assert _ask(store, guest, Op.TRANSACTION_END, "T|", tx_id) == "ENOMEM"


def test_a_write_refused_within_a_transaction_fails_it() -> None:
    store, _, guest = _with_home(5)
    tx_id = int(_ask(store, guest, Op.TRANSACTION_START, "|")[:-1])
    assert _ask(store, guest, Op.WRITE, "a|1", tx_id) == "OK|"
    assert _ask(store, guest, Op.WRITE, "a|" + "v" * 2048, tx_id) == "ENOSPC"
    assert _ask(store, guest, Op.READ, "a|", tx_id) == "1"
    assert _ask(store, guest, Op.TRANSACTION_END, "T|", tx_id) == "ENOMEM"
    assert _ask(store, guest, Op.READ, "a|") == "ENOENT"


def test_transaction_ids_wrap() -> None:
    store = Store()
    session = store.connect()
    session.next_transaction = wire.ID_MASK
    assert _ask(store, session, Op.TRANSACTION_START, "|") == f"{wire.ID_MASK}|"
    assert _ask(store, session, Op.TRANSACTION_START, "|") == "1|"
    session.next_transaction = wire.ID_MASK
    assert _ask(store, session, Op.TRANSACTION_START, "|") == "2|"


def test_parts_of_a_listing_make_the_whole() -> None:
    store = Store()
    session = store.connect()
    names = [f"node{i}" + "n" * (i % 50) for i in range(1000)]
    for name in names:
        _ask(store, session, Op.MKDIR, f"/l/{name}|")
    listing, generations = "", set()
    while not listing.endswith("||"):
        answer = _ask(store, session, Op.DIRECTORY_PART, f"/l|{len(listing)}|")
        generation, _, part = answer.partition("|")
        assert part
        generations.add(generation)
        listing += part
    assert listing == "".join(f"{name}|" for name in names) + "|"
    assert len(generations) == 1
    _ask(store, session, Op.MKDIR, "/l/one-more|")
    assert _ask(store, session, Op.DIRECTORY_PART, "/l|0|").partition("|")[0] not in generations
