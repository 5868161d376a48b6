"""Fixtures for every test: the real servers, one fresh each, and any xenstore at all."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import settings

from tests.rigs import Server, start_oxenstored, start_xenstored
from xencolo import wire
from xencolo.store import Store
from xencolod.embedded import serve_embedded

# A busy machine fails no test by being slow; a failing example is printed so that it can be replayed.
# What CI=… in the environment would change is stated, so that a run is the same everywhere.
settings.register_profile("xencolo", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("xencolo")

# A shell ignores it for what it runs in the background, and the programs under test inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_STARTERS = {"xenstored": start_xenstored, "oxenstored": start_oxenstored}


@pytest.fixture
def xenstored(tmp_path: Path) -> Iterator[Server]:
    with start_xenstored(tmp_path / "xenstored") as server:
        yield server


@pytest.fixture
def oxenstored(tmp_path: Path) -> Iterator[Server]:
    with start_oxenstored(tmp_path / "oxenstored") as server:
        yield server


@pytest.fixture(params=["embedded", *_STARTERS])
async def store_socket(
    request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Path]:
    """The socket of a fresh store that knows dom0's name and domid: the test runs on each kind."""
    if starter := _STARTERS.get(request.param):
        with starter(tmp_path / request.param) as server:
            yield server.socket
        return
    store, path = Store(), tmp_path / "embedded"
    session = store.connect()
    for node, value in (("name", b"Domain-0"), ("domid", b"0")):
        payload = wire.strings(f"/local/domain/0/{node}") + value
        store.handle(session, wire.Packet(wire.Op.WRITE, 0, 0, payload))
    await nursery.start(serve_embedded, path, store)
    yield path
