"""The embedded xenstore: its socket, clients that misbehave, and other people's clients."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pyxs
import trio

from tests.rigs.servers import DEADLINE
from xencolo import wire
from xencolo.errors import ConfigError
from xencolo.store import Store
from xencolo.wire import Op
from xencolod import embedded
from xencolod.embedded import serve_embedded


async def _ask(stream: trio.SocketStream, op: Op, payload: bytes) -> wire.Packet:
    await stream.send_all(wire.encode(op, 1, 0, payload))
    decoder = wire.Decoder()
    async for data in stream:
        for packet in decoder.feed(bytes(data)):
            if packet.op != Op.WATCH_EVENT:
                return packet
    raise AssertionError("the server closed the connection")


async def _closed(stream: trio.SocketStream) -> None:
    """Read to the end of what the server sends."""
    with trio.fail_after(DEADLINE):
        try:
            async for _ in stream:
                pass
        except trio.BrokenResourceError:
            return  # closed with bytes of ours unread


async def test_the_socket_is_the_owner_s_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_embedded, path, Store())
        assert path.stat().st_mode & 0o777 == 0o600
        async with await trio.open_unix_socket(str(path)) as stream:
            assert (await _ask(stream, Op.READ, b"/tool\0")).op == Op.READ
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_embedded, path, Store())
        async with await trio.open_unix_socket(str(path)) as stream:
            assert (await _ask(stream, Op.READ, b"/tool\0")).op == Op.READ
        nursery.cancel_scope.cancel()


async def test_a_living_server_is_left_alone(store_socket: Path) -> None:
    with pytest.raises(ConfigError, match="served there already"):
        await serve_embedded(store_socket, Store())
    async with await trio.open_unix_socket(str(store_socket)) as stream:
        assert (await _ask(stream, Op.READ, b"/local/domain/0/domid\0")).payload == b"0"


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        await serve_embedded(path, Store())
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="can't listen there"):
        await serve_embedded(tmp_path / "none" / "socket", Store())


@pytest.mark.parametrize(
    "nonsense", [wire.HEADER.pack(Op.READ, 1, 0, wire.PAYLOAD_MAX + 1), b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_a_malformed_message_ends_that_client_alone(
    nonsense: bytes, tmp_path: Path, nursery: trio.Nursery
) -> None:
    await nursery.start(serve_embedded, tmp_path / "socket", Store())
    async with (
        await trio.open_unix_socket(str(tmp_path / "socket")) as good,
        await trio.open_unix_socket(str(tmp_path / "socket")) as bad,
    ):
        await bad.send_all(nonsense)
        await _closed(bad)
        assert (await _ask(good, Op.READ, b"/tool\0")).op == Op.READ


async def test_requests_wait_for_a_client_that_does_not_read(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    await nursery.start(serve_embedded, tmp_path / "socket", Store())
    async with await trio.open_unix_socket(str(tmp_path / "socket")) as stream:
        value = b"/v\0" + b"x" * 4000
        assert (await _ask(stream, Op.WRITE, value)).op == Op.WRITE
        count = 3 * embedded.UNSENT_MAX // 4000
        requests = b"".join(wire.encode(Op.READ, i, 0, b"/v\0") for i in range(count))
        nursery.start_soon(stream.send_all, requests)
        decoder, seen = wire.Decoder(), 0
        with trio.fail_after(DEADLINE):
            async for data in stream:
                for packet in decoder.feed(bytes(data)):
                    assert packet == (Op.READ, seen, 0, b"x" * 4000)
                    seen += 1
                if seen == count:
                    break


async def test_a_client_that_lets_events_pile_up_is_dropped(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    await nursery.start(serve_embedded, tmp_path / "socket", Store())
    async with (
        await trio.open_unix_socket(str(tmp_path / "socket")) as writer,
        await trio.open_unix_socket(str(tmp_path / "socket")) as deaf,
    ):
        token = "t" * 3000
        assert (await _ask(deaf, Op.WATCH, wire.strings("/w", token))).op == Op.WATCH
        with trio.fail_after(DEADLINE):
            for _ in range(2 * embedded.UNSENT_MAX // len(token)):
                assert (await _ask(writer, Op.WRITE, b"/w\0v")).op == Op.WRITE
        await _closed(deaf)
        assert (await _ask(writer, Op.READ, b"/w\0")).payload == b"v"


def _pyxs_reads_and_writes(path: Path) -> None:
    with pyxs.Client(unix_socket_path=str(path)) as client:
        assert client[b"/local/domain/0/domid"] == b"0"
        client[b"/a/b"] = b"value"
        assert client[b"/a/b"] == b"value"
        assert client.list(b"/a") == [b"b"]
        client.set_perms(b"/a", [b"n0", b"r5"])
        assert client.get_perms(b"/a") == [b"n0", b"r5"]
        with pytest.raises(pyxs.PyXSError):
            client.read(b"/none")
        client.transaction()
        client[b"/a/c"] = b"1"
        client.commit()
        client.delete(b"/a/b")
        assert client.list(b"/a") == [b"c"]


def _pyxs_watches(path: Path) -> None:
    with (
        pyxs.Client(unix_socket_path=str(path)) as client,
        client.monitor() as monitor,
    ):
        monitor.watch(b"/w", b"token")
        events = monitor.wait()
        assert next(events) == (b"/w", b"token")
        client[b"/w/x"] = b"1"
        assert next(events) == (b"/w/x", b"token")


@pytest.mark.parametrize("play", [_pyxs_reads_and_writes, _pyxs_watches])
async def test_pyxs_finds_it_a_xenstore(store_socket: Path, play: Callable[[Path], None]) -> None:
    with trio.fail_after(DEADLINE):
        await trio.to_thread.run_sync(play, store_socket)


async def test_xen_s_own_commands_find_it_a_xenstore(store_socket: Path) -> None:
    async def run(*command: str) -> tuple[int, str]:
        done = await trio.run_process(
            command,
            env=os.environ | {"XENSTORED_PATH": str(store_socket)},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout.decode()

    with trio.fail_after(DEADLINE):
        assert await run("xenstore-write", "/x/y", "5", "/x/z", "6") == (0, "")
        assert await run("xenstore-read", "/x/y") == (0, "5\n")
        assert await run("xenstore-chmod", "/x/y", "n0", "r5") == (0, "")
        assert await run("xenstore-ls", "-f", "-p", "/x") == (
            0,
            '/x/y = "5"   (n0,r5)\n/x/z = "6"   (n0)\n',
        )
        assert await run("xenstore-list", "/x") == (0, "y\nz\n")
        assert (await run("xenstore-exists", "/none"))[0] == 1
        assert await run("xenstore-rm", "/x") == (0, "")
        assert await run("xenstore-watch", "-n", "1", "/x") == (0, "/x\n")
