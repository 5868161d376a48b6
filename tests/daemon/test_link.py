"""The link between two daemons: real TLS over loopback, and everybody who should not get in."""

import os
import ssl
import struct
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from tests.daemon import link_rig as rig
from tests.daemon.link_rig import (
    HELLO,
    KEYS,
    OURS,
    PLAIN,
    SECURITY,
    SESSION,
    THEIRS,
    WELCOME,
    Served,
    believing,
    hello_line,
    read_all,
    read_line,
    scripted,
    served,
    welcome,
)
from xencolo.errors import (
    ConfigError,
    DeviceError,
    LinkClosed,
    LinkError,
    LinkProtocolError,
    LinkRefused,
    LinkSilent,
    LinkUnreachable,
    LinkUntrusted,
)
from xencolo.link import (
    LINE_MAX,
    Checkpoint,
    Detach,
    Done,
    Hello,
    Ping,
    Prepare,
    Refusal,
    Reply,
    Request,
    Start,
    decode_reply,
    encode,
    refusal,
)
from xencolod import listener
from xencolod.keys import Keys
from xencolod.link import Link, open_link
from xencolod.listener import Peer
from xencolod.security import Security, secured_by

BOTH = pytest.mark.parametrize("security", [SECURITY, PLAIN], ids=["tls", "plain"])


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """A clock that jumps, but not over what the kernel has under way."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


# -- as it should be ----------------------------------------------------------------------------


@BOTH
async def test_a_hello_is_welcomed_and_requests_are_answered_in_order(security: Security) -> None:
    asked: list[Request] = []

    async def answer(request: Request, peer: Peer) -> Reply:
        asked.append(request)
        assert (peer.address, peer.hello) == ("127.0.0.1", HELLO)
        return await welcome(request, peer)

    requests: list[Request] = [
        HELLO,
        Prepare(SESSION, assume_equal=True),
        Start(SESSION),
        Checkpoint(SESSION, 1),
        Detach(SESSION),
    ]
    async with served(answer, security) as end:
        async with end.link() as link:
            assert [await link.ask(request) for request in requests] == [WELCOME, *[Done()] * 4]
            assert link.lost is None
        await end.until_logged("link.lost")
        (gone,) = end.gone
    assert asked == requests
    assert gone.closed.is_set()
    assert isinstance(gone.lost, LinkClosed)
    assert [event["event"] for event in end.log if event["event"] != "link.insecure"] == [
        "link.listening",
        "link.connected",
        "link.lost",
    ]
    assert end.events("link.listening")[0]["encrypted"] is (security is SECURITY)
    assert len(end.events("link.insecure")) == (security is PLAIN)
    lost = {"peer": "127.0.0.1", "uuid": HELLO.uuid, "kind": "closed"}
    assert end.events("link.lost")[0].items() >= lost.items()


async def test_a_refusal_says_why_and_the_link_goes_on() -> None:
    async def answer(request: Request, _: Peer) -> Reply:
        match request:
            case Hello(generation=1):
                return refusal("generation", "yours is old", 7)
            case Hello():
                return WELCOME
            case Start():
                raise DeviceError("no such\ndisk \udcff")
        return Done()

    async with served(answer) as end, end.link() as link:
        with pytest.raises(LinkRefused, match=r"refused \(generation\): yours is old") as refused:
            await link.ask(HELLO)
        assert (refused.value.kind, refused.value.generation) == ("generation", 7)
        with pytest.raises(LinkRefused, match="no hello of this connection was welcomed") as early:
            await link.ask(Prepare(SESSION))
        assert early.value.kind == "state"
        newer = Hello(uuid=HELLO.uuid, name="web", generation=8)
        assert await link.ask(newer) == WELCOME
        with pytest.raises(LinkRefused, match="hello was said on this connection"):
            await link.ask(newer)
        with pytest.raises(LinkRefused, match=r"refused \(failed\): no such\ndisk \\udcff"):
            await link.ask(Start(SESSION))
        assert await link.ask(Detach(SESSION)) == Done()
        assert await link.ask(Ping()) == Done()


async def test_a_long_answer_is_no_silence(clock: MockClock) -> None:
    """The other side answers pings meanwhile, before the welcome too."""

    async def slow(request: Request, peer: Peer) -> Reply:
        await trio.sleep(12)
        return await welcome(request, peer)

    async with served(slow, timeout=5) as end, end.link(timeout=5) as link:
        assert await link.ask(HELLO, timeout=60) == WELCOME
        assert await link.ask(Prepare(SESSION), timeout=60) == Done()
        await trio.sleep(12)
        assert link.lost is None
    assert clock.current_time() >= 36


async def test_a_late_answer_is_nobodys_and_the_next_one_has_its_own(clock: MockClock) -> None:
    async def slow(request: Request, peer: Peer) -> Reply:
        if isinstance(request, Start):
            await trio.sleep(20)
            return refusal("failed", "late")
        return await welcome(request, peer)

    async with served(slow) as end, end.link() as link:
        await link.ask(HELLO)
        with pytest.raises(LinkSilent, match="no answer to start within 3 s"):
            await link.ask(Start(SESSION), timeout=3)
        with trio.move_on_after(3) as given_up:
            await link.ask(Start(SESSION))
        assert given_up.cancelled_caught
        assert await link.ask(Detach(SESSION), timeout=60) == Done()
    assert clock.current_time() >= 40


async def test_many_links_at_once() -> None:
    async def one(end: Served) -> None:
        async with end.link() as link:
            await link.ask(HELLO)
            for number in range(5):
                assert await link.ask(Checkpoint(SESSION, number)) == Done()

    async with served() as end:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(one, end)
        await end.until_logged("link.lost", 40)
        assert len(end.gone) == 40
        assert not end.events("link.refused")


@BOTH
async def test_a_message_may_come_byte_by_byte_or_with_the_next(security: Security) -> None:
    async with served(security=security) as end, end.raw() as stream:
        for byte in hello_line(1):
            await stream.send_all(bytes([byte]))
        assert decode_reply(await read_line(stream)) == (1, WELCOME)
    async with served(security=security) as end, end.raw() as stream:
        await stream.send_all(
            hello_line(4) + encode(5, Start(SESSION)) + encode(9, Detach(SESSION))
        )
        answers = b""
        while answers.count(b"\n") < 3:
            answers += await stream.receive_some()
        assert [decode_reply(line)[0] for line in answers.splitlines()] == [4, 5, 9]


# -- who gets no connection ---------------------------------------------------------------------

EXPIRED = OURS.keys(made=rig.LONG_AGO)
OTHER_NAME = OURS.keys(name="elsewhere")
STRANGER = THEIRS.keys()

INTRUDERS: dict[str, tuple[Security, str]] = {
    "another key file": (secured_by(STRANGER), "it closed the connection"),
    "another authority": (believing(STRANGER), "its certificate is not ours"),
    "no certificate": (believing(None), "it showed no certificate"),
    "expired": (believing(EXPIRED), "certificate has expired"),
    "another name": (believing(OTHER_NAME), "not for xencolo but for"),
    "old TLS": (believing(KEYS, newest=ssl.TLSVersion.TLSv1_2), "it speaks no TLS 1.3"),
    "no TLS": (PLAIN, "it does not speak TLS"),
}


@pytest.mark.parametrize("intruder", INTRUDERS)
async def test_nothing_is_asked_by_who_does_not_hold_the_keys(intruder: str) -> None:
    security, why = INTRUDERS[intruder]
    asked: list[Request] = []

    async def answer(request: Request, peer: Peer) -> Reply:
        asked.append(request)
        return await welcome(request, peer)

    async with served(answer) as end:
        with pytest.raises(LinkError):
            async with end.link(security) as link:
                await link.ask(HELLO)
        refused = await end.until_logged("link.refused")
        assert why in refused["error"]
        assert refused["peer"] == "127.0.0.1"
        assert not asked
        assert not end.gone
        assert await end.is_well()


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (STRANGER, "its certificate is not ours: self-signed"),
        (EXPIRED, "certificate has expired"),
        (OTHER_NAME, "Hostname mismatch"),
    ],
    ids=["stranger", "expired", "another name"],
)
async def test_nothing_is_said_to_who_does_not_hold_the_keys(shown: Keys, why: str) -> None:
    heard = b""

    async def listen(stream: trio.SocketStream) -> None:
        nonlocal heard
        heard = await read_all(stream)

    lenient = secured_by(shown)
    assert lenient.server
    lenient.server.verify_mode = ssl.CERT_NONE
    async with scripted(listen, lenient) as port:
        with pytest.raises(LinkUntrusted, match=why) as error:
            async with open_link("127.0.0.1", port, SECURITY, timeout=5, ping_interval=1):
                raise AssertionError("it connected")
    assert str(error.value).startswith(f"127.0.0.1 port {port}: ")
    assert heard == b""


async def test_tls_to_a_plain_daemon_is_refused_at_both_ends() -> None:
    async with served(security=PLAIN) as end:
        with pytest.raises(LinkUntrusted):
            async with end.link(SECURITY):
                raise AssertionError("it connected")
        refused = await end.until_logged("link.refused")
        assert "link.unencrypted_and_unauthenticated" in refused["error"]


async def test_plain_to_something_else_is_told_what_differs() -> None:
    async def ssh(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await trio.sleep_forever()

    async with (
        scripted(ssh) as port,
        open_link("127.0.0.1", port, PLAIN, timeout=5, ping_interval=1) as link,
    ):
        with pytest.raises(LinkProtocolError, match=r"SSH-2.* begins no message; both hosts"):
            await link.ask(HELLO)
        assert isinstance(await link.wait_closed(), LinkProtocolError)


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "Connection refused"), ("a..b", "empty")],
)
async def test_nobody_there(host: str, why: str) -> None:
    with trio.socket.socket() as bound:
        await bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(LinkUnreachable, match=why) as error:
            async with open_link(host, port, SECURITY, timeout=5, ping_interval=1):
                raise AssertionError("it connected")
    assert not isinstance(error.value, LinkUntrusted)


async def test_an_address_that_is_taken_is_an_error_of_the_configuration() -> None:
    async with served() as end:
        with pytest.raises(ConfigError, match=rf"link\.listen: .* port {end.port}: .*in use"):
            async with served(port=end.port):
                raise AssertionError("it listens")


async def test_an_address_that_can_be_none_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"link\.listen: can't listen on web\.\.example"):
        async with served(address="web..example"):
            raise AssertionError("it listens")


# -- nonsense -----------------------------------------------------------------------------------

WRONG_FIRST = {
    "garbage": b"\x00\xff\n",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "no hello": encode(1, Start(SESSION)),
    "a ping": encode(1, Ping()),
    "an answer": encode(1, WELCOME),
    "another type": b'{"id": 1, "message": {"type": "shell", "run": "id"}}\n',
    "a deep one": b'{"id": ' + b"[" * 60000 + b"\n",
    "no end": b"{" + b" " * (LINE_MAX + 1),
    "too long": b"{" + b" " * (LINE_MAX + 1) + b"\n",
    "not UTF-8": b'{"id": 1, "message": {"type": "\xc3\x28"}}\n',
}


@BOTH
@pytest.mark.parametrize("data", WRONG_FIRST.values(), ids=WRONG_FIRST)
async def test_who_opens_with_nonsense_is_dropped_and_nobody_else(
    data: bytes, security: Security
) -> None:
    async with served(security=security) as end, end.link() as other:
        await other.ask(HELLO)
        async with end.raw() as stream:
            await stream.send_all(data)
            assert await read_all(stream) == b""
        assert len(str((await end.until_logged("link.refused"))["error"])) < 1000
        assert await other.ask(Detach(SESSION)) == Done()
        assert not end.gone


WRONG_NEXT = {
    "garbage": b"\xff\n",
    "an answer": encode(2, Done()),
    "no session": b'{"id": 2, "message": {"type": "start", "session": "../x"}}\n',
    "the same again": encode(1, HELLO),
    "an old id": encode(0, Start(SESSION)),
    "too long": b" " * (LINE_MAX + 1),
}


@pytest.mark.parametrize("data", WRONG_NEXT.values(), ids=WRONG_NEXT)
async def test_a_peer_that_talks_nonsense_is_lost(data: bytes) -> None:
    async with served() as end, end.raw() as stream:
        await stream.send_all(hello_line())
        await read_line(stream)
        await stream.send_all(data)
        await read_all(stream)
        await end.until_logged("link.lost")
        (gone,) = end.gone
        assert isinstance(gone.lost, LinkProtocolError)
        assert end.events("link.lost")[0]["kind"] == "wrong"


async def test_a_request_that_is_replayed_is_not_performed_again() -> None:
    starts = 0

    async def answer(request: Request, peer: Peer) -> Reply:
        nonlocal starts
        starts += isinstance(request, Start)
        return await welcome(request, peer)

    async with served(answer) as end, end.raw() as stream:
        recorded = encode(2, Start(SESSION))
        await stream.send_all(hello_line() + recorded)
        while b'"id":2' not in await stream.receive_some():
            continue
        await stream.send_all(recorded)
        await read_all(stream)
        lost = await end.until_logged("link.lost")
        assert "request 2 came after 2" in lost["error"]
    assert starts == 1


async def test_a_whole_connection_that_is_replayed_gets_nothing() -> None:
    """What was recorded on the wire is no use: TLS makes new keys each time."""
    recorded = bytearray()

    async def record(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", end.port)
        async with server, trio.open_nursery() as nursery:

            async def backwards() -> None:
                async for data in server:
                    await client.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(backwards)
            async for data in client:
                recorded.extend(data)
                await server.send_all(data)
            nursery.cancel_scope.cancel()

    async with served() as end:
        async with (
            scripted(record) as port,
            open_link("127.0.0.1", port, SECURITY, timeout=5, ping_interval=1) as link,
        ):
            assert await link.ask(HELLO) == WELCOME
        await end.until_logged("link.lost")
        replay = await trio.open_tcp_stream("127.0.0.1", end.port)
        async with replay:
            await replay.send_all(recorded)
            await read_all(replay)
        await end.until_logged("link.refused")
        assert len(end.events("link.connected")) == 1


async def test_a_message_that_is_cut_off_is_not_performed() -> None:
    asked: list[Request] = []

    async def answer(request: Request, peer: Peer) -> Reply:
        asked.append(request)
        return await welcome(request, peer)

    async with served(answer) as end:
        for cut in (encode(2, Start(SESSION))[:-1], encode(2, Start(SESSION))[:-9]):
            async with end.raw() as stream:
                await stream.send_all(hello_line() + cut)
                await read_line(stream)
        await end.until_logged("link.lost", 2)
    assert asked == [HELLO, HELLO]


async def test_another_version_is_told_and_dropped() -> None:
    async with served() as end:
        async with end.raw() as stream:
            await stream.send_all(b'{"id":7,"message":{"type":"hello","version":3,"x":1}}\n')
            number, reply = decode_reply(await read_all(stream))
            assert number == 7
            assert isinstance(reply, Refusal)
            assert reply.kind == "version"
        async with end.link() as link:
            with pytest.raises(LinkRefused, match="install the same xencolo") as refused:
                await link.ask(Hello(version=3, uuid=HELLO.uuid, name="web", generation=1))
            assert refused.value.kind == "version"
            assert isinstance(await link.wait_closed(), LinkClosed)
        await end.until_logged("link.refused")


async def test_what_is_too_long_is_not_sent_and_the_link_goes_on() -> None:
    async with served() as end, end.link() as link:
        with pytest.raises(LinkProtocolError, match=f"at most {LINE_MAX}"):
            await link.ask(Hello(uuid=HELLO.uuid, name="x" * LINE_MAX, generation=1))
        assert await link.ask(HELLO) == WELCOME


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"?\n", "begins no message"),
        (b"{}\n", "is no message"),
        (encode(1, Done()), "where that is no answer"),
        (encode(2, WELCOME), "answers 2, which was not asked"),
        (encode(1, WELCOME) * 2, "answers 1, which was not asked"),
        (b"{" * (LINE_MAX + 1), "a line of over"),
    ],
)
async def test_a_server_that_talks_nonsense_is_lost(line: bytes, why: str) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        await read_line(stream)
        await stream.send_all(line)
        await trio.sleep_forever()

    async with (
        scripted(babble) as port,
        open_link("127.0.0.1", port, PLAIN, timeout=5, ping_interval=1) as link,
    ):
        with trio.move_on_after(5):
            try:
                await link.ask(HELLO)
            except LinkProtocolError as error:
                assert why in str(error)  # noqa: PT017 - the doubled welcome is an answer first
        lost = await link.wait_closed()
        assert isinstance(lost, LinkProtocolError)
        assert why in str(lost)


# -- too many -----------------------------------------------------------------------------------


@BOTH
async def test_a_flood_of_connections_keeps_nobody_out(security: Security) -> None:
    flooded = trio.Event()

    async def answer(request: Request, peer: Peer) -> Reply:
        if peer.hello.name == "early":
            await flooded.wait()
        return await welcome(request, peer)

    early = Hello(uuid=HELLO.uuid, name="early", generation=1)
    async with served(answer, security) as end, end.raw() as waiting:
        await waiting.send_all(hello_line(1, early))
        flood = [
            await trio.open_tcp_stream("127.0.0.1", end.port)
            for _ in range(listener.PENDING_MAX * 3)
        ]
        assert await end.is_well()
        for stream in flood[: listener.PENDING_MAX]:
            assert await read_all(stream) == b""
        for stream in flood:
            await trio.aclose_forcefully(stream)
        assert await end.is_well()
        flooded.set()
        assert decode_reply(await read_line(waiting)) == (1, WELCOME)
        # A flood does not fill the journal either.
        assert 1 <= len(end.events("link.refused")) <= 5


async def test_what_was_not_logged_of_a_flood_is_counted(clock: MockClock) -> None:
    async with served(timeout=5) as end:
        for burst in range(2):
            for _ in range(10):
                async with end.raw() as stream:
                    await stream.send_all(b"x\n")
                    await read_all(stream)
            await trio.sleep(2)
            assert len(end.events("link.refused")) == burst + 1
        assert [event["unlogged"] for event in end.events("link.refused")] == [0, 9]
    assert clock.current_time() >= 4


async def test_more_domains_than_fit_are_refused_until_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "PEERS_MAX", 2)
    async with served() as end, end.link() as first:
        await first.ask(HELLO)
        async with end.link() as second, end.link() as third:
            await second.ask(HELLO)
            with pytest.raises(LinkRefused) as refused:
                await third.ask(HELLO)
            assert refused.value.kind == "busy"
        await end.until_logged("link.lost")
        assert await end.is_well()


async def test_a_burst_of_connections_is_bounded_too() -> None:
    """All are there before the first is served."""
    async with served() as end:
        flood = []
        for _ in range(listener.PENDING_MAX * 3):
            stream = trio.socket.socket()
            await stream.bind(("127.0.0.1", 0))
            flood.append(stream)
        async with trio.open_nursery() as nursery:
            for stream in flood:
                nursery.start_soon(stream.connect, ("127.0.0.1", end.port))
        assert await end.is_well()
        open_now = 0
        for stream in flood:
            with trio.move_on_after(0.001) as waiting:
                assert await stream.recv(1) == b""
            open_now += waiting.cancelled_caught
            stream.close()
        assert open_now <= listener.PENDING_MAX


async def test_more_requests_than_fit_end_the_connection() -> None:
    async def never(_request: Request, _peer: Peer) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with served(never) as end, end.raw() as stream:
        more = (encode(n, Start(SESSION)) for n in range(2, listener.REQUESTS_MAX + 4))
        await stream.send_all(hello_line() + b"".join(more))
        assert await read_all(stream) == b""


# -- silence ------------------------------------------------------------------------------------


async def _nothing(_: trio.abc.Stream) -> None:
    return


async def _drip(stream: trio.abc.Stream) -> None:
    """A line that never ends, a byte a second."""
    with trio.move_on_after(60):
        while True:
            await stream.send_all(b"{")
            await trio.sleep(1)


@BOTH
@pytest.mark.parametrize("behave", [_nothing, _drip])
async def test_who_says_no_hello_is_dropped(
    behave: Callable[[trio.abc.Stream], Awaitable[None]], security: Security, clock: MockClock
) -> None:
    async with served(security=security, timeout=10) as end, end.raw() as stream:
        started = clock.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behave, stream)
            assert await read_all(stream) == b""
            nursery.cancel_scope.cancel()
        assert clock.current_time() - started == pytest.approx(10, abs=2)
        assert "no hello within 10 s" in (await end.until_logged("link.refused"))["error"]


async def test_who_never_ends_his_handshake_is_dropped(clock: MockClock) -> None:
    async with served(timeout=10) as end:
        async with await trio.open_tcp_stream("127.0.0.1", end.port) as stream:
            await stream.send_all(b"\x16\x03\x01")
            assert await read_all(stream) == b""
        assert 9 < clock.current_time() < 12


@BOTH
@pytest.mark.parametrize("behave", [_nothing, _drip])
async def test_a_peer_that_falls_silent_is_lost_and_its_request_cancelled(
    behave: Callable[[trio.abc.Stream], Awaitable[None]], security: Security, clock: MockClock
) -> None:
    cancelled = trio.Event()

    async def answer(request: Request, peer: Peer) -> Reply:
        if isinstance(request, Hello):
            return WELCOME
        try:
            await trio.sleep_forever()
        finally:
            assert not peer.closed.is_set()
            cancelled.set()
        raise AssertionError

    async with served(answer, security, timeout=10) as end, end.raw() as stream:
        await stream.send_all(hello_line() + encode(2, Start(SESSION)))
        await read_line(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behave, stream)
            await read_all(stream)
            nursery.cancel_scope.cancel()
        await cancelled.wait()
        await end.until_logged("link.lost")
        (gone,) = end.gone
        assert isinstance(gone.lost, LinkSilent)
        assert end.events("link.lost")[0]["kind"] == "silent"
    assert clock.current_time() == pytest.approx(10, abs=3)


@BOTH
async def test_a_server_that_falls_silent_is_lost(security: Security, clock: MockClock) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await read_line(stream)
        await stream.send_all(encode(1, WELCOME))
        await trio.sleep_forever()

    async with (
        scripted(silent, security) as port,
        open_link("127.0.0.1", port, security, timeout=10, ping_interval=2) as link,
    ):
        await link.ask(HELLO)
        with pytest.raises(LinkSilent, match=r"^127\S+ port \d+: no answer to ping within 10 s$"):
            await link.ask(Prepare(SESSION), timeout=3600)
        assert clock.current_time() == pytest.approx(12, abs=1)
        assert isinstance(await link.wait_closed(), LinkSilent)
        with pytest.raises(LinkSilent):
            await link.ask(Detach(SESSION))


async def test_a_server_that_does_not_read_is_lost(clock: MockClock) -> None:
    stream, _unread = trio.testing.lockstep_stream_pair()
    link = Link(stream, "there", timeout=10, ping_interval=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        with pytest.raises(LinkSilent, match="there: it did not read for 10 s"):
            await link.ask(HELLO, timeout=60)
    assert clock.current_time() == pytest.approx(10)


async def test_a_server_that_takes_connections_and_never_shakes_hands(clock: MockClock) -> None:
    async def stare(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with scripted(stare) as port:
        with pytest.raises(LinkUnreachable, match="did not answer within 5 s") as error:
            async with open_link("127.0.0.1", port, SECURITY, timeout=5, ping_interval=1):
                raise AssertionError("it connected")
    assert not isinstance(error.value, LinkUntrusted)
    assert clock.current_time() == pytest.approx(5, abs=1)


# -- ends ---------------------------------------------------------------------------------------


@BOTH
async def test_a_daemon_that_ends_ends_what_waits_for_it(security: Security) -> None:
    async def never(request: Request, _: Peer) -> Reply:
        if isinstance(request, Hello):
            return WELCOME
        end.scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    async with served(never, security) as end, end.link() as link:
        await link.ask(HELLO)
        with pytest.raises(LinkClosed):
            await link.ask(Start(SESSION))
        assert isinstance(await link.wait_closed(), LinkClosed)
        assert len(end.gone) == 1


async def test_a_reset_connection_is_closed_too() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await read_line(stream)
        linger = struct.pack("ii", 1, 0)
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)

    async with (
        scripted(reset) as port,
        open_link("127.0.0.1", port, PLAIN, timeout=5, ping_interval=1) as link,
    ):
        with pytest.raises(LinkClosed, match="reset by peer"):
            await link.ask(HELLO)


async def test_the_handler_is_told_of_a_peer_that_did_not_wait_for_its_welcome() -> None:
    asked = trio.Event()

    async def never(_request: Request, _peer: Peer) -> Reply:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    async with served(never) as end:
        async with end.raw() as stream:
            await stream.send_all(hello_line())
            await asked.wait()
        with trio.fail_after(rig.TIMEOUT):
            while not end.gone:
                await trio.sleep(0.01)
        assert isinstance(end.gone[0].lost, LinkClosed)
        assert not end.events("link.lost")
        assert not end.events("link.refused")


async def test_the_handler_can_end_a_peer() -> None:
    async def answer(_: Request, peer: Peer) -> Reply:
        peer.close("another one came")
        return WELCOME

    async with served(answer) as end, end.link() as link:
        with pytest.raises(LinkClosed):
            await link.ask(HELLO)


async def test_what_the_body_raises_comes_out_bare() -> None:
    async with served() as end:
        with pytest.raises(DeviceError, match="mine"):
            async with end.link():
                raise DeviceError("mine")
        await end.until_logged("link.refused")


async def test_being_cancelled_is_not_swallowed_and_leaves_no_half_line() -> None:
    asked: list[Request] = []

    async def answer(request: Request, peer: Peer) -> Reply:
        asked.append(request)
        return await welcome(request, peer)

    async with served(answer) as end, end.link() as link:
        await link.ask(HELLO)
        for checkpoints in range(20):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.ask, Checkpoint(SESSION, checkpoints))
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert await link.ask(Detach(SESSION)) == Done()
    numbers = [request.number for request in asked if isinstance(request, Checkpoint)]
    assert numbers == sorted(set(numbers))


async def test_a_cancelled_connection_closes_at_once(clock: MockClock) -> None:
    async with served() as end:
        with trio.CancelScope() as scope:
            async with end.link() as link:
                await link.ask(HELLO)
                scope.cancel()
                await link.wait_closed()
        assert scope.cancelled_caught
        await end.until_logged("link.lost")
    assert clock.current_time() < 1


async def test_no_descriptor_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a directory of the kernel's

    before = count()
    for security in (SECURITY, PLAIN, secured_by(STRANGER), believing(None)):
        async with served() as end:
            for _ in range(3):
                try:
                    async with end.link(security) as link:
                        await link.ask(HELLO)
                except LinkError:
                    assert security is not SECURITY
    assert count() == before


# -- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "warned"), [(89, [88]), (91, [])])
async def test_keys_that_end_soon_are_warned_of_each_day(
    days: int, warned: list[int], clock: MockClock
) -> None:
    expires = datetime.now(UTC) + timedelta(days=days)
    security = SECURITY._replace(keys=KEYS._replace(expires=expires))
    async with served(security=security) as end:
        await trio.sleep(1)
        assert [event["days"] for event in end.events("link.keys_expiring")] == warned
        await trio.sleep(86400 * 2)
        assert len(end.events("link.keys_expiring")) == 3 * len(warned)
    assert clock.current_time() > 86400
