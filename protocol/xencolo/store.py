"""An in-memory xenstore without I/O: requests in, answers and watch events out.

It does what the C xenstored 4.17 does (``docs/misc/xenstore.txt`` and its sources): permissions per
domain, transactions, watches, quotas. Not here, because they are about time and memory: rate
limits, and the limits of outstanding requests and of a domain's memory. Every domain that is named
exists.
"""

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from xencolo import _store_domains as domains
from xencolo import _store_nodes as nodes
from xencolo import wire
from xencolo._store_state import State
from xencolo._store_tree import Caller, Quotas, View
from xencolo._store_watch import Session
from xencolo.errors import StoreError
from xencolo.wire import Op, Packet

__all__ = ["Quotas", "Session", "Store"]


class _Operation(NamedTuple):
    call: Callable[[State, Session, View, bytes], bytes]
    privileged: bool = False
    #: Whether the request's transaction id is looked at.
    in_transaction: bool = True


_OPERATIONS: Final[dict[int, _Operation]] = {
    Op.CONTROL: _Operation(domains.control, privileged=True),
    Op.DIRECTORY: _Operation(nodes.directory),
    Op.READ: _Operation(nodes.read),
    Op.GET_PERMS: _Operation(nodes.get_perms),
    Op.WATCH: _Operation(domains.watch, in_transaction=False),
    Op.UNWATCH: _Operation(domains.unwatch, in_transaction=False),
    Op.TRANSACTION_START: _Operation(domains.start),
    Op.TRANSACTION_END: _Operation(domains.end),
    Op.INTRODUCE: _Operation(domains.introduce, privileged=True),
    Op.RELEASE: _Operation(domains.release, privileged=True),
    Op.GET_DOMAIN_PATH: _Operation(domains.get_domain_path),
    Op.WRITE: _Operation(nodes.write),
    Op.MKDIR: _Operation(nodes.mkdir),
    Op.RM: _Operation(nodes.rm),
    Op.SET_PERMS: _Operation(nodes.set_perms),
    Op.IS_DOMAIN_INTRODUCED: _Operation(domains.is_domain_introduced, privileged=True),
    Op.RESUME: _Operation(domains.resume, privileged=True),
    Op.SET_TARGET: _Operation(domains.set_target, privileged=True),
    Op.RESET_WATCHES: _Operation(domains.reset_watches),
    Op.DIRECTORY_PART: _Operation(nodes.directory_part),
}


class Store:
    """The store. Give it each request of each session; it never waits.

    :param quotas: what guests may take.
    """

    def __init__(self, quotas: Quotas | None = None) -> None:
        self._state = State(quotas or Quotas())
        self._serial = 0

    def connect(self, domid: int = 0) -> Session:
        """Return a new session of a domain.

        A guest's session stands for its ring page; to introduce the domain is another matter.
        """
        self._serial += 1
        session = Session(Caller(domid), self._serial)
        self._state.sessions[session] = None
        return session

    def disconnect(self, session: Session) -> None:
        """Drop a session with its watches and transactions; again is no matter."""
        self._state.disconnect(session)

    def handle(self, session: Session, packet: Packet) -> list[tuple[Session, Packet]]:
        """Do what a request asks.

        :returns: what to send, in xenstored's order: the watch events that the request caused, to
            any session, then the reply (a new watch's first event follows its reply). A session
            that has ended gets nothing.
        """
        if session.closed:
            return []
        self._state.out = {}
        op, rq_id, tx_id, _ = packet
        try:
            answer = self._answer(session, packet)
        except StoreError as error:
            op, answer = Op.ERROR, wire.ERROR_NAMES[error.errno] + b"\0"
        reply = session, Packet(op, rq_id, tx_id, answer)
        if op == Op.WATCH:
            return [reply, *self._state.out]
        return [*self._state.out, reply]

    def _answer(self, session: Session, packet: Packet) -> bytes:
        op, _, tx_id, payload = packet
        operation = _OPERATIONS.get(op)
        if operation is None:
            raise StoreError(errno.ENOSYS)
        if operation.privileged and session.caller.domid:
            raise StoreError(errno.EACCES)
        view: View | None = self._state.tree
        if tx_id and operation.in_transaction:
            view = session.transactions.get(tx_id)
        if view is None:
            raise StoreError(errno.ENOENT)
        answer = operation.call(self._state, session, view, payload)
        if len(answer) > wire.PAYLOAD_MAX:
            raise StoreError(errno.E2BIG)
        return answer
