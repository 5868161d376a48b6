"""The operations on watches, transactions and domains of the in-memory xenstore."""

import errno
from typing import Final

from xencolo import wire
from xencolo._store_state import OK, State, number, one_text, texts
from xencolo._store_transaction import Transaction
from xencolo._store_tree import Caller, View, forget_domain
from xencolo._store_watch import Session
from xencolo.errors import StoreError

_DOMID_SELF: Final = 0x7FF0


def _watch_path(state: State, session: Session, path: str) -> str:
    if not path.startswith("@"):
        return state.path(session, path)
    if len(path) > wire.REL_PATH_MAX:
        raise StoreError(errno.EINVAL, path=path)
    return path


def watch(state: State, session: Session, _view: View, payload: bytes) -> bytes:
    name, token_text = texts(payload, 2, 2)
    token = token_text.encode("latin-1")
    path = _watch_path(state, session, name)
    if (path, token) in session.watches:
        raise StoreError(errno.EEXIST, path=path)
    if session.caller.domid and len(session.watches) > state.quotas.watches:
        raise StoreError(errno.E2BIG, path=path)
    added = state.watches.add(session, path, token, relative=name[:1] not in ("/", "@"))
    state.send(added, path)
    return OK


def unwatch(state: State, session: Session, _view: View, payload: bytes) -> bytes:
    name, token = texts(payload, 2, 2)
    path = name if name[:1] in ("/", "@") else f"{session.home}/{name}"
    found = session.watches.get((path, token.encode("latin-1")))
    if found is None:
        raise StoreError(errno.ENOENT, path=path)
    state.watches.drop(found)
    return OK


def reset_watches(state: State, session: Session, _view: View, _payload: bytes) -> bytes:
    state.reset(session)
    return OK


def start(state: State, session: Session, view: View, _payload: bytes) -> bytes:
    if isinstance(view, Transaction):
        raise StoreError(errno.EBUSY)
    guest = bool(session.caller.domid)
    if guest and len(session.transactions) > state.quotas.transactions:
        raise StoreError(errno.ENOSPC)
    tx_id = session.next_transaction
    while not tx_id or tx_id in session.transactions:
        tx_id = (tx_id + 1) & wire.ID_MASK
    session.next_transaction = (tx_id + 1) & wire.ID_MASK
    limit = state.quotas.accesses if guest else None
    session.transactions[tx_id] = Transaction(state.tree, tx_id, limit)
    return wire.strings(str(tx_id))


def end(state: State, session: Session, view: View, payload: bytes) -> bytes:
    if (verdict := one_text(payload)) not in ("T", "F"):
        raise StoreError(errno.EINVAL)
    if not isinstance(view, Transaction):
        raise StoreError(errno.ENOENT)
    del session.transactions[view.number]
    if verdict == "T":
        quota = state.quotas.nodes if session.caller.domid else None
        for change in view.commit(quota):
            state.send_events(change)
    return OK


def introduce(state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    domid_text, _, port = texts(payload, 3)[:3]
    if number(port) <= 0:
        raise StoreError(errno.EINVAL)
    domid = number(domid_text)
    for session in state.sessions:
        if domid and session.caller.domid == domid:
            state.reset(session)
    if domid not in state.introduced:
        state.introduced.add(domid)
        state.fire_special("@introduceDomain")
    return OK


def _domain(state: State, payload: bytes) -> int:
    domid = number(one_text(payload))
    if not domid:
        raise StoreError(errno.EINVAL)
    if domid not in state.introduced:
        raise StoreError(errno.ENOENT)
    return domid


def release(state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    domid = _domain(state, payload)
    state.introduced.discard(domid)
    for session in list(state.sessions):
        if session.caller.domid == domid:
            state.disconnect(session)
    state.fire(state.tree, forget_domain(state.tree, domid))
    for name, grants in state.special.items():
        kept = tuple(grant for grant in grants[1:] if grant.domid != domid)
        owner = 0 if grants[0].domid == domid else grants[0].domid
        state.special[name] = (grants[0]._replace(domid=owner), *kept)
    state.fire_special("@releaseDomain")
    return OK


def resume(state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    _domain(state, payload)
    return OK


def set_target(state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    domid, target = (number(text) for text in texts(payload, 2)[:2])
    if not {domid, target} <= state.introduced:
        raise StoreError(errno.ENOENT)
    for session in state.sessions:
        if session.caller.domid == domid:
            session.caller = Caller(domid, target)
    return OK


def get_domain_path(_state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    return wire.strings(f"/local/domain/{number(one_text(payload)) & wire.ID_MASK}")


def is_domain_introduced(state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    domid = number(one_text(payload))
    return b"T\0" if domid == _DOMID_SELF or domid in state.introduced else b"F\0"


def control(_state: State, _session: Session, _view: View, payload: bytes) -> bytes:
    # Xenstored's other commands are about its own process.
    if texts(payload, 1)[0] != "check":
        raise StoreError(errno.EINVAL)
    return OK
