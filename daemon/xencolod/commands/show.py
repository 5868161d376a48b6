"""``xencolo drives``, ``events``, ``completion`` and ``demo``."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import sys

import click

from xencolo.errors import DomainError
from xencolod.commands.common import DOMID, JSON, ROLES, Settings, examples, run
from xencolod.commands.disk import vdev_of
from xencolod.commands.output import message, print_json, print_table, printable, warn

FORMS = ("2016", "blockdev")
SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        "xencolo drives 5",
        "xencolo drives 5 --role secondary --form 2016",
        "xencolo drives 5 --json | jq -r @sh",
    )
)
@DOMID
@click.option("--role", type=click.Choice(ROLES), help="Another role than the domain's own.")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default="blockdev",
    show_default=True,
    help="How the drives are written: for QEMU 6 and later, or as the COLO change of 2016 has it.",
)
@JSON
def drives(domid: int, role: str | None, form: str, as_json: bool) -> None:
    """Print QEMU's arguments for the disks of a domain, one a line.

    Disks that QEMU does not emulate are named on stderr. So are those that can't be read, and then
    the exit status is 1.
    """
    from xencolo.disk import Role
    from xencolo.drives import Form, domain_drives, under_dev
    from xencolo.paths import QDISK
    from xencolod import domains
    from xencolod.places import is_block_device

    def as_device(path: str) -> bool:
        return under_dev(path) or is_block_device(path)

    (found,) = run(lambda client: domains.survey(client, domid))
    chosen = Role(role) if role else found.role
    if chosen is None:
        raise DomainError(found.role_error)
    here = (domains.TOOLSTACK_DOMID, QDISK)
    ours = [d for d in found.devices if (d.paths.backend_domid, d.paths.kind) == here]
    disks = [d.disk for d in ours if d.disk]
    result = domain_drives(disks, chosen, Form(form), is_block_device=as_device)
    if as_json:
        print_json(result.arguments)
    else:
        shown = printable if sys.stdout.isatty() else str
        for argument in result.arguments:
            click.echo(shown(argument))
    for device in found.devices:
        if device not in ours:
            warn(f"{vdev_of(device)} skipped: {device.paths.backend} serves it, not this QEMU")
        elif device.paths.devid in result.skipped:
            warn(f"{vdev_of(device)} skipped: {printable(result.skipped[device.paths.devid])}")
    errors = [error for device in ours for error in device.errors]
    # Disks that claim the same thing share one error.
    for text in dict.fromkeys(map(message, [*errors, *result.errors.values()])):
        warn(text)
    if errors or result.errors:
        click.get_current_context().exit(1)


@click.command(
    epilog=examples("xencolo events", "xencolo events --json | jq -r '.[].name'"),
)
@JSON
def events(as_json: bool) -> None:
    """List every event of xencolod's log.

    Each has its name, level, fields and meaning. Names and meanings never change; each event
    also has domid, devid and vdev where they are known.
    """
    from xencolod.events import CATALOGUE

    catalogue = CATALOGUE.values()
    if as_json:
        print_json([event._asdict() for event in catalogue])
        return
    rows = [(event.name, event.level, " ".join(event.fields), event.meaning) for event in catalogue]
    print_table(("EVENT", "LEVEL", "FIELDS", "MEANING"), rows)


@click.command(
    epilog=examples(
        "xencolo completion bash > /etc/bash_completion.d/xencolo",
        "source <(xencolo completion zsh)",
        "xencolo completion fish > ~/.config/fish/completions/xencolo.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes what is typed."""
    from click.shell_completion import get_completion_class

    program = click.get_current_context().find_root().command
    completer = get_completion_class(shell)
    if completer is None:
        raise click.ClickException(f"click can't complete for {shell}")
    click.echo(completer(program, {}, "xencolo", "_XENCOLO_COMPLETE").source())


@click.command(epilog=examples("xencolo demo"))
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(),
    envvar="XENSTORED_PATHS",
    metavar="SOCKET",
    help="Socket of a running xenstored, once for each of the three hosts; by default each has an "
    "in-memory store. $XENSTORED_PATHS has all of them, with colons between.",
)
@click.pass_obj
def demo(settings: Settings, stores: tuple[str, ...]) -> None:
    """Play the life of a replicated disk on three hosts.

    All of them are on this machine: an xencolod each, on 127.0.0.1, .2 and .3, and real QEMUs, in a
    temporary folder. A disk is replicated, its host dies, the other one takes over and is proven to
    hold the last checkpoint; then once more with the third. Exits 0 only if every read matched.
    """
    from xencolod import demo as story

    if settings.xenstore or len(stores) not in {0, story.HOSTS}:
        raise click.UsageError(f"each of the {story.HOSTS} hosts has a store of its own: --store")
    story.run(stores)
