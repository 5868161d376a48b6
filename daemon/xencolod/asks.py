"""Questions to xenstored, put to a client or to an open transaction alike."""

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from xencolo import requests
from xencolo.errors import StoreError
from xencolo.requests import Answer, Request, absent_as_none
from xencolo.wire import Op, Permission, parse_permissions, split

#: What meets a conflict is redone this often (libxl: without end; XSA-326 taught otherwise).
TRANSACTION_ATTEMPTS = 30


class Asks(Protocol):
    """What a client and a transaction have in common: they put ordered batches to xenstored."""

    async def batch(self, batch: Sequence[Request]) -> list[Answer]:
        """Send the requests together, in order, and return an answer or error for each."""


class Reads(Asks, Protocol):
    """One that can also read much at once: a client spreads it, a transaction has one connection."""

    async def spread(self, batch: Sequence[Request]) -> list[Answer]:
        """Send requests whose order does not matter, and return an answer or error for each."""

    def post(self, batch: Sequence[Request]) -> Callable[[], Awaitable[list[Answer]]]:
        """Send as :meth:`spread`, and return what waits for the answers."""


async def ask(to: Asks, request: Request) -> bytes:
    """Return the answer to one request.

    :raises StoreError: xenstored's error.
    """
    (answer,) = await to.batch([request])
    if isinstance(answer, StoreError):
        raise answer
    return answer


async def demand(
    to: Asks, batch: Sequence[Request], *, absent_ok: Sequence[int] = ()
) -> list[bytes]:
    """Return the answers of requests that must all succeed.

    :param absent_ok: operations for which ENOENT is as good as done (``RM``).
    :raises StoreError: the first error.
    """
    return all_done(batch, await to.batch(batch), absent_ok=absent_ok)


def all_done(
    batch: Sequence[Request], answers: Sequence[Answer], *, absent_ok: Sequence[int] = ()
) -> list[bytes]:
    """Return the answers to requests that must all have succeeded; as :func:`demand`.

    :raises StoreError: the first error.
    """
    done = []
    for request, answer in zip(batch, answers, strict=True):
        if isinstance(answer, bytes):
            done.append(answer)
        elif answer.errno == errno.ENOENT and request.op in absent_ok:
            done.append(b"")
        else:
            raise answer
    return done


async def read(to: Asks, path: str) -> bytes | None:
    """Return a node's value, None where it is absent.

    :raises StoreError: any error but ENOENT.
    """
    return absent_as_none((await to.batch([requests.read(path)]))[0])


async def directory(to: Asks, path: str) -> list[str]:
    """Return the names below a node, none where it is absent; listings over 4096 bytes too.

    :raises StoreError: any error but ENOENT.
    """
    return (await directories(to, [path]))[0]


async def directories(to: Asks, paths: Sequence[str]) -> list[list[str]]:
    """Return the names below each node, as :func:`directory`, all in one round trip.

    :raises StoreError: any error but ENOENT.
    """
    answers = await to.batch([requests.directory(path) for path in paths])
    return [await names_in(to, path, answer) for path, answer in zip(paths, answers, strict=True)]


async def names_in(to: Asks, path: str, answer: Answer) -> list[str]:
    """Return the names in the answer to ``DIRECTORY``; one that is too big is asked for in parts.

    :raises StoreError: any error but ENOENT.
    """
    if isinstance(answer, StoreError) and answer.errno == errno.E2BIG:
        return await _directory_in_parts(to, path)
    return _names(absent_as_none(answer) or b"")


def _names(listing: bytes) -> list[str]:
    return [name.decode("ascii", "replace") for name in split(listing) if name]


async def _directory_in_parts(to: Asks, path: str) -> list[str]:
    """Read a big listing; when it changes between two parts, begin again, as xenstore.txt asks.

    :raises StoreError: EAGAIN if it changes every time; E2BIG if the server can't give parts, as
        oxenstored before Xen 4.18.
    """
    for _ in range(TRANSACTION_ATTEMPTS):
        names = await _directory_parts_once(to, path)
        if names is not None:
            return names
    raise StoreError(errno.EAGAIN, Op.DIRECTORY_PART.name, path)


async def _directory_parts_once(to: Asks, path: str) -> list[str] | None:
    listing, generation = b"", None
    while not listing.endswith(b"\0\0"):
        (answer,) = await to.batch([requests.directory_part(path, len(listing))])
        if isinstance(answer, StoreError) and answer.errno == errno.ENOSYS:
            raise StoreError(errno.E2BIG, Op.DIRECTORY.name, path)
        payload = absent_as_none(answer)
        if payload is None:
            return []  # removed meanwhile
        seen, _, part = payload.partition(b"\0")
        if generation not in {None, seen}:
            return None
        generation = seen
        # An empty part after a whole listing is its end as well.
        listing += part or b"\0"
    return _names(listing)


async def permissions(to: Asks, path: str) -> tuple[Permission, ...]:
    """Return a node's permissions.

    :raises StoreError: ENOENT included.
    """
    return parse_permissions(await ask(to, requests.get_permissions(path)))
