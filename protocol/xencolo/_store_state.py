"""What the operations of the in-memory xenstore work on, and how they read their payloads."""

import errno
import re
from collections.abc import Iterable

from xencolo import wire
from xencolo._store_transaction import Transaction
from xencolo._store_tree import READ, Caller, Change, Grant, Quotas, Tree, View, parent_of
from xencolo._store_watch import Session, Watch, Watches
from xencolo.errors import StoreError
from xencolo.wire import Op, Packet

OK = b"OK\0"
_PATH = re.compile(r"/|(?:/[A-Za-z0-9\-_@]+)+", re.ASCII)
_HOME = re.compile(r"/local/domain/\d{1,5}/", re.ASCII)
_LEADING_NUMBER = re.compile(r"\s*([+-]?\d+)", re.ASCII)


def number(text: str) -> int:
    """Return what C's atoi() says: xenstored takes numbers so."""
    match = _LEADING_NUMBER.match(text)
    return int(match[1]) if match else 0


def one_text(payload: bytes) -> str:
    """Return the only string of a payload.

    :raises StoreError: EINVAL, it is not exactly one NUL-terminated string.
    """
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise StoreError(errno.EINVAL)
    return payload[:-1].decode("latin-1")


def texts(payload: bytes, least: int, most: int | None = None) -> list[str]:
    """Return the NUL-terminated strings of a payload; what follows the last NUL is not looked at.

    :raises StoreError: EINVAL, their number is wrong.
    """
    found = payload.decode("latin-1").split("\0")[:-1]
    if len(found) < least or (most is not None and len(found) > most):
        raise StoreError(errno.EINVAL)
    return found


class State:
    """Nodes, watches, sessions and domains.

    :ivar special: the permissions of the special watches.
    :ivar out: what the request under way causes to be sent; a dict, as an ordered set: a second,
        identical event says nothing.
    """

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self.tree = Tree()
        self.watches = Watches()
        self.sessions: dict[Session, None] = {}
        self.introduced = {0}
        self.special: dict[str, tuple[Grant, ...]] = {
            "@introduceDomain": (Grant(0, 0),),
            "@releaseDomain": (Grant(0, 0),),
        }
        self.out: dict[tuple[Session, Packet], None] = {}

    def disconnect(self, session: Session) -> None:
        """Drop a session with its watches and transactions."""
        self.reset(session)
        session.closed = True
        self.sessions.pop(session, None)

    def reset(self, session: Session) -> None:
        """Drop a session's watches and transactions."""
        self.watches.drop_all(session)
        session.transactions.clear()

    def path(self, session: Session, path: str) -> str:
        """Return the absolute path of one that a client gave.

        :raises StoreError: EINVAL, it can't be one.
        """
        if path[:1] not in ("/", "@"):
            path = f"{session.home}/{path}"
        if not _PATH.fullmatch(path):
            raise StoreError(errno.EINVAL, path=path)
        if len(path) > self.quotas.path:
            home = _HOME.match(path)
            if len(path) > self.quotas.path + (home.end() if home else 0):
                raise StoreError(errno.EINVAL, path=path)
        return path

    def fire(self, view: View, changes: Iterable[Change]) -> None:
        """Send the events of changes, or keep them for the commit."""
        for change in changes:
            if isinstance(view, Transaction):
                view.fire(change.path, change.exact)
            else:
                self.send_events(change)

    def send_events(self, change: Change) -> None:
        """Send the events of a change that has been made, or is about to be by a removal."""
        path = change.path
        for watch in self.watches.matching(path, change.exact):
            if self._may_hear(watch.session.caller, change):
                self.send(watch, path)

    def _may_hear(self, caller: Caller, change: Change) -> bool:
        """Say whether the node, as it was or is, or its parent can be read by the watcher."""
        if not caller.domid:
            return True
        known = [change.before] if change.before else []
        if (node := self.tree.get(change.path)) is not None:
            known.append(node.grants)
            known += [above.grants for above in [self.tree.get(parent_of(change.path))] if above]
        return any(caller.rights(grants) & READ for grants in known)

    def fire_special(self, name: str) -> None:
        """Send the events of ``@introduceDomain`` or ``@releaseDomain`` to those allowed them."""
        for watch in self.watches.matching(name, exact=True):
            if watch.session.caller.rights(self.special[name]) & READ:
                self.send(watch, name)

    def send(self, watch: Watch, path: str) -> None:
        """Send one event, unless it is too long for a message, as xenstored does."""
        payload = wire.strings(path[watch.hidden :], watch.token)
        if len(payload) <= wire.PAYLOAD_MAX:
            self.out[watch.session, Packet(Op.WATCH_EVENT, 0, 0, payload)] = None
