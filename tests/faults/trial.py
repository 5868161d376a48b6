"""What a fault is to the suite, and the count that it keeps."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.e2e.host import Host, Images
from tests.e2e.site import Member, site
from tests.rigs import Server, start_xenstored


@dataclass
class Trial:
    """One run of a fault, as often as it is asked for.

    :ivar directory: a fresh one.
    :ivar times: how often the fault is to be made.
    :ivar random: for its moments and choices, from the seed that is printed.
    """

    directory: Path
    images: Images
    times: int
    random: random.Random
    stack: ExitStack = field(default_factory=ExitStack)
    tried: int = 0
    survived: int = 0

    @contextmanager
    def one(self, count: int = 1) -> Iterator[None]:
        """Count what is tried inside; it has survived when nothing is raised."""
        self.tried += count
        yield
        self.survived += count

    def server(self, start: Callable[[Path], Server] = start_xenstored) -> Server:
        """Return a real xenstored that ends with the trial."""
        return self.stack.enter_context(start(self.directory / "xs"))

    def host(self, server: Server | None = None) -> Host:
        """Return a host that ends with the trial, its daemon not started yet."""
        host = Host(self.directory, self.images, (server or self.server()).socket)
        self.stack.callback(host.close)
        return host

    def pair(self) -> list[Member]:
        """Return two hosts that end with the trial."""
        return self.stack.enter_context(site(self.directory, self.images, 2))


class Fault(NamedTuple):
    """A row of the suite.

    :ivar name: what happens, in words.
    :ivar full: how often in ``make faults``.
    :ivar short: how often in ``make test``; 0 where that has it elsewhere or it takes too long.
    """

    name: str
    run: Callable[[Trial], None]
    full: int
    short: int = 1


def rounds(trial: Trial) -> Iterator[int]:
    """Yield the number of each time that the fault is to be made, and count it."""
    for number in range(trial.times):
        with trial.one():
            yield number
