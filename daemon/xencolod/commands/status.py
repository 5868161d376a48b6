"""``xencolo status``: what should be, what is, and what is wrong."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import re
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from xencolod.commands.common import DOMID_OR_ALL, JSON, examples, run
from xencolod.commands.disk import vdev_of
from xencolod.commands.output import line, print_json, print_table, rich_table

if TYPE_CHECKING:
    from xencolod.domains import Found
    from xencolod.xenstore import Client

COLUMNS = ("DOMID", "NAME", "VDEV", "ROLE", "IN-FORCE", "STATE", "QEMU-PID", "ERROR")
Row = tuple[str | int | None, ...]
_PID = re.compile("[0-9]{1,10}")
#: Seconds between two redraws at most: a burst of changes is shown as one.
_SETTLE = 0.1
#: Seconds after which all is read anew without a change: watches may be lost, and so may xenstored.
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
    """

    domid: int
    name: str
    role: str | None
    role_in_force: str | None
    state: str | None
    error: str | None
    qemu_pid: int | None
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

    Each with its role, state, QEMU and errors. The states are xencolod's; errors in the nodes
    of a disk are found without it, too. A line without VDEV is about the domain. In a pipe,
    --watch prints the lines that changed.
    """
    if as_json and watch:
        raise click.UsageError("--json prints one document: it does not go with --watch")
    if watch:
        run(lambda client: _follow(client, domid))
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
    from xencolod.xenstore import directory

    base = colo_path(found.domid)
    state, role, error, pid = await _texts(
        client,
        *(f"{base}/{n}" for n in (names.STATE, names.ROLE_IN_FORCE, names.ERROR, names.QEMU_PID)),
    )
    disks = {
        devid: await _texts(
            client,
            f"{base}/device/{devid}/{names.STATE}",
            f"{base}/device/{devid}/{names.ERROR}",
        )
        for devid in numbers(await directory(client, f"{base}/device"), parse_devid)
    }
    return Status(
        found.domid,
        found.name,
        found.role,
        role,
        state,
        found.role_error or error,
        int(pid) if pid and _PID.fullmatch(pid) else None,
        tuple(_disk_statuses(found, disks)),
    )


def _disk_statuses(found: "Found", published: dict[int, list[str | None]]) -> Iterator[DiskStatus]:
    """Join what the nodes say now and what xencolod published; the nodes are newer."""
    from xencolo.status import DeviceState

    for device in found.devices:
        devid = device.paths.devid
        state, error = published.get(devid, [None, None])
        if device.errors:
            state, error = DeviceState.ERROR, "; ".join(map(str, device.errors))
        yield DiskStatus(devid, vdev_of(device), state, error)


async def _texts(client: "Client", *paths: str) -> list[str | None]:
    from xencolo import requests
    from xencolod.xenstore import absent_as_none

    answers = map(absent_as_none, await client.batch([requests.read(path) for path in paths]))
    return [(answer and answer.decode("utf-8", "backslashreplace")) or None for answer in answers]


def _as_json(domain: Status) -> dict[str, Any]:
    return domain._asdict() | {"disks": [disk._asdict() for disk in domain.disks]}


def _rows(domain: Status) -> Iterator[Row]:
    yield (
        domain.domid,
        domain.name,
        None,
        domain.role,
        domain.role_in_force,
        domain.state,
        domain.qemu_pid,
        domain.error,
    )
    for disk in domain.disks:
        yield (domain.domid, domain.name, disk.vdev, None, None, disk.state, None, disk.error)


# -- following --------------------------------------------------------------------------------


async def _follow(client: "Client", domid: int | None) -> None:
    """Show the status after every change, until interrupted: there is no end to wait for."""
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            async for rows in _changes(client, domid):
                live.update(rich_table(COLUMNS, rows), refresh=True)
        return
    before: list[Row] = []
    click.echo(line(COLUMNS))
    async for rows in _changes(client, domid):
        for row in changed_rows(before, rows):
            click.echo(line(row))
        before = rows


async def _changes(client: "Client", domid: int | None) -> AsyncIterator[list[Row]]:
    import trio

    from xencolo.paths import backend_root
    from xencolod.domains import TOOLSTACK_DOMID

    roots = ["/libxl", backend_root(TOOLSTACK_DOMID)]
    async with client.watch(*roots) as watch:
        while True:
            with trio.move_on_after(_RESCAN):
                await watch.take()
            found = await read_status(client, domid)
            yield [row for domain in found for row in _rows(domain)]
            await trio.sleep(_SETTLE)


def changed_rows(before: list[Row], after: list[Row]) -> Iterator[Row]:
    """Yield the rows that are new or different; for each that vanished one with state ``gone``."""
    known = set(before)
    yield from (row for row in after if row not in known)
    left = {_key(row) for row in after}
    for row in before:
        if _key(row) not in left:
            domid, name, vdev = row[:3]
            yield (domid, name, vdev, None, None, "gone", None, None)


def _key(row: Row) -> Row:
    return row[0], row[2]
