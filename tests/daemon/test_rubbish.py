"""A xenstored that answers rubbish: it is the error of one disk or one domain, and the rest goes on."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.daemon.reconciler_rig import Watched, config_in, reconciling
from xencolo import requests
from xencolo.disk import Role
from xencolo.requests import Request
from xencolo.store import Session, Store
from xencolo.wire import Op, Packet, strings
from xencolod import domains

LX5 = "/libxl/5/device/vbd/51712"
LISTED = (requests.directory("/libxl/5/device/vbd"), b"51712\0")

Rubbish = Mapping[Request, bytes]


class Rubbishy(Store):
    """A store that answers some requests with other bytes than it should."""

    def __init__(self, rubbish: Rubbish) -> None:
        super().__init__()
        self._rubbish = rubbish

    def handle(self, session: Session, packet: Packet) -> list[tuple[Session, Packet]]:
        *events, (who, reply) = super().handle(session, packet)
        spoiled = self._rubbish.get(Request(packet.op, packet.payload))
        if spoiled is not None:
            reply = Packet(packet.op, packet.rq_id, packet.tx_id, spoiled)
        return [*events, (who, reply)]


def rubbish_from(directory: Path, rubbish: Rubbish) -> AbstractAsyncContextManager[Watched]:
    return reconciling(directory, Rubbishy(rubbish), config_in(directory))


def perms(path: str) -> Request:
    return requests.get_permissions(path)


PERMISSIONS = {
    "of the copy": LX5,
    "of a node in it": f"{LX5}/params",
    "of the backend": "/local/domain/0/backend/qdisk/5/51712",
}


@pytest.mark.parametrize("path", PERMISSIONS.values(), ids=PERMISSIONS)
@pytest.mark.parametrize("payload", [b"", b"\xff\0\0", b"q5\0"])
async def test_permissions_that_are_none(path: str, payload: bytes, tmp_path: Path) -> None:
    async with rubbish_from(tmp_path, {perms(path): payload}) as watched:
        await watched.until(lambda: watched.events("daemon.ready"))
        (error,) = watched.events("device.error")
        assert (error["domid"], error["path"], error["kind"]) == (5, path, "wrong")
        assert "not a list like n0, r5" in error["error"]
        assert [event["domid"] for event in watched.events("device.found")] == [6]


async def test_permissions_of_the_role_that_are_none(tmp_path: Path) -> None:
    role = "/libxl/5/colo/role"
    async with rubbish_from(tmp_path, {perms(role): b"q5\0"}) as watched:
        await domains.set_role(watched.client, 5, Role.PRIMARY)
        await watched.until(lambda: watched.events("domain.role_error"))
        (error,) = watched.events("domain.role_error")
        assert (error["domid"], error["path"]) == (5, role)
        assert "not a list like n0, r5" in error["error"]
        await watched.published(5, b"waiting")
        assert {event["kind"] for event in watched.events("device.error")} == {"image"}


#: Names that no device and no domain has; the numbers among them are as they should be.
NAMES = [b"00", b"051712", b"9" * 40, b"2147483648", b"-1", b"", b"\xb2", b"\xff\xfe", b"xvda"]


@pytest.mark.parametrize(
    ("listing", "known"),
    [
        (requests.directory("/libxl/5/device/vbd"), b"51712"),
        (requests.directory("/local/domain/0/backend/qdisk/5"), b"51712"),
        (requests.directory("/libxl"), b"5"),
        (requests.directory("/local/domain/0/backend/qdisk"), b"6"),
    ],
    ids=lambda value: value.path if isinstance(value, Request) else "",
)
async def test_names_that_are_no_numbers(listing: Request, known: bytes, tmp_path: Path) -> None:
    async with rubbish_from(tmp_path, {listing: strings(*NAMES, known)}) as watched:
        await watched.until(lambda: watched.events("daemon.ready"))
        assert {event["domid"] for event in watched.events("device.found")} == {5, 6}
        assert not watched.events("device.error")
        assert not watched.events("xenstore.failed")


async def test_a_listing_without_its_end(tmp_path: Path) -> None:
    cut = {requests.directory("/libxl/5/device/vbd"): b"51712", LISTED[0]: b"51712"}
    async with rubbish_from(tmp_path, cut) as watched:
        await watched.until(lambda: watched.events("daemon.ready"))
        assert {event["domid"] for event in watched.events("device.found")} == {5, 6}


async def test_a_transaction_id_that_is_no_number_is_tried_again(tmp_path: Path) -> None:
    start = Request(Op.TRANSACTION_START, b"\0")
    rubbish: dict[Request, bytes] = {}
    async with rubbish_from(tmp_path, rubbish) as watched:
        await watched.until(lambda: watched.events("daemon.ready"))
        await domains.set_role(watched.client, 5, Role.NONE)
        rubbish[start] = b"soon\0"
        await watched.until(lambda: watched.events("xenstore.failed"))
        assert "transaction id" in watched.events("xenstore.failed")[0]["error"]
        rubbish.clear()
        await watched.published(5, b"waiting")
