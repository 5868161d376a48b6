"""Domains in xenstore: the role, and what a toolstack's create and destroy leave there."""

import re
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from xencolo import requests
from xencolo.device import Device
from xencolo.disk import Role
from xencolo.errors import DomainError, PathError
from xencolo.paths import (
    KINDS,
    backend_root,
    device_model_path,
    domain_path,
    libxl_domain_path,
    parse_backend,
)
from xencolo.plan import Domain
from xencolo.status import RESTORED_ROLE, role_path, role_requests
from xencolo.wire import Op, Permission
from xencolod.asks import Asks, demand, directory, read
from xencolod.devices import (
    domids,
    locate,
    read_devices,
    remove_with_empty_parents,
    trusted_domids,
)
from xencolod.transaction import Transaction
from xencolod.views import read_heads
from xencolod.xenstore import Client

#: The commands do what a toolstack does, and that lives in dom0.
TOOLSTACK_DOMID = 0

_VM = re.compile(r"/vm/[0-9A-Za-z-]+", re.ASCII)


# -- reading ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A domain and all its block devices, whoever serves them.

    :ivar role: the role that it should have; None when ``role_error`` says what is wrong with it.
    """

    domid: int
    name: str
    role: Role | None
    role_error: str | None
    devices: tuple[Device, ...]


async def survey(client: Client, domid: int | None = None) -> list[Found]:
    """Read one domain, or all that libxl knows or that have a disk, as they stand in xenstore now.

    :raises DomainError: the one that was asked for does not exist.
    :raises XenstoreError: xenstored failed; what is wrong with a disk or role is in the result.
    """
    trusted = trusted_domids(TOOLSTACK_DOMID)
    numbers = await domids(client, TOOLSTACK_DOMID) if domid is None else [domid]
    heads, here = await read_heads(client, numbers, TOOLSTACK_DOMID, trusted)
    devices: dict[int, list[Device]] = {}
    for device in await read_devices(client, await locate(client, here), trusted):
        if device:
            devices.setdefault(device.paths.domid, []).append(device)
    if domid is not None and not heads[domid].exists and domid not in devices:
        raise _absent(domid)
    return [_found(heads[number], devices.get(number, [])) for number in numbers]


def _found(domain: Domain, devices: Sequence[Device]) -> Found:
    role = domain.role
    if role is None and domain.role_error is None:
        # As a domain that was created and not restored.
        role = Role.PRIMARY if any(device.is_colo for device in devices) else Role.NONE
    return Found(domain.domid, domain.name, role, domain.role_error, tuple(devices))


# -- the role -----------------------------------------------------------------------------------


async def set_role(client: Client, domid: int, role: Role | None) -> None:
    """Write the role node; None removes it, so that what creating the domain would do applies.

    :raises DomainError: there is no such domain.
    :raises XenstoreError: xenstored failed; nothing was written.
    """
    node = role_path(domid)

    async def body(transaction: Transaction) -> None:
        await require(transaction, domid)
        changes = role_requests(domid, role) if role else [requests.rm(node)]
        await demand(transaction, changes, absent_ok=[Op.RM])

    await client.transaction(body)


async def restore(client: Client, domid: int, stream: str) -> None:
    """Set the role that restoring a domain leaves: only a COLO stream makes a secondary.

    :param stream: libxl's checkpointed stream: ``none``, ``remus`` or ``colo``.
    :raises DomainError: there is no such domain.
    :raises XenstoreError: xenstored failed; nothing was written.
    """
    await set_role(client, domid, RESTORED_ROLE[stream])


async def require(to: Asks, domid: int) -> None:
    """Check that there is such a domain.

    :raises DomainError: there is none.
    """
    if await read(to, domain_path(domid)) is None:
        raise _absent(domid)


def _absent(domid: int) -> DomainError:
    return DomainError(f"domain {domid} does not exist: {domain_path(domid)} is absent")


# -- for a store without Xen --------------------------------------------------------------------


async def create(
    client: Client, domid: int, name: str, *, xen: bool, identity: str | None = None
) -> None:
    """Write what of libxl's new HVM guest a block device needs, in one transaction.

    :param xen: whether this is a Xen dom0, where only the toolstack makes domains.
    :param identity: the uuid, the same on all hosts that a disk of it is replicated between; None: a
        new one.
    :raises DomainError: it exists already, the name or the uuid can't be, or this is Xen.
    :raises XenstoreError: xenstored failed; nothing was written.
    """
    if xen:
        raise DomainError(f"domain {domid} is Xen's to create here: use xl create")
    if not name or not name.isprintable():
        raise DomainError(f"name {name[:40]!r}: printable characters are needed")
    home, libxl = domain_path(domid), libxl_domain_path(domid)
    vm = f"/vm/{_uuid(identity)}"
    guest_reads = [Permission("n", TOOLSTACK_DOMID), Permission("r", domid)]

    async def body(transaction: Transaction) -> None:
        for path in (home, libxl):
            if await read(transaction, path) is not None:
                raise DomainError(f"domain {domid} already exists: {path} is there")
        batch = [
            requests.mkdir(home),
            requests.set_permissions(home, guest_reads),
            requests.mkdir(vm),
            requests.set_permissions(vm, guest_reads),
            requests.mkdir(libxl),
            requests.set_permissions(libxl, [Permission("n", TOOLSTACK_DOMID)]),
            requests.write(f"{home}/vm", vm),
            requests.write(f"{home}/name", name),
            requests.write(f"{home}/domid", str(domid)),
            requests.write(f"{vm}/uuid", vm.removeprefix("/vm/")),
            requests.write(f"{vm}/name", name),
            requests.write(f"{libxl}/type", "hvm"),
        ]
        await demand(transaction, batch)

    await client.transaction(body)


def _uuid(identity: str | None) -> str:
    try:
        return str(uuid.UUID(identity) if identity else uuid.uuid4())
    except ValueError:
        shown = identity[:40] if identity else identity
        raise DomainError(f"uuid {shown!r}: 32 hexadecimal digits are needed") from None


async def destroy(client: Client, domid: int, *, xen: bool) -> None:
    """Remove what libxl's destroy removes, in one transaction.

    :param xen: whether this is a Xen dom0, where only the toolstack unmakes domains.
    :raises DomainError: there is no such domain, it is dom0, or this is Xen.
    :raises XenstoreError: xenstored failed; nothing was removed.
    """
    if xen:
        raise DomainError(f"domain {domid} is Xen's to destroy here: use xl destroy")
    if domid == TOOLSTACK_DOMID:
        raise DomainError("domain 0 can't be destroyed: it holds the backends of all others")

    async def body(transaction: Transaction) -> None:
        home, libxl = domain_path(domid), libxl_domain_path(domid)
        if await read(transaction, libxl) is None:
            await require(transaction, domid)
        vm = (await read(transaction, f"{home}/vm") or b"").decode("ascii", "replace")
        paths = [home, libxl, device_model_path(domid), *([vm] if _VM.fullmatch(vm) else [])]
        served = [
            (place, 1)
            for backend_domid in await _backend_domids(transaction, domid)
            for kind in KINDS
            for place in (
                f"{backend_root(backend_domid)}/{kind}/{domid}",
                f"{domain_path(backend_domid)}/error/backend/{kind}/{domid}",
            )
        ]
        await remove_with_empty_parents(transaction, served)
        await demand(transaction, [requests.rm(path) for path in paths], absent_ok=[Op.RM])

    await client.transaction(body)


async def _backend_domids(to: Asks, domid: int) -> set[int]:
    """Return the domains that serve a domain's disks, and dom0."""
    found = {TOOLSTACK_DOMID}
    device_root = f"{libxl_domain_path(domid)}/device/vbd"
    for devid in await directory(to, device_root):
        value = await read(to, f"{device_root}/{devid}/backend")
        try:
            found.add(parse_backend((value or b"").decode("ascii", "replace")).backend_domid)
        except PathError:
            continue  # a broken node has no backend to remove
    return found
