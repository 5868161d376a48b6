"""The trio side of QMP: against a real QEMU, and against a scripted server for what QEMU won't do."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.rigs.bare_qemu import bare_qemu
from tests.rigs.servers import DEADLINE
from xencolo.errors import QmpClosed, QmpCommandError, QmpProtocolError
from xencolo.qmp import Event
from xencolod.qmp import Qmp, open_qmp

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}}}}\r\n'


async def ungreeted(
    path: str,
    match: str | None = None,
    *,
    timeout: float = 5,
    error: type[Exception] = QmpClosed,
) -> None:
    """Check that a QEMU there can't be spoken to."""
    with pytest.raises(error, match=match):
        async with open_qmp(path, timeout=timeout):
            raise AssertionError("it greeted")


# -- a real QEMU --------------------------------------------------------------------------------


async def test_a_qemu_greets_answers_refuses_and_quits(tmp_path: Path) -> None:
    events: list[Event] = []
    with trio.fail_after(DEADLINE):
        async with bare_qemu(tmp_path) as (process, path):
            async with open_qmp(path, timeout=DEADLINE, on_event=events.append) as qmp:
                assert qmp.version >= (7, 0, 0)
                assert await qmp.execute("query-status") == {
                    "running": False,
                    "singlestep": False,
                    "status": "prelaunch",
                }
                with pytest.raises(QmpCommandError) as refused:
                    await qmp.execute("no-such-command", {"x": 1})
                assert refused.value.command == "no-such-command"
                assert refused.value.error_class == "CommandNotFound"
                assert "no-such-command" in refused.value.description
                with pytest.raises(QmpCommandError, match="blockdev-del"):
                    await qmp.execute("blockdev-del", {"node-name": "nobody"})
                # The largest answer there is comes in many pieces.
                assert len(await qmp.execute("query-qmp-schema")) > 1000
                assert await qmp.execute("quit") == {}
                await qmp.wait_closed()
                with pytest.raises(QmpClosed):
                    await qmp.execute("query-status")
            assert await process.wait() == 0
    assert [event.name for event in events] == ["SHUTDOWN"]
    assert events[0].data["reason"] == "host-qmp-quit"


async def test_commands_under_way_at_once_have_each_its_answer(tmp_path: Path) -> None:
    answers: dict[int, object] = {}

    async def ask(qmp: Qmp, number: int) -> None:
        command = ("query-version", "query-uuid", "query-name")[number % 3]
        answers[number] = sorted(await qmp.execute(command))

    with trio.fail_after(DEADLINE):
        async with (
            bare_qemu(tmp_path) as (_, path),
            open_qmp(path, timeout=DEADLINE) as qmp,
            trio.open_nursery() as nursery,
        ):
            for number in range(60):
                nursery.start_soon(ask, qmp, number)
    fields: tuple[list[str], ...] = (["package", "qemu"], ["UUID"], [])
    assert answers == {number: fields[number % 3] for number in range(60)}


async def test_a_killed_qemu_ends_the_command_that_waits(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with bare_qemu(tmp_path) as (process, path), open_qmp(path, timeout=DEADLINE) as qmp:
            process.kill()
            await qmp.wait_closed()
            with pytest.raises(QmpClosed):
                await qmp.execute("query-status")


async def test_a_second_client_is_not_greeted_and_says_so(tmp_path: Path) -> None:
    """QEMU serves one connection; the next ones wait unseen in the listener's queue, until it is full."""
    with trio.fail_after(DEADLINE):
        async with bare_qemu(tmp_path) as (_, path):
            async with open_qmp(path, timeout=DEADLINE):
                for _ in range(4):
                    await ungreeted(path, "another client may be connected", timeout=0.1)
            async with open_qmp(path, timeout=DEADLINE) as qmp:
                assert qmp.version >= (7, 0, 0)


# -- a scripted server --------------------------------------------------------------------------

Script = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def scripted(directory: Path, script: Script) -> AsyncIterator[str]:
    """Serve one connection by a script; the path of its socket."""
    path = str(directory / "scripted")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen(1)

        async def serve() -> None:
            connection, _ = await listener.accept()
            async with trio.SocketStream(connection) as stream:
                await script(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield path
            nursery.cancel_scope.cancel()


async def command(stream: trio.SocketStream) -> dict[str, object]:
    """Take one whole command."""
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some()
        assert data, "the client went away"
        line += data
    taken: dict[str, object] = json.loads(line)
    return taken


async def greet(stream: trio.SocketStream) -> None:
    await stream.send_all(GREETING)
    assert await command(stream) == {"execute": "qmp_capabilities", "arguments": {}, "id": 1}
    await stream.send_all(b'{"return": {}, "id": 1}\r\n')


@pytest.mark.parametrize(
    ("greeting", "enabled", "execute"),
    [
        (GREETING, {}, "execute"),
        (
            GREETING.replace(b"9}}}", b'9}}, "capabilities": ["oob"]}'),
            {"enable": ["oob"]},
            "exec-oob",
        ),
    ],
    ids=["unable", "able"],
)
async def test_out_of_band_where_qemu_can(
    greeting: bytes, enabled: dict[str, object], execute: str, tmp_path: Path
) -> None:
    taken = []

    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting)
        for number in (1, 2):
            taken.append(await command(stream))
            await stream.send_all(b'{"return": {}, "id": %d}\n' % number)

    async with scripted(tmp_path, answer) as path, open_qmp(path, timeout=5) as qmp:
        await qmp.execute("query-yank", oob=True)
    assert taken[0]["arguments"] == enabled
    assert taken[1][execute] == "query-yank"


async def test_nobody_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "nobody")
    await ungreeted(path, r"QMP at .*nobody: .*No such file", timeout=1)


async def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    await ungreeted(str(tmp_path / ("x" * 120)), "too long", timeout=1)


@pytest.mark.parametrize("ready", [b"", GREETING], ids=["no greeting", "no capabilities"])
async def test_silence_ends_at_the_deadline_in_all(
    tmp_path: Path, autojump_clock: MockClock, ready: bytes
) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep(2)
        await stream.send_all(ready)
        await trio.sleep_forever()

    started = autojump_clock.current_time()
    async with scripted(tmp_path, silent) as path:
        await ungreeted(path)
    assert autojump_clock.current_time() - started == pytest.approx(5, abs=0.1)


async def test_a_server_that_closes_before_its_greeting(tmp_path: Path) -> None:
    async def close(_: trio.SocketStream) -> None:
        return

    async with scripted(tmp_path, close) as path:
        await ungreeted(path, "QEMU closed QMP")


async def test_capabilities_that_are_refused(tmp_path: Path) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.send_all(GREETING)
        await command(stream)
        await stream.send_all(b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\n')
        await trio.sleep_forever()

    async with scripted(tmp_path, refuse) as path:
        await ungreeted(path, "qmp_capabilities: no", error=QmpCommandError)


async def test_a_server_that_closes_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    async def half(stream: trio.SocketStream) -> None:
        await greet(stream)
        await command(stream)
        await stream.send_all(b'{"return": {"running": tr')

    async with scripted(tmp_path, half) as path, open_qmp(path, timeout=5) as qmp:
        assert qmp.version == (9, 2, 1)
        with pytest.raises(QmpClosed, match="QEMU closed QMP before it answered query-status"):
            await qmp.execute("query-status")
        await qmp.wait_closed()
        with pytest.raises(QmpClosed, match="QEMU closed QMP"):
            await qmp.execute("query-status")


async def test_a_reset_connection_is_closed_too(tmp_path: Path) -> None:
    """What was not read when the server closed makes the kernel reset the connection."""

    async def reset(stream: trio.SocketStream) -> None:
        await greet(stream)
        await trio.lowlevel.wait_readable(stream.socket)

    async with scripted(tmp_path, reset) as path, open_qmp(path, timeout=5) as qmp:
        with pytest.raises(QmpClosed):
            await qmp.execute("query-status")
        await qmp.wait_closed()


async def test_a_late_answer_is_nobodys_and_the_next_command_has_its_own(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await greet(stream)
        assert (await command(stream))["id"] == 2
        await trio.sleep(20)
        await stream.send_all(b'{"return": "late", "id": 2}\r\n')
        assert (await command(stream))["id"] == 3
        await stream.send_all(b'{"return": "in time", "id": 3}\r\n')
        await trio.sleep_forever()

    async with scripted(tmp_path, slow) as path, open_qmp(path, timeout=5) as qmp:
        with pytest.raises(QmpClosed, match="did not answer stop within 3 s"):
            await qmp.execute("stop", timeout=3)
        assert autojump_clock.current_time() < 20
        assert await qmp.execute("cont", timeout=60) == "in time"


async def test_garbage_ends_the_dialogue_and_the_command(tmp_path: Path) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        await greet(stream)
        await command(stream)
        await stream.send_all(b"Segmentation fault\n")
        await trio.sleep_forever()

    async with scripted(tmp_path, babble) as path, open_qmp(path, timeout=5) as qmp:
        with pytest.raises(QmpClosed):
            await qmp.execute("query-status")
        await qmp.wait_closed()
        with pytest.raises(QmpClosed, match="'Segmentation fault' is no QMP message"):
            await qmp.execute("query-status")


async def test_garbage_for_a_greeting(tmp_path: Path) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await trio.sleep_forever()

    async with scripted(tmp_path, babble) as path:
        await ungreeted(path, "SSH-2")


async def test_events_between_answers_reach_the_listener_in_order(tmp_path: Path) -> None:
    seen: list[str] = []

    async def eventful(stream: trio.SocketStream) -> None:
        await greet(stream)
        await command(stream)
        time = b'"timestamp": {"seconds": 1, "microseconds": 0}'
        await stream.send_all(b'{"event": "STOP", %b}\n{"return": 7, "id": 2}\n' % time)
        await stream.send_all(b'{"event": "RESUME", %b}\n' % time)

    async with (
        scripted(tmp_path, eventful) as path,
        open_qmp(path, timeout=5, on_event=lambda event: seen.append(event.name)) as qmp,
    ):
        assert await qmp.execute("x") == 7
        await qmp.wait_closed()
    assert seen == ["STOP", "RESUME"]


async def test_a_command_that_is_given_up_half_sent_closes_the_connection(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A next command would be read as the rest of this one."""

    async def deaf(stream: trio.SocketStream) -> None:
        await greet(stream)
        await trio.sleep_forever()

    async with scripted(tmp_path, deaf) as path, open_qmp(path, timeout=5) as qmp:
        with pytest.raises(QmpClosed, match="read no command for 1 s"):
            await qmp.execute("x", {"filler": "f" * (4 << 20)}, timeout=2)
        assert autojump_clock.current_time() < 3
        await qmp.wait_closed()
        with pytest.raises(QmpClosed):
            await qmp.execute("query-status")


async def test_what_the_body_raises_comes_out_bare_and_the_connection_is_closed(
    tmp_path: Path,
) -> None:
    closed = trio.Event()

    async def wait(stream: trio.SocketStream) -> None:
        await greet(stream)
        assert await stream.receive_some() == b""
        closed.set()

    with trio.fail_after(DEADLINE):
        async with scripted(tmp_path, wait) as path:
            with pytest.raises(QmpProtocolError, match="mine"):
                async with open_qmp(path, timeout=5):
                    raise QmpProtocolError("mine")
            await closed.wait()


async def test_being_cancelled_is_not_swallowed(tmp_path: Path) -> None:
    async def wait(stream: trio.SocketStream) -> None:
        await greet(stream)
        await trio.sleep_forever()

    async with scripted(tmp_path, wait) as path:
        with trio.CancelScope() as scope:
            async with open_qmp(path, timeout=5) as qmp:
                scope.cancel()
                await qmp.execute("x")
        assert scope.cancelled_caught


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a directory of the kernel's
    for _ in range(3):
        await ungreeted(str(tmp_path / "nobody"), timeout=1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
