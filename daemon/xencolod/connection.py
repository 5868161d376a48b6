"""One connection to xenstored: numbered requests under way, answers matched by id, one way to die."""

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence

import trio

from xencolo.errors import ConnectionLost, DeadlineExceeded, StoreError, WireError, XenstoreError
from xencolo.requests import Answer, Request
from xencolo.wire import ERRNOS, HEADER, ID_MASK, PAYLOAD_MAX, REPLY_MAX, Decoder, Op, Packet

# Plain numbers: to look a member up in its enum costs as much as the rest of an answer's way.
_WATCH_EVENT, _ERROR = int(Op.WATCH_EVENT), int(Op.ERROR)
_NAMES = {int(op): op.name for op in Op}
_RECEIVE = 1 << 16
#: So many events at once are a flood, if no answer is awaited: then it is read in bigger pieces, after so
#: many seconds each, which costs a small part of the time. It waits in the socket, then in xenstored.
_FLOOD, _REST = 8, 0.001
#: Seconds between attempts while xenstored's queue of new connections is full.
_QUEUE_FULL_PAUSE = 0.01
#: Stands where an answer will; told apart by identity.
_NOT_YET: Answer = b"not yet answered"


class Batch:
    """Requests sent together, with ids that follow each other, and the answers as they come."""

    __slots__ = ("_late", "answers", "done", "error", "first_id", "missing", "requests")

    def __init__(self, requests: Sequence[Request], first_id: int) -> None:
        self.requests = requests
        self.first_id = first_id
        self.answers: list[Answer] = [_NOT_YET] * len(requests)
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


_NONE = Batch((), 0)


class Connection:
    """A socket with a task that sends and one that receives.

    :ivar dead: why nothing can be sent any more; the error that every batch under way got.
    :ivar missing: how many answers are still to come.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        path: str,
        on_event: Callable[[bytes], None],
        *,
        first_id: int = 1,
    ) -> None:
        self._stream = stream
        self._path = path
        self._on_event = on_event
        self._under_way: deque[Batch] = deque()
        self._next_id = first_id
        self._ids_wrapped = False
        self._outgoing: list[bytes] = []
        self._wake = trio.Event()
        self._heard = trio.current_time()
        self.dead: XenstoreError | None = None
        self.missing = 0

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
        self._outgoing.clear()
        while self._under_way:
            self._under_way.popleft().fail(error)
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
        batch = Batch(requests, self._free_ids(len(requests)))
        if not requests:
            batch.done.set()
            return batch
        if not self.missing:
            self._heard = trio.current_time()
        pack, out, rq_id = HEADER.pack, self._outgoing, batch.first_id
        for op, payload in requests:
            out.append(pack(op, rq_id, tx_id, len(payload)))
            out.append(payload)
            rq_id = rq_id + 1 & ID_MASK
        self._ids_wrapped |= rq_id < batch.first_id
        self._next_id = rq_id
        self._under_way.append(batch)
        self.missing += len(requests)
        self._wake.set()
        return batch

    def _free_ids(self, count: int) -> int:
        """Return the first of so many ids that follow each other, none of them under way."""
        first = self._next_id
        while self._ids_wrapped:
            for other in self._under_way:
                gap = other.first_id - first & ID_MASK
                if gap < count or ID_MASK + 1 - gap < len(other.requests):
                    first = other.first_id + len(other.requests) & ID_MASK
                    break
            else:
                break
        return first

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
        while data := await self._read():
            packets = decoder.feed(data)
            self._heard = trio.current_time()
            if self._answer(packets) >= _FLOOD and not self.missing:
                await trio.sleep(_REST)
        middle = f" in the middle of a message ({decoder.pending} bytes)" if decoder.pending else ""
        raise ConnectionLost(f"{self._path}: xenstored closed the connection{middle}")

    async def _read(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._stream.socket)
            try:
                return os.read(self._stream.socket.fileno(), _RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ConnectionLost(f"{self._path}: {error}") from None

    def _answer(self, packets: Sequence[Packet]) -> int:
        """Give each answer to its batch; nearly always they come in the order of the requests.

        :return: how many of the packets were events; of those that are alike, one was told.
        """
        batch, answers = _NONE, _NONE.answers
        events: list[bytes] = []
        for op, rq_id, _, payload in packets:
            if op == _WATCH_EVENT:
                events.append(payload)
                continue
            index = rq_id - batch.first_id & ID_MASK
            if index >= len(answers) or answers[index] is not _NOT_YET:
                batch, index = self._find(rq_id)
                answers = batch.answers
            request = batch.requests[index]
            if op == request[0]:
                answers[index] = payload
            elif op == _ERROR:
                answers[index] = _error(request, payload)
            else:
                # Still under way: the end of the connection ends its batch as well.
                raise WireError(f"answer of type {op} to a request of type {request.op}")
            self.missing -= 1
            batch.missing -= 1
            if not batch.missing:
                self._under_way.remove(batch)
                batch.complete()
        for payload in set(events):
            self._on_event(payload)
        return len(events)

    def _find(self, rq_id: int) -> tuple[Batch, int]:
        for batch in self._under_way:
            index = rq_id - batch.first_id & ID_MASK
            if index < len(batch.answers) and batch.answers[index] is _NOT_YET:
                return batch, index
        raise WireError(f"answer to request {rq_id}, which is not under way")


def _error(request: Request, payload: bytes) -> StoreError:
    number = ERRNOS.get(payload.rstrip(b"\0"), errno.EIO)
    return StoreError(number, _NAMES[request.op], request.path)


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
