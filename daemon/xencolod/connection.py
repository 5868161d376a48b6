"""One connection to xenstored: numbered requests under way, answers matched by id, one way to die."""

import errno
from collections.abc import Callable, Sequence

import trio

from xencolo.errors import ConnectionLost, DeadlineExceeded, StoreError, WireError, XenstoreError
from xencolo.requests import Request
from xencolo.wire import ERRNOS, HEADER, ID_MASK, PAYLOAD_MAX, REPLY_MAX, Decoder, Op, Packet

#: An answer's payload, or the error that xenstored gave instead of it.
Answer = bytes | StoreError

#: oxenstored has a name of its own for what is ENOSPC in the C xenstored.
_ERRNOS = ERRNOS | {b"EQUOTA": errno.ENOSPC}
# Plain numbers: to look a member up in its enum costs as much as the rest of an answer's way.
_WATCH_EVENT, _ERROR = int(Op.WATCH_EVENT), int(Op.ERROR)
_RECEIVE = 1 << 18
#: Seconds between attempts while xenstored's queue of new connections is full.
_QUEUE_FULL_PAUSE = 0.01


class Batch:
    """Requests sent together, and the answers as they come."""

    __slots__ = ("_late", "answers", "done", "error", "missing", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.answers: list[Answer] = [b""] * len(requests)
        self.missing = len(requests)
        self.done = trio.Event()
        self.error: XenstoreError | None = None
        self._late: Callable[[list[Answer]], None] | None = None

    def complete(self) -> None:
        """Note that the last answer is there."""
        self.done.set()
        if self._late:
            self._late(self.answers)

    def forsake(self, late: Callable[[list[Answer]], None]) -> None:
        """Stop waiting; ``late`` gets the answers if they come, or have come already."""
        self._late = late
        if self.done.is_set() and not self.error:
            late(self.answers)

    def fail(self, error: XenstoreError) -> None:
        """Note that no more answers will come."""
        self.error = error
        self.done.set()


class Connection:
    """A socket with a task that sends and one that receives.

    :ivar dead: why nothing can be sent any more; the error that every batch under way got.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        path: str,
        on_event: Callable[[Packet], None],
        *,
        first_id: int = 1,
    ) -> None:
        self._stream = stream
        self._path = path
        self._on_event = on_event
        self._pending: dict[int, tuple[Batch, int]] = {}
        self._next_id = first_id
        self._outgoing: list[bytes] = []
        self._wake = trio.Event()
        self._heard = trio.current_time()
        self.dead: XenstoreError | None = None

    async def run(self) -> None:
        """Send and receive until the connection dies; every batch under way then ends with an error."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self._receive()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, WireError) as group:
            first = group.exceptions[0]
            self.close(ConnectionLost(f"{self._path}: {first.__cause__ or first}"))
        except* ConnectionLost as group:
            self.close(ConnectionLost(*group.exceptions[0].args))
        finally:
            self.close(ConnectionLost(f"{self._path}: closed"))

    def close(self, error: XenstoreError) -> None:
        """End the connection; the first error given is the one that counts."""
        if self.dead:
            return
        self.dead = error
        pending, self._pending = self._pending, {}
        self._outgoing.clear()
        for batch, _ in pending.values():
            batch.fail(error)
        self._stream.socket.close()

    def submit(self, requests: Sequence[Request], tx_id: int = 0) -> Batch:
        """Number the requests and hand them to the sender; nothing is awaited.

        What is not sent yet is held here without a bound: callers wait for their answers, so it is
        never more than they have asked for at one time.

        :raises ConnectionLost: the connection is dead.
        :raises WireError: a payload is over 4096 bytes; nothing is sent.
        """
        if self.dead:
            raise ConnectionLost(*self.dead.args)
        for op, payload in requests:
            if len(payload) > PAYLOAD_MAX:
                raise WireError(f"{Op(op).name}: {len(payload)} bytes, {PAYLOAD_MAX} at most")
        batch = Batch(requests)
        if not requests:
            batch.done.set()
            return batch
        if not self._pending:
            self._heard = trio.current_time()
        pending, pack, out, rq_id = self._pending, HEADER.pack, self._outgoing, self._next_id
        for index, (op, payload) in enumerate(requests):
            while rq_id in pending:  # only after the ids wrapped around
                rq_id = rq_id + 1 & ID_MASK
            pending[rq_id] = batch, index
            out.append(pack(op, rq_id, tx_id, len(payload)))
            out.append(payload)
            rq_id = rq_id + 1 & ID_MASK
        self._next_id = rq_id
        self._wake.set()
        return batch

    async def wait(self, batch: Batch, timeout: float) -> list[Answer]:
        """Return the answers; the deadline is for silence, so a long batch that moves may go on.

        :raises ConnectionLost: the connection died first.
        :raises DeadlineExceeded: nothing at all came for ``timeout`` seconds; the connection is closed.
        """
        while not batch.done.is_set():
            # A silence that is over already gets one turn of the loop: an answer may lie in the socket.
            with trio.move_on_at(max(self._heard + timeout, trio.current_time() + 0.01)):
                await batch.done.wait()
            if not batch.done.is_set() and trio.current_time() >= self._heard + timeout:
                self.close(DeadlineExceeded(f"{self._path}: no answer for {timeout:g} s"))
        if batch.error:
            # A fresh one for each waiter: a shared exception would collect all their tracebacks.
            raise type(batch.error)(*batch.error.args)
        return batch.answers

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await self._stream.send_all(data)

    async def _receive(self) -> None:
        # oxenstored answers DIRECTORY in one message, however long.
        decoder = Decoder(payload_max=REPLY_MAX)
        while data := await self._stream.receive_some(_RECEIVE):
            self._heard = trio.current_time()
            for packet in decoder.feed(data):
                if packet.op == _WATCH_EVENT:
                    self._on_event(packet)
                else:
                    self._answer(packet)
        middle = f" in the middle of a message ({decoder.pending} bytes)" if decoder.pending else ""
        raise ConnectionLost(f"{self._path}: xenstored closed the connection{middle}")

    def _answer(self, packet: Packet) -> None:
        op, rq_id, _, payload = packet
        try:
            batch, index = self._pending[rq_id]
        except KeyError:
            raise WireError(f"answer to request {rq_id}, which is not under way") from None
        if op == batch.requests[index].op:
            batch.answers[index] = payload
        elif op == _ERROR:
            request = batch.requests[index]
            number = _ERRNOS.get(payload.rstrip(b"\0"), errno.EIO)
            batch.answers[index] = StoreError(number, Op(request.op).name, request.path)
        else:
            # Still pending: the end of the connection ends its batch as well.
            raise WireError(f"answer of type {op} to a request of type {batch.requests[index].op}")
        del self._pending[rq_id]
        batch.missing -= 1
        if not batch.missing:
            batch.complete()


async def connect(path: str, timeout: float) -> trio.SocketStream:
    """Connect to xenstored's socket within ``timeout`` seconds.

    :raises ConnectionLost: it is absent, refuses or is too slow; the message has path and remedy.
    """
    try:
        with trio.fail_after(timeout):
            return await _connect(path)
    except trio.TooSlowError:
        why = f"it takes no new connections for {timeout:g} s"
    except OSError as error:
        why = error.strerror or str(error)
    raise ConnectionLost(
        f"xenstored does not answer at {path}: {why}; is it running, may this user connect, and is "
        f"XENSTORED_PATH right?"
    )


async def _connect(path: str) -> trio.SocketStream:
    while True:
        stream = await trio.open_unix_socket(path)
        try:
            stream.socket.getpeername()
        except OSError as error:
            stream.socket.close()
            # The C xenstored listens with a backlog of one. While that is full, connect(2) says EAGAIN,
            # which trio takes for EINPROGRESS: the socket looks connected and is not.
            if error.errno != errno.ENOTCONN:
                raise
            await trio.sleep(_QUEUE_FULL_PAUSE)
        else:
            return stream
