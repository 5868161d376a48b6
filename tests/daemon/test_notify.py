import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xencolo.errors import ConfigError
from xencolod.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    return f"@xencolo-test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with bound(address) as sock:
        yield sock


def bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address.replace("@", "\0", 1))
    sock.settimeout(5)
    return sock


def received(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(65536).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_each_message_is_what_systemd_expects(manager: socket.socket, address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.ready("2 domains")
    assert received(manager) == {"READY": "1", "STATUS": "2 domains"}
    assert notifier.status("waits for xenstored")
    assert received(manager) == {"STATUS": "waits for xenstored"}
    assert notifier.watchdog()
    assert received(manager) == {"WATCHDOG": "1"}
    assert notifier.stopping()
    assert received(manager) == {"STOPPING": "1"}


def test_a_reload_carries_the_monotonic_time(manager: socket.socket, address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert notifier.reloading()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    message = received(manager)
    assert message["RELOADING"] == "1"
    # Microseconds, rounded down.
    assert int(before * 1e6) - 1 <= int(message["MONOTONIC_USEC"]) <= after * 1e6


def test_a_status_is_one_line(manager: socket.socket, address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.status("a\nSTOPPING=1\r\nb")
    assert manager.recv(65536) == b"STATUS=a STOPPING=1 b"


def test_a_full_socket_does_not_block_and_loses_nothing(
    manager: socket.socket, address: str
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    queued = 0
    while notifier.status(str(queued)):
        queued += 1
    assert queued > 0
    assert not notifier.reloading()
    assert not notifier.ready("done")
    assert not notifier.watchdog()
    assert [received(manager) for _ in range(queued)] == [{"STATUS": str(n)} for n in range(queued)]
    assert notifier.watchdog()
    message = received(manager)
    del message["MONOTONIC_USEC"]
    # The newest state is alone: systemd would end at the last of several.
    assert message == {"STATUS": "done", "READY": "1", "WATCHDOG": "1"}
    assert notifier.watchdog()
    assert received(manager) == {"WATCHDOG": "1"}


def test_a_manager_that_is_away_gets_it_when_it_is_back(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert not notifier.ready("up")
    with bound(address) as manager:
        assert notifier.watchdog()
        assert received(manager) == {"READY": "1", "STATUS": "up", "WATCHDOG": "1"}


def test_without_a_manager_nothing_is_done() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000000"})
    assert notifier.watchdog_interval is None
    assert notifier.ready("up")
    assert notifier.stopping()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.25),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    environ: dict[str, str], interval: float | None
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/run/notify", **environ})
    assert notifier.watchdog_interval == interval


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NOTIFY_SOCKET": "notify"}, "NOTIFY_SOCKET=notify: neither a path nor"),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC=0: no positive number"),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1s"}, "WATCHDOG_USEC=1s: no positive number"),
    ],
)
def test_what_systemd_never_writes_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Notifier.from_environment(environ)
    assert str(caught.value).startswith(message)
