"""What to do where the host has no descriptor, memory or process to spare: say so, and wait for one."""

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from xencolod.log import Logger, emit

T = TypeVar("T")

#: What others on the host, or the operator, may give back at any time.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_PAUSE = 0.5


def is_exhausted(error: OSError) -> bool:
    """Tell whether it is the host that is short of something, and nothing that was asked for is wrong."""
    return error.errno in _EXHAUSTED


async def patiently(log: Logger, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work; where the host is exhausted it is said once, and tried again without a deadline.

    :param work: must be safe to repeat.
    :raises OSError: it failed for another reason.
    """
    said = False
    while True:
        try:
            return await work()
        except OSError as error:
            if not is_exhausted(error):
                raise
            if not said:
                emit(log, "daemon.exhausted", error=str(error))
            said = True
        await trio.sleep(_PAUSE)
