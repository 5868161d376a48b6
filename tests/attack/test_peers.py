"""Peers that attack a daemon with a replicated domain: refused, logged, and nothing has changed."""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.daemon.link_rig import THEIRS, read_all
from tests.e2e.host import XVDA, Images, until
from tests.e2e.site import DOMID, MIB, UUID, Member, site
from tests.rigs.servers import DEADLINE
from xencolo.errors import LinkClosed, LinkRefused, LinkUntrusted
from xencolo.link import Checkpoint, Detach, DiskInfo, Hello, Prepare, Start, Welcome, encode
from xencolod import keys
from xencolod.link import Link, open_link
from xencolod.security import Security, secured_by

OTHER = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
SESSION, ANOTHER = "0123456789abcdef", "fedcba9876543210"
HELLO = Hello(
    uuid=UUID,
    name="web",
    generation=1,
    disks=(DiskInfo("xvda", "web-xvda", MIB), DiskInfo("sda", "web-sda", MIB)),
)
LAST = (1 << 63) - 1  # the largest generation that a message can hold


def changed(**fields: Any) -> Hello:
    """Return the hello with something else in it."""
    return msgspec.structs.replace(HELLO, **fields)


class Victim:
    """A host with the replicated domain, and all that an attack could change."""

    def __init__(self, member: Member, held: keys.Keys) -> None:
        self.member = member
        self.keys = held

    @asynccontextmanager
    async def link(self, security: Security | None = None) -> AsyncIterator[Link]:
        """Connect as another host's daemon does, with the right keys by default."""
        address, port = self.member.address, self.member.link_port
        secured = security or secured_by(self.keys)
        async with open_link(address, port, secured, timeout=DEADLINE, ping_interval=2) as link:
            yield link

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[trio.abc.Stream]:
        """Connect with the right keys, to say wrong things."""
        plain = await trio.open_tcp_stream(self.member.address, self.member.link_port)
        context = secured_by(self.keys).client
        assert context
        stream = trio.SSLStream(plain, context, server_hostname=keys.HOSTNAME)
        await stream.do_handshake()
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    def is_(self) -> tuple[Any, ...]:
        """Return all that tells how the domain is here."""
        member = self.member
        records = Path(member.directory, "state")
        published = member.store.tree(f"/libxl/{DOMID}/colo")
        for told in ("peer", "error", "session"):  # who speaks, spoke last, and has prepared what
            published.pop(f"/libxl/{DOMID}/colo/{told}", None)
        images = [Path(disk.image).read_bytes() for disk in member.disks]
        record = {path.name: path.read_bytes() for path in records.iterdir()}
        return published, record, images, member.qemus()


def victim(member: Member, role: str | None, state: str) -> Victim:
    """Start a host, that has keys, with its domain in a state."""
    held = keys.make(member.directory / "keys.pem")
    link = {"unencrypted_and_unauthenticated": False, "keys": str(member.directory / "keys.pem")}
    member.set(link=link)
    member.start()
    member.add(role)
    member.is_(state)
    member.event("link.listening", encrypted=True)
    return Victim(member, held)


@pytest.fixture
def member(tmp_path: Path, images: Images) -> Iterator[Member]:
    with site(tmp_path, images, 1) as (only,):
        yield only


@pytest.fixture
def secondary(member: Member) -> Victim:
    return victim(member, "secondary", "listening")


# -- who has no keys ----------------------------------------------------------------------------


async def test_who_does_not_hold_the_keys_gets_nothing_and_is_logged(secondary: Victim) -> None:
    before = secondary.is_()
    no_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    no_certificate.load_verify_locations(cadata=secondary.keys.authority.decode())
    theirs = secured_by(THEIRS.keys())
    assert theirs.client
    theirs.client.load_verify_locations(cadata=secondary.keys.authority.decode())
    for context in (no_certificate, theirs.client):
        with pytest.raises((LinkUntrusted, LinkClosed)):
            async with secondary.link(Security(None, context, None)) as link:
                await link.ask(HELLO)
    plain = await trio.open_tcp_stream(secondary.member.address, secondary.member.link_port)
    async with plain:
        await plain.send_all(encode(1, HELLO))
        assert b"welcome" not in await read_all(plain)
    until(lambda: secondary.member.events("link.refused"), "it is logged")
    said = secondary.member.events("link.refused")
    assert "certificate" in said[0]["error"]
    assert not secondary.member.events("link.connected")
    assert secondary.is_() == before


async def test_a_flood_keeps_no_primary_out(secondary: Victim) -> None:
    """300 connections that say nothing, and as many that say rubbish."""
    member, before = secondary.member, secondary.is_()
    with ExitStack() as stack:
        for number in range(600):
            one = stack.enter_context(socket.create_connection((member.address, member.link_port)))
            if number % 2:
                one.sendall(b"\x16\x03\x01\x00\x05rubbish" * 20)
        with trio.fail_after(DEADLINE):
            async with secondary.link() as link:
                assert isinstance(await link.ask(HELLO), Welcome)
    said = member.events("link.refused")
    assert 0 < len(said) < 60
    assert secondary.is_() == before


# -- who holds the keys, and has nothing to do with the domain ----------------------------------


OF_ANOTHER: dict[str, tuple[Hello, str, str]] = {
    "another domain": (changed(uuid=OTHER), "domain", "no COLO domain with uuid"),
    "no disk": (
        changed(disks=()),
        "disks",
        "the exports are web-sda, web-xvda on the secondary, and none on the",
    ),
    "one of two": (changed(disks=HELLO.disks[:1]), "disks", "give the disks the same colo-export"),
    "other disks": (changed(disks=(DiskInfo("xvda", "passwd", MIB),)), "disks", "the exports are"),
    "longer": (
        changed(disks=(HELLO.disks[0], DiskInfo("sda", "web-sda", MIB + 1))),
        "disks",
        "make them equal",
    ),
    "older": (changed(generation=0), "generation", "the domain is of generation 1 there"),
}


async def test_a_hello_of_a_domain_that_is_another(secondary: Victim) -> None:
    before = secondary.is_()
    for hello, kind, words in OF_ANOTHER.values():
        async with secondary.link() as link:
            with pytest.raises(LinkRefused, match=words) as refused:
                await link.ask(hello)
            assert refused.value.kind == kind
            for asked in (
                Prepare(SESSION),
                Start(SESSION),
                Checkpoint(SESSION, 1),
                Detach(SESSION),
            ):
                with pytest.raises(LinkRefused, match="no hello of this connection was welcomed"):
                    await link.ask(asked)
    assert not secondary.member.events("link.connected")
    assert secondary.is_() == before


async def test_a_primary_that_is_no_secondary_serves_nobody(member: Member) -> None:
    primary = victim(member, None, "standalone")
    before = primary.is_()
    async with primary.link() as link:
        for hello in (HELLO, changed(generation=0), changed(disks=())):
            with pytest.raises(LinkRefused):
                await link.ask(hello)
    assert primary.is_() == before


# -- who holds the keys, and goes out of turn ---------------------------------------------------


async def test_what_is_asked_out_of_turn_is_refused(secondary: Victim) -> None:
    before = secondary.is_()
    async with secondary.link() as link:
        welcome = await link.ask(HELLO)
        assert isinstance(welcome, Welcome)
        assert welcome.encrypted
        for request in (Start(SESSION), Checkpoint(SESSION, 1), Detach(SESSION)):
            with pytest.raises(LinkRefused, match=f"not in session {SESSION} but in none"):
                await link.ask(request)
        with pytest.raises(LinkRefused, match="hello was said on this connection"):
            await link.ask(changed(uuid=OTHER))
    secondary.member.event("link.lost", uuid=UUID, kind="closed")
    assert secondary.is_() == before


async def test_another_session_than_the_one_that_was_prepared(secondary: Victim) -> None:
    async with secondary.link() as link:
        await link.ask(HELLO)
        await link.ask(Prepare(SESSION))
        before = secondary.is_()
        for request in (Start(ANOTHER), Checkpoint(ANOTHER, 1), Detach(ANOTHER)):
            with pytest.raises(LinkRefused, match=f"not in session {ANOTHER} but {SESSION}"):
                await link.ask(request)
        with pytest.raises(LinkRefused):  # prepared, and not started
            await link.ask(Checkpoint(SESSION, 1))
        assert secondary.is_() == before


async def test_a_second_connection_takes_the_first_ones_place(secondary: Victim) -> None:
    """As when a primary's daemon was killed: what the first one asks then has no effect."""
    async with secondary.link() as first, secondary.link() as second:
        await first.ask(HELLO)
        await first.ask(Prepare(SESSION))
        await second.ask(HELLO)
        before = secondary.is_()
        with pytest.raises((LinkClosed, LinkRefused)):
            await first.ask(Start(SESSION))
        assert secondary.is_() == before
    lost = secondary.member.event("link.lost", uuid=UUID)
    assert "another connection has spoken for this domain" in lost["error"]


RUBBISH: tuple[tuple[bytes, str], ...] = (
    (b'{"id":2,"message":{"type":"reboot"}}\n', "wrong"),
    (encode(2, Prepare(SESSION))[:-9], "closed"),
    (encode(1, Prepare(SESSION)), "wrong"),
    (encode(2, Prepare("x; quit")), "wrong"),
    (encode(2, Prepare("../../../etc")), "wrong"),
    (b'{"id":2,"message":{"type":"checkpoint","session":"%s","number":1e99}}\n', "wrong"),
    (b"[" * 60000 + b"\n", "wrong"),
    (b"x" * (1 << 17), "wrong"),
)


async def test_rubbish_of_a_peer_ends_its_connection_alone(secondary: Victim) -> None:
    before = secondary.is_()
    for data, kind in RUBBISH:
        mark = secondary.member.mark()
        async with secondary.raw() as stream:
            await stream.send_all(encode(1, HELLO))
            assert b"welcome" in await stream.receive_some()
            await stream.send_all(data)
            if kind == "wrong":
                await read_all(stream)
        lost = secondary.member.event("link.lost", since=mark, uuid=UUID)
        assert lost["kind"] == kind
        assert json.dumps(lost).isprintable()
    async with secondary.link() as link:
        assert isinstance(await link.ask(HELLO), Welcome)
    assert secondary.is_() == before


async def test_a_recorded_connection_says_nothing_when_it_is_played_again(
    secondary: Victim,
) -> None:
    """What a primary's daemon sent is recorded on the wire and sent again, whole."""
    recorded = bytearray()
    member = secondary.member

    async def relay(here: trio.SocketStream) -> None:
        there = await trio.open_tcp_stream(member.address, member.link_port)

        async def forward() -> None:
            async for data in here:
                recorded.extend(data)
                await there.send_all(data)

        async with there, trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            async for data in there:
                await here.send_all(data)
            nursery.cancel_scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, relay, [listener])
        port = listener.socket.getsockname()[1]
        security = secured_by(secondary.keys)
        async with open_link("127.0.0.1", port, security, timeout=9, ping_interval=2) as link:
            await link.ask(HELLO)
            await link.ask(Prepare(SESSION))
        nursery.cancel_scope.cancel()
    member.event("link.lost", uuid=UUID)
    until(lambda: member.store.read(f"/libxl/{DOMID}/colo/error"), "that it has gone is published")
    before, count = secondary.is_(), len(member.events("link.connected"))
    async with await trio.open_tcp_stream(member.address, member.link_port) as stream:
        await stream.send_all(recorded)
        await read_all(stream)
    until(lambda: member.events("link.refused"), "it is logged")
    assert len(member.events("link.connected")) == count
    assert secondary.is_() == before


# -- what who holds the keys can do -------------------------------------------------------------


async def test_a_forged_generation_stops_a_primary_and_never_its_guest(member: Member) -> None:
    """SECURITY.md says it: the keys are all there is between the hosts."""
    primary = victim(member, None, "standalone")
    pids = member.qemus()
    member.guest.write(XVDA, 0x11, "0", "64k")
    async with primary.link() as link:
        with pytest.raises(LinkRefused, match="a primary there too"):
            await link.ask(changed(generation=LAST))
    said = member.event("replication.superseded", generation=1, other=LAST)
    member.is_("failed")
    words, path = f"another host is the primary of generation {LAST}", f"/libxl/{DOMID}/colo/error"
    until(lambda: words in (member.store.read(path) or ""), words)
    assert said["domid"] == DOMID
    assert member.qemus() == pids
    assert member.guest.holds(XVDA, 0x11, "0", "64k")
