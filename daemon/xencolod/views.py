"""What the nodes say of whole domains: read in three round trips, however many domains there are."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

from xencolo import requests
from xencolo.command import command_path
from xencolo.device import Device, check_trust
from xencolo.disk import Role
from xencolo.errors import NodeError
from xencolo.paths import (
    DevicePaths,
    colo_path,
    domain_path,
    libxl_domain_path,
)
from xencolo.plan import Domain, uuid_of
from xencolo.requests import Answer, absent_as_none
from xencolo.status import RECORD, STATE, parse_role, role_path
from xencolod.asks import Reads
from xencolod.devices import listed, read_devices

#: libxl's names of the device models that it starts itself.
_LIBXL_DEVICE_MODELS = {b"qemu_xen", b"qemu_xen_traditional"}

#: What xl block-attach gives dom0 itself, Xen's init scripts start a QEMU for.
_OWN = (
    "xencolod runs in this domain, which has no device model: the host's own QEMU serves its disks"
)


class _Nodes(NamedTuple):
    """Paths of what is read of one domain, in the order of the answers."""

    home: str
    name: str
    vm: str
    role: str
    state: str
    device_model_pid: str
    dm_version: str
    type: str
    record: str
    command: str
    static_max: str
    videoram: str

    @classmethod
    def of(cls, domid: int) -> "_Nodes":
        home, libxl = domain_path(domid), libxl_domain_path(domid)
        return cls(
            home,
            f"{home}/name",
            f"{home}/vm",
            role_path(domid),
            f"{colo_path(domid)}/{STATE}",
            f"{home}/image/device-model-pid",
            f"{libxl}/dm-version",
            f"{libxl}/type",
            f"{colo_path(domid)}/{RECORD}",
            command_path(domid),
            f"{home}/memory/static-max",
            f"{home}/memory/videoram",
        )


def domain_requests(domid: int) -> list[requests.Request]:
    """Return what is read of a domain beside its devices."""
    nodes = _Nodes.of(domid)
    return [
        *map(requests.read, nodes),
        requests.get_permissions(nodes.role),
        requests.get_permissions(nodes.command),
    ]


_COUNT = len(_Nodes._fields) + 2


async def read_domains(
    to: Reads,
    domids: Sequence[int],
    own_domid: int,
    trusted: frozenset[int],
    ours: Mapping[int, int | None],
    *,
    xen: bool,
) -> dict[int, Domain]:
    """Return what the nodes say of these domains now.

    :param ours: pid of the QEMU that the daemon itself runs for a domain.
    :param xen: whether libxl may be the one that runs device models here.
    :raises XenstoreError: xenstored failed.
    """
    # Which disks there are comes first: one that comes with a role is never seen without it.
    places = await listed(to, own_domid, domids)
    heads = _post_heads(to, domids)
    devices: dict[int, dict[int, Device]] = {domid: {} for domid in domids}
    for place, device in zip(places, await read_devices(to, places, trusted), strict=True):
        if device:
            devices[place.domid][place.devid] = device
    return {
        domid: _domain(domid, own_domid, head, devices[domid], trusted, ours, xen=xen)
        for domid, head in (await heads()).items()
    }


async def read_heads(
    to: Reads, domids: Sequence[int], own_domid: int, trusted: frozenset[int]
) -> tuple[dict[int, Domain], list[DevicePaths]]:
    """Return what the nodes say of these domains, their devices left out, and which these are.

    :return: the devices as if all were qdisks here.
    :raises XenstoreError: xenstored failed.
    """
    places = await listed(to, own_domid, domids)
    domains = {
        domid: _domain(domid, own_domid, head, {}, trusted, {}, xen=False)
        for domid, head in (await _post_heads(to, domids)()).items()
    }
    return domains, places


def _post_heads(
    to: Reads, domids: Sequence[int]
) -> Callable[[], Awaitable[dict[int, list[Answer]]]]:
    answers = to.post([request for domid in domids for request in domain_requests(domid)])

    async def heads() -> dict[int, list[Answer]]:
        said = iter(await answers())
        return {domid: list(islice(said, _COUNT)) for domid in domids}

    return heads


def _domain(
    domid: int,
    own_domid: int,
    head: Sequence[Answer],
    devices: Mapping[int, Device],
    trusted: frozenset[int],
    ours: Mapping[int, int | None],
    *,
    xen: bool,
) -> Domain:
    *nodes, role_permissions, command_permissions = head
    values = dict(zip(_Nodes._fields, map(absent_as_none, nodes), strict=True))
    role, role_error = _role(domid, values["role"], role_permissions, trusted)
    pid = _number(values["device_model_pid"])
    foreign, gone = _device_model(domid, pid, ours)
    if domid == own_domid:
        foreign = _OWN
    if not foreign and not gone and xen and values["dm_version"] in _LIBXL_DEVICE_MODELS:
        foreign = "libxl runs the domain's device model (dm-version), as for every domain of xl's"
    return Domain(
        domid=domid,
        exists=values["home"] is not None,
        name=(values["name"] or b"").decode("utf-8", "replace") or f"domain-{domid}",
        uuid=uuid_of(values["vm"]),
        role=role,
        role_error=role_error,
        foreign=foreign,
        gone_pid=gone,
        devices=devices,
        type=_text(values["type"]),
        record=_text(values["record"]),
        command=values["command"] or None,
        command_error=_distrusted(
            command_path(domid),
            values["command"],
            command_permissions,
            trusted,
        ),
        memory=_memory(values["static_max"], values["videoram"]),
        published=values["state"] is not None,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _distrusted(
    path: str, value: bytes | None, permissions: Answer, trusted: frozenset[int]
) -> str | None:
    if not value:
        return None
    try:
        check_trust(path, absent_as_none(permissions), trusted)
    except NodeError as error:
        return str(error)
    return None


def _role(
    domid: int, value: bytes | None, permissions: Answer, trusted: frozenset[int]
) -> tuple[Role | None, str | None]:
    if value is None:
        return None, None
    try:
        check_trust(role_path(domid), absent_as_none(permissions), trusted)
        return parse_role(domid, value), None
    except NodeError as error:
        return None, str(error)


def _number(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() and len(value) <= 12 else None


def _memory(static_max: bytes | None, videoram: bytes | None) -> int | None:
    """Return what libxl gives QEMU as ``-m``, in MiB: the domain's memory without the video memory."""
    kibibytes = (_number(static_max) or 0) - (_number(videoram) or 0)
    return -(-kibibytes // 1024) if kibibytes > 0 else None


def _device_model(
    domid: int, pid: int | None, ours: Mapping[int, int | None]
) -> tuple[str | None, int | None]:
    """Return who else runs the device model, in words, and the pid of one that ran and is dead."""
    if pid is None or pid == ours.get(domid):
        return None, None
    if pid in ours.values():
        return None, pid  # the pid was used again, for another domain's
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None, pid
    if b"qemu" not in os.path.basename(argv[0]):  # noqa: PTH119 - bytes
        return None, pid  # the pid was used again
    for_domid = [after for word, after in pairwise(argv) if word == b"-xen-domid"]
    if for_domid not in ([], [str(domid).encode()]):
        return None, pid
    return f"{argv[0].decode('utf-8', 'replace')}, pid {pid}, runs the domain's device model", None
