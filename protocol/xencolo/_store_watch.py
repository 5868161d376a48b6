"""Who is connected to the in-memory xenstore, and what they watch."""

from dataclasses import dataclass, field
from typing import NamedTuple

from xencolo._store_transaction import Transaction
from xencolo._store_tree import Caller, parent_of


class Watch(NamedTuple):
    """A watch.

    :ivar serial: its place among all watches, by time.
    :ivar hidden: how many characters of an event's path the watcher does not see: it asked with a
        relative path.
    """

    session: "Session"
    path: str
    token: bytes
    serial: int
    hidden: int


@dataclass(slots=True, eq=False)
class Session:
    """A connection. Tell the store when it ends.

    :ivar serial: its place among all connections, by time.
    :ivar closed: it was disconnected, or its domain released: it gets no more answers.
    """

    caller: Caller
    serial: int
    closed: bool = False
    watches: dict[tuple[str, bytes], Watch] = field(default_factory=dict)
    transactions: dict[int, Transaction] = field(default_factory=dict)
    next_transaction: int = 1

    @property
    def home(self) -> str:
        """Where its relative paths begin."""
        return f"/local/domain/{self.caller.domid}"

    def __repr__(self) -> str:
        return f"<Session {self.serial} of domain {self.caller.domid}>"


class Watches:
    """All watches, found by path: an event costs by the depth of its path, not by the store."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}
        self._serial = 0

    def add(self, session: Session, path: str, token: bytes, relative: bool) -> Watch:
        """Register a watch that the session does not have yet."""
        self._serial += 1
        hidden = len(session.home) + 1 if relative else 0
        watch = Watch(session, path, token, self._serial, hidden)
        session.watches[path, token] = watch
        self._by_path.setdefault(path, []).append(watch)
        return watch

    def drop(self, watch: Watch) -> None:
        """Take a watch away again."""
        del watch.session.watches[watch.path, watch.token]
        others = self._by_path[watch.path]
        others.remove(watch)
        if not others:
            del self._by_path[watch.path]

    def drop_all(self, session: Session) -> None:
        """Take away all watches of a session."""
        for watch in list(session.watches.values()):
            self.drop(watch)

    def matching(self, path: str, exact: bool) -> list[Watch]:
        """Return the watches that an event concerns, in the order in which xenstored goes."""
        found = list(self._by_path.get(path, ()))
        while not exact and path != "/":
            path = parent_of(path)
            found += self._by_path.get(path, ())
        found.sort(key=lambda watch: (watch.session.serial, watch.serial))
        return found
