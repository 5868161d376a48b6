"""The operations on nodes of the in-memory xenstore."""

import errno

from xencolo import wire
from xencolo._store_state import OK, State, number, one_text, texts
from xencolo._store_tree import (
    OWNER,
    READ,
    WRITE,
    Caller,
    Change,
    Grant,
    View,
    alter,
    create,
    look_up,
    parent_of,
    parse_grants,
    remove,
)
from xencolo._store_watch import Session
from xencolo.errors import StoreError


def read(state: State, session: Session, view: View, payload: bytes) -> bytes:
    return look_up(view, session.caller, state.path(session, one_text(payload)), READ).value


def directory(state: State, session: Session, view: View, payload: bytes) -> bytes:
    node = look_up(view, session.caller, state.path(session, one_text(payload)), READ)
    return wire.strings(*node.children)


def directory_part(state: State, session: Session, view: View, payload: bytes) -> bytes:
    path, offset = texts(payload, 2, 2)
    node = look_up(view, session.caller, state.path(session, path), READ)
    head = wire.strings(str(node.generation))
    names = wire.strings(*node.children)
    start = number(offset)
    if not 0 <= start < len(names):
        return head + b"\0"
    room = wire.PAYLOAD_MAX - len(head) - 1
    rest = names[start : start + room]
    if start + len(rest) == len(names):
        return head + rest + b"\0"
    return head + rest[: rest.rfind(b"\0") + 1]


def get_perms(state: State, session: Session, view: View, payload: bytes) -> bytes:
    node = look_up(view, session.caller, state.path(session, one_text(payload)), READ)
    return wire.strings(*map(str, node.grants))


def _is_there(view: View, caller: Caller, path: str) -> bool:
    """Return whether a node is there.

    :raises StoreError: it is not the caller's to write or to know.
    """
    try:
        look_up(view, caller, path, WRITE)
    except StoreError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def write(state: State, session: Session, view: View, payload: bytes) -> bytes:
    name, nul, value = payload.partition(b"\0")
    if not nul:
        raise StoreError(errno.EINVAL)
    path = state.path(session, name.decode("latin-1"))
    if _is_there(view, session.caller, path):
        alter(view, session.caller, path, state.quotas, value=value)
    else:
        create(view, session.caller, path, value, state.quotas)
    state.fire(view, [Change(path, False, None)])
    return OK


def mkdir(state: State, session: Session, view: View, payload: bytes) -> bytes:
    path = state.path(session, one_text(payload))
    if not _is_there(view, session.caller, path):
        create(view, session.caller, path, b"", state.quotas)
        state.fire(view, [Change(path, False, None)])
    return OK


def rm(state: State, session: Session, view: View, payload: bytes) -> bytes:
    path = state.path(session, one_text(payload))
    try:
        look_up(view, session.caller, path, WRITE)
    except StoreError as error:
        # Gone already is fine if there is where it would be.
        if error.errno != errno.ENOENT or view.get(parent_of(path)) is None:
            raise
        return OK
    if path == "/":
        raise StoreError(errno.EINVAL, path=path)
    state.fire(view, remove(view, path))
    return OK


def set_perms(state: State, session: Session, view: View, payload: bytes) -> bytes:
    name, *entries = texts(payload, 2)
    caller = session.caller
    if caller.domid and len(entries) > state.quotas.permissions:
        raise StoreError(errno.ENOSPC)
    grants = parse_grants([entry.encode("latin-1") for entry in entries])
    if name.startswith("@"):
        return _set_special(state, caller, name, grants)
    path = state.path(session, name)
    before = look_up(view, caller, path, WRITE | OWNER).grants
    if caller.domid and grants[0].domid != before[0].domid:
        raise StoreError(errno.EPERM, path=path)
    alter(view, caller, path, state.quotas, grants=grants)
    state.fire(view, [Change(path, False, before)])
    return OK


def _set_special(state: State, caller: Caller, name: str, grants: tuple[Grant, ...]) -> bytes:
    if name not in state.special:
        raise StoreError(errno.EINVAL, path=name)
    if not caller.rights(state.special[name]) & OWNER:
        raise StoreError(errno.EACCES, path=name)
    state.special[name] = grants
    return OK
