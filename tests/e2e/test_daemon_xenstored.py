"""The daemon and an xenstored that can't be had: said once, waited for, and all is well when it comes."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.daemon.cli_rig import breaking_off
from tests.e2e.host import Host, Images, until
from tests.rigs import start_xenstored

Trouble = Callable[[Path], AbstractContextManager[object]]


@contextmanager
def refusing(where: Path) -> Iterator[None]:
    """A socket at which nobody listens."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(where))
        yield


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "absent": (nullcontext, "No such file or directory"),
    "refuses": (refusing, "Connection refused"),
    "ends in the middle of an answer": (breaking_off, "in the middle of a message (7 bytes)"),
}


@pytest.mark.parametrize(("trouble", "words"), TROUBLES.values(), ids=TROUBLES)
def test_it_is_said_once_and_waited_for(
    trouble: Trouble, words: str, tmp_path: Path, images: Images
) -> None:
    directory = tmp_path / "xenstored"
    directory.mkdir()
    where = directory / "socket"
    host = Host(tmp_path, images, where)
    try:
        with trouble(where):
            host.start(ready=False)
            lost = host.event("xenstore.lost")
            assert lost["socket"] == str(where)
            assert words in lost["error"]
            assert lost["level"] == "error"
            attempts = host.mark()
            assert len(host.events("xenstore.lost")) == 1
            assert not host.events("xenstore.connected")
            assert not host.events("daemon.ready")
        where.unlink(missing_ok=True)
        with start_xenstored(directory):
            host.event("daemon.ready", since=attempts)
            _, pid = host.running(5)
            assert host.qemus() == [pid]
            host.leave_store()
            # What is told after the trouble is over: that there is no socket for a moment.
            assert len(host.events("xenstore.lost", error=lost["error"])) == 1
            assert host.stop() == 0
        until(lambda: not host.alive, "it has ended")
        assert host.stderr() == ""
    finally:
        host.close()
