"""``xencolo disk``: check, add, list and remove."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from xencolo.errors import DiskError, SpecError, XencoloError
from xencolod.commands.common import (
    DOMID,
    DOMID_OR_ALL,
    JSON,
    ROLES,
    Settings,
    examples,
    run,
)
from xencolod.commands.output import message, print_json, print_table, warn

if TYPE_CHECKING:
    from xencolo.device import Device
    from xencolo.disk import Disk, Role
    from xencolod.domains import Found
    from xencolod.xenstore import Client

_COLO_EXAMPLE = """\
xencolo disk add 5 --role primary 'vdev=xvda, backendtype=qdisk, colo,
      colo-host=192.0.2.2, colo-port=9000, colo-export=web,
      active-disk=/images/web-active.qcow2, hidden-disk=/images/web-hidden.qcow2,
      target=/images/web.raw'"""


@click.group()
def disk() -> None:
    """Check, add, list and remove the disks of domains.

    A SPEC is an xl disk specification, xl-disk-configuration(5), with the keys of COLO: colo,
    colo-host, colo-port, colo-export, active-disk and hidden-disk.
    """


# -- check --------------------------------------------------------------------------------


@disk.command(
    epilog=examples(
        "xencolo disk check /images/web.raw,raw,xvda,rw",
        "xencolo disk check --json 'format=qcow2,vdev=hda,target=/images/web.qcow2'",
    )
)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@JSON
def check(specs: tuple[str, ...], as_json: bool) -> None:
    """Read disk specifications and say what they mean, without xenstore.

    The exit status is 1 if any of them is wrong; the others are shown all the same.
    """
    from xencolo.disk import disk_to_json

    checked = [_check(spec) for spec in specs]
    if as_json:
        print_json(
            [
                {
                    "spec": spec,
                    "disk": disk_to_json(found) if found else None,
                    "error": str(error) if error else None,
                    "backend_reasons": reasons,
                }
                for spec, (found, reasons, error) in zip(specs, checked, strict=True)
            ]
        )
    elif rows := [_description(found) for found, _, _ in checked if found]:
        print_table(_DESCRIPTION, rows)
    for _, _, error in checked:
        if error:
            warn(message(error))
    if any(error for _, _, error in checked):
        click.get_current_context().exit(1)


def _check(spec: str) -> "tuple[Disk | None, list[str], XencoloError | None]":
    reasons: list[str] = []
    try:
        return _parse(spec, reasons, must_exist=False), reasons, None
    except XencoloError as error:
        return None, reasons, error


def _parse(spec: str, reasons: list[str], *, must_exist: bool) -> "Disk":
    """Return the disk with its backend chosen; why goes to ``reasons`` and, with -v, to the log.

    :param must_exist: whether a target that libxl would stat(2) must be there.
    :raises SpecError: the specification can't be read.
    :raises DiskError: its parts don't go together, or the target is absent.
    """
    import msgspec

    from xencolo.diskspec import parse, select_backend

    try:
        spec.encode()
    except UnicodeEncodeError as error:  # Python keeps such bytes of argv as lone surrogates
        raise SpecError("not UTF-8, which xenstore's values are", spec, error.start) from None
    parsed = parse(spec)
    block = _is_block_device(parsed, reasons, must_exist=must_exist)
    try:
        selection = select_backend(parsed, block_device=block)
        reasons += selection.reasons
    finally:
        _log_reasons(parsed.vdev, reasons)
    chosen = msgspec.structs.replace(parsed, backend=selection.backend)
    chosen.check()
    return chosen


def _is_block_device(found: "Disk", reasons: list[str], *, must_exist: bool) -> bool:
    """Look at the target where libxl's libxl__device_disk_set_backend does."""
    import stat
    from pathlib import Path

    from xencolo.disk import Backend

    looks = {Backend.UNKNOWN, Backend.PHY, Backend.STANDALONE}
    if found.backend not in looks or found.backend_domid or found.script or not found.pdev_path:
        return False
    try:
        return stat.S_ISBLK(Path(found.pdev_path).stat().st_mode)
    except OSError as error:
        why = f"target {found.pdev_path} of {found.vdev}: {error.strerror}"
        if must_exist:
            raise DiskError(
                f"{why}; make it first, or give backendtype=qdisk, with which it is not looked at"
            ) from None
        reasons.append(f"{why}; taken for a file")
        return False


def _log_reasons(vdev: str, reasons: Iterable[str]) -> None:
    settings = click.get_current_context().find_object(Settings)
    if not settings or not settings.verbose:
        return
    import sys

    from xencolod.log import configure, emit

    log = configure("console", stream=sys.stderr, level="debug")
    for reason in reasons:
        emit(log, "backend.considered", reason=reason, vdev=vdev)


# -- add --------------------------------------------------------------------------------


@disk.command(
    epilog=examples(
        "xencolo disk add 5 /images/web.raw,raw,xvda,rw",
        _COLO_EXAMPLE,
    )
)
@DOMID
@click.argument("spec")
@click.option("--role", type=click.Choice(ROLES), help="Set the domain's role with it.")
def add(domid: int, spec: str, role: str | None) -> None:
    """Write the nodes of a new disk, as xl block-attach does.

    They are written in one transaction, or none of them is.
    """
    from xencolo.disk import Role
    from xencolod import devices, domains

    wanted = _parse(spec, [], must_exist=True)

    async def attach(client: "Client") -> str:
        if wanted.colo_enable:
            (found,) = await domains.survey(client, domid)
            _check_export_is_free(wanted, found)
        paths = await devices.add(client, domid, wanted, Role(role) if role else None)
        return paths.backend

    backend = run(attach)
    click.echo(f"{wanted.vdev} ({wanted.devid}) added to domain {domid}: {backend}")


def _check_export_is_free(wanted: "Disk", found: "Found") -> None:
    """Refuse a second COLO disk under a name that the secondary's NBD server already serves."""
    for device in found.devices:
        other = device.disk
        same = other and other.colo_enable and other.colo_export == wanted.colo_export
        if other and same and device.paths.devid != wanted.devid:
            raise DiskError(
                f"colo-export {wanted.colo_export} of {wanted.vdev} is {other.vdev}'s already in "
                f"domain {found.domid}: each disk needs its own"
            )


# -- list --------------------------------------------------------------------------------


@disk.command(
    "list",
    epilog=examples(
        "xencolo disk list",
        "xencolo disk list 5 --json | jq -r '.[] | select(.error) | .error'",
    ),
)
@DOMID_OR_ALL
@JSON
def list_(domid: int | None, as_json: bool) -> None:
    """List the disks of a domain or of all, reconstructed from xenstore.

    A disk whose nodes are wrong is listed with the error.
    """
    from xencolod import domains

    found = run(lambda client: domains.survey(client, domid))
    pairs = [(domain, device) for domain in found for device in domain.devices]
    if as_json:
        print_json([_as_json(domain.role, device) for domain, device in pairs])
    else:
        columns = ("DOMID", "DEVID", "ROLE", *_DESCRIPTION, "ERROR")
        print_table(columns, [_listed(domain.role, device) for domain, device in pairs])
    for domain in found:
        if domain.role_error and domain.devices:
            warn(message(XencoloError(domain.role_error)))


def _as_json(role: "Role | None", device: "Device") -> dict[str, Any]:
    import msgspec

    from xencolo.disk import Disk, Role, disk_to_json

    row: dict[str, Any] = {"domid": device.paths.domid, "devid": device.paths.devid, "role": role}
    if device.disk:
        restored = device.disk.colo_enable and role is Role.SECONDARY
        row |= disk_to_json(msgspec.structs.replace(device.disk, colo_restore_enable=restored))
    else:
        # What its place says is known even so.
        known = {"vdev": vdev_of(device), "backend_domid": device.paths.backend_domid}
        row |= dict.fromkeys(Disk.__struct_fields__) | known
    if device.errors:
        row["error"] = "; ".join(map(str, device.errors))
    return row


_DESCRIPTION = ("VDEV", "BACKEND", "FORMAT", "MODE", "TARGET", "COLO")


def _description(found: "Disk") -> list[str | None]:
    host = f"[{found.colo_host}]" if ":" in (found.colo_host or "") else found.colo_host
    colo = f"{host}:{found.colo_port}/{found.colo_export}" if found.colo_enable else None
    mode = "rw" if found.readwrite else "ro"
    return [found.vdev, found.backend, found.format, mode, found.pdev_path, colo]


def _listed(role: "Role | None", device: "Device") -> list[str | int | None]:
    if device.disk:
        described = _description(device.disk)
    else:
        described = [vdev_of(device), *[None] * (len(_DESCRIPTION) - 1)]
    error = "; ".join(map(str, device.errors)) or None
    return [device.paths.domid, device.paths.devid, role, *described, error]


def vdev_of(device: "Device") -> str:
    """Return the vdev of a device, readable or not."""
    return device.vdev or str(device.paths.devid)


# -- remove --------------------------------------------------------------------------------


@disk.command(
    epilog=examples(
        "xencolo disk remove 5 xvda",
        "xencolo disk remove 5 51712 --force     # don't ask its backend, don't wait",
    )
)
@DOMID
@click.argument("vdev")
@click.option("--force", is_flag=True, help="Remove it without asking the backend to close.")
def remove(domid: int, vdev: str, force: bool) -> None:
    """Remove a disk, VDEV being its name or number.

    Its backend is asked to close and given 10 s; then the nodes go, as with xl block-detach.
    """
    from xencolo.paths import DevicePaths, vdev_to_devid
    from xencolod import devices, domains

    devid = vdev_to_devid(vdev)

    async def detach(client: "Client") -> bool:
        places = await devices.find(client, domains.TOOLSTACK_DOMID, [domid])
        if not places:
            await domains.require(client, domid)
        here = [paths for paths in places if paths.devid == devid]
        paths = here[0] if here else DevicePaths(domid, devid)
        return (await devices.remove(client, paths, force=force)).forced

    forced = run(detach)
    if forced and not force:
        warn(f"the backend of {vdev} did not close in 10 s: removed by force")
    click.echo(f"{vdev} ({devid}) removed from domain {domid}")


__all__ = ["disk", "vdev_of"]
