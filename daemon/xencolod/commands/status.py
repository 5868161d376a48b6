"""``xencolo status``: what should be, what is, and what is wrong."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import re
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from xencolod.commands.common import DOMID_OR_ALL, JSON, examples, run
from xencolod.commands.disk import vdev_of
from xencolod.commands.output import (
    duration,
    line,
    message,
    percent,
    print_json,
    print_json_line,
    print_table,
    resync_bar,
    rich_table,
    warn,
)

if TYPE_CHECKING:
    from rich.table import Table

    from xencolo.status import ReplicationStatus
    from xencolod.domains import Found
    from xencolod.watch import Watch
    from xencolod.xenstore import Client


class Row(NamedTuple):
    """A line about a domain, or with ``vdev`` about one of its disks."""

    domid: int
    name: str
    vdev: str | None = None
    role: str | None = None
    in_force: str | None = None
    state: str | None = None
    peer: str | None = None
    generation: int | None = None
    checkpoint: str | None = None
    resync: str | None = None
    qemu_pid: int | None = None
    error: str | None = None


_PID = re.compile("[0-9]{1,10}")
COLUMNS = tuple(name.upper().replace("_", "-") for name in Row._fields)
#: Seconds between two redraws at most: a burst of changes is shown as one.
_SETTLE = 0.1
#: Seconds after which all is read anew without a change.
_RESCAN = 2.0


class DiskStatus(NamedTuple):
    """How a disk is; the names are those of ``--json``."""

    devid: int
    vdev: str
    state: str | None
    error: str | None


class Status(NamedTuple):
    """How a domain is; the names are those of ``--json``.

    :ivar state: what xencolod published, None where it has not.
    :ivar replication: None where it has not, too.
    :ivar command: a command that waits to be taken.
    """

    domid: int
    name: str
    role: str | None
    role_in_force: str | None
    state: str | None
    error: str | None
    qemu_pid: int | None
    replication: "ReplicationStatus | None"
    command: str | None
    answer: str | None
    disks: tuple[DiskStatus, ...]


@click.command(
    epilog=examples(
        "xencolo status",
        "xencolo status 5 --watch",
        "xencolo status --json | jq '.[] | select(.state == \"failed\")'",
    )
)
@DOMID_OR_ALL
@JSON
@click.option("--watch", is_flag=True, help="Go on showing changes, until ^C.")
def status(domid: int | None, as_json: bool, watch: bool) -> None:
    """Show the domains that have disks, and how they are.

    Each with its role, state, replication, QEMU and errors. The states are xencolod's; errors in
    the nodes of a disk are found without it, too. A line without VDEV is about the domain. CHECKPOINT
    is the number and the age of the last one. In a pipe, --watch prints the lines that changed; that a
    checkpoint was taken is no change. With --json it prints all anew on one line at every change.
    """
    if watch:
        follow = _follow_json if as_json else _follow
        run(lambda client: follow(client, domid))
        return
    found = run(lambda client: read_status(client, domid))
    if as_json:
        print_json([_as_json(domain) for domain in found])
    else:
        print_table(COLUMNS, [row for domain in found for row in _rows(domain)])


async def read_status(client: "Client", domid: int | None = None) -> list[Status]:
    """Return the status of one domain, or of all that have disks or something to say.

    :raises DomainError: the one that was asked for does not exist.
    :raises XenstoreError: xenstored failed.
    """
    from xencolod import domains

    statuses = [await _status(client, found) for found in await domains.survey(client, domid)]
    return [s for s in statuses if domid is not None or s.disks or s.state or s.error]


async def _status(client: "Client", found: "Found") -> Status:
    from xencolo import status as names
    from xencolo.paths import colo_path, numbers, parse_devid
    from xencolod.asks import directory

    base = colo_path(found.domid)
    nodes = (
        names.COMMAND,  # read before its answer: what is seen taken has one
        names.ANSWER,
        names.STATE,
        names.ROLE_IN_FORCE,
        names.ERROR,
        names.QEMU_PID,
        *names.REPLICATION_NODES,
    )
    values = dict(zip(nodes, await _texts(client, *(f"{base}/{n}" for n in nodes)), strict=True))
    pid = values[names.QEMU_PID]
    devids = numbers(await directory(client, f"{base}/device"), parse_devid)
    told = (names.STATE, names.ERROR)
    said = await _texts(client, *(f"{base}/device/{d}/{node}" for d in devids for node in told))
    published = dict(zip(devids, zip(said[::2], said[1::2], strict=True), strict=True))
    return Status(
        domid=found.domid,
        name=found.name,
        role=found.role,
        role_in_force=values[names.ROLE_IN_FORCE],
        state=values[names.STATE],
        error=found.role_error or values[names.ERROR],
        qemu_pid=int(pid) if pid and _PID.fullmatch(pid) else None,
        replication=names.parse_replication(values),
        command=values[names.COMMAND],
        answer=values[names.ANSWER],
        disks=tuple(_disk_statuses(found, published)),
    )


def _disk_statuses(
    found: "Found", published: Mapping[int, tuple[str | None, str | None]]
) -> Iterator[DiskStatus]:
    """Join what the nodes say now and what xencolod published; the nodes are newer."""
    from xencolo.status import DeviceState

    for device in found.devices:
        devid = device.paths.devid
        state, error = published.get(devid, (None, None))
        if device.errors:
            state, error = DeviceState.ERROR, "; ".join(map(str, device.errors))
        yield DiskStatus(devid, vdev_of(device), state, error)


async def _texts(client: "Client", *paths: str) -> list[str | None]:
    from xencolo import requests
    from xencolo.requests import absent_as_none

    answers = map(absent_as_none, await client.batch([requests.read(path) for path in paths]))
    return [(answer and answer.decode("utf-8", "backslashreplace")) or None for answer in answers]


def _as_json(domain: Status) -> dict[str, Any]:
    return domain._asdict() | {
        "replication": _replication_as_json(domain.replication),
        "disks": [disk._asdict() for disk in domain.disks],
    }


def _replication_as_json(replication: "ReplicationStatus | None") -> dict[str, Any] | None:
    if replication is None:
        return None
    resync = replication.resync
    return replication._asdict() | {"resync": resync._asdict() if resync else None}


def _rows(domain: Status) -> Iterator[Row]:
    replication = domain.replication
    yield Row(
        domain.domid,
        domain.name,
        role=domain.role,
        in_force=domain.role_in_force,
        state=domain.state,
        peer=replication and replication.peer,
        generation=replication and replication.generation,
        checkpoint=last_checkpoint(domain),
        resync=replication and replication.resync and f"{percent(replication.resync)} %",
        qemu_pid=domain.qemu_pid,
        error=domain.error,
    )
    for disk in domain.disks:
        yield Row(domain.domid, domain.name, disk.vdev, state=disk.state, error=disk.error)


def last_checkpoint(domain: Status) -> str | None:
    """Return number and age of the last checkpoint in words."""
    replication = domain.replication
    if replication is None or replication.checkpoint is None:
        return None
    if replication.checkpoint_time is None:
        return str(replication.checkpoint)
    age = duration(time.time() - replication.checkpoint_time)
    return f"{replication.checkpoint}, {age} ago"


# -- following --------------------------------------------------------------------------------


async def _follow(client: "Client", domid: int | None) -> None:
    """Show the status after every change, until interrupted: there is no end to wait for."""
    if sys.stdout.isatty():
        from rich.console import Group
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            async for found in _changes(client, domid):
                rows = [row for domain in found for row in _rows(domain)]
                live.update(Group(rich_table(COLUMNS, rows), *resync_bars(found)), refresh=True)
        return
    before: list[Row] = []
    click.echo(line(COLUMNS))
    async for found in _changes(client, domid):
        rows = [row for domain in found for row in _rows(domain)]
        for row in changed_rows(before, rows):
            click.echo(line(row))
        before = rows


async def _follow_json(client: "Client", domid: int | None) -> None:
    before = None
    async for found in _changes(client, domid):
        document = [_as_json(domain) for domain in found]
        if document != before:
            print_json_line(document)
        before = document


def resync_bars(found: Iterable[Status]) -> "Iterator[Table]":
    """Yield how far the resync of each domain is that has one, for a terminal."""
    for domain in found:
        if domain.replication and domain.replication.resync:
            yield resync_bar(f"{domain.domid} {domain.name}", domain.replication.resync)


async def _changes(client: "Client", domid: int | None) -> AsyncIterator[list[Status]]:
    import trio

    from xencolo.errors import DomainError
    from xencolo.paths import backend_root
    from xencolod.domains import TOOLSTACK_DOMID

    roots = ["/libxl", backend_root(TOOLSTACK_DOMID)]
    async with client.watch(*roots) as watch:
        yield await read_status(client, domid)
        while True:
            try:
                found = await next_status(client, watch, domid)
            except DomainError:
                found = []  # its lines go; it may come back
            yield found
            await trio.sleep(_SETTLE)


async def next_status(client: "Client", watch: "Watch", domid: int | None) -> list[Status]:
    """Wait for a change and return the status then; a xenstored that went away is waited for.

    Waits for it without a deadline, as whoever waits for a change has none either.

    :raises DomainError: the domain that was asked for does not exist.
    :raises StoreError: xenstored refused.
    """
    from xencolo.errors import ConnectionLost, DeadlineExceeded

    await changed(watch)
    while True:
        try:
            return await read_status(client, domid)
        except (ConnectionLost, DeadlineExceeded) as error:
            warn(f"{message(error)}; waiting for xenstored")
            await client.wait_connected()


async def changed(watch: "Watch") -> None:
    """Wait for a change, or for a while: watches may be lost, and so may xenstored."""
    import trio

    with trio.move_on_after(_RESCAN):
        await watch.take()


def changed_rows(before: list[Row], after: list[Row]) -> Iterator[Row]:
    """Yield the rows that are new or different; for each that vanished one with state ``gone``."""
    known = {_ageless(row) for row in before}
    yield from (row for row in after if _ageless(row) not in known)
    left = {(row.domid, row.vdev) for row in after}
    for row in before:
        if (row.domid, row.vdev) not in left:
            yield Row(row.domid, row.name, row.vdev, state="gone")


def _ageless(row: Row) -> Row:
    return row._replace(checkpoint=None)
