"""``xencolo role`` and ``xencolo domain``."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import click

from xencolo.errors import DomainError
from xencolod.commands.common import DOMID, ROLES, examples, run

STREAMS = ("none", "remus", "colo")


@click.command(
    epilog=examples(
        "xencolo role 5               # primary",
        "xencolo role 5 secondary     # from now on",
    )
)
@DOMID
@click.argument("new", metavar="[R]", type=click.Choice(ROLES), required=False)
def role(domid: int, new: str | None) -> None:
    """Show or set the COLO role of a domain.

    R is none, primary or secondary. It stands in /libxl/DOMID/colo/role; a domain without that
    node is primary if it has a COLO disk.
    """
    from xencolo.disk import Role
    from xencolod import domains

    if new:
        run(lambda client: domains.set_role(client, domid, Role(new)))
        return
    (found,) = run(lambda client: domains.survey(client, domid))
    if found.role is None:
        raise DomainError(found.role_error)
    click.echo(found.role)


@click.group()
def domain() -> None:
    """Restore domains; create and destroy them without Xen."""


@domain.command(
    epilog=examples(
        "xencolo domain restore 5 --checkpointed-stream colo     # domain 5 is a secondary",
        "xencolo domain restore 5 --checkpointed-stream none     # it is what create makes it",
    )
)
@DOMID
@click.option(
    "--checkpointed-stream",
    "stream",
    type=click.Choice(STREAMS),
    required=True,
    help="What the domain is restored from.",
)
def restore(domid: int, stream: str) -> None:
    """Set the role that libxl's restore leaves.

    Only a colo stream makes a secondary.
    """
    from xencolo.status import RESTORED_ROLE
    from xencolod import domains

    run(lambda client: domains.restore(client, domid, stream))
    left = RESTORED_ROLE[stream]
    click.echo(
        f"domain {domid}: {left or 'primary with a COLO disk, as a domain that was created'}"
    )


@domain.command(
    epilog=examples(
        "xencolo domain create 5 --name web",
        "xencolo disk add 5 /images/web.raw,raw,xvda",
    )
)
@DOMID
@click.option("--name", help="The guest's name; domain-DOMID by default.")
@click.option(
    "--uuid",
    "identity",
    help="The guest's uuid, the same on all hosts that its disks are replicated between; a new one "
    "by default.",
)
def create(domid: int, name: str | None, identity: str | None) -> None:
    """Write the nodes of a new HVM domain, where no Xen is.

    On a Xen dom0 this is refused: domains are made there with xl create.
    """
    from xencolod import domains
    from xencolod.config import on_xen

    chosen = f"domain-{domid}" if name is None else name
    run(lambda client: domains.create(client, domid, chosen, xen=on_xen(), identity=identity))
    click.echo(f"domain {domid} created: {chosen}")


@domain.command(epilog=examples("xencolo domain destroy 5"))
@DOMID
def destroy(domid: int) -> None:
    """Remove the nodes of a domain and of its disks.

    Its images stay as they are. On a Xen dom0 this is refused: domains are ended there with xl destroy.
    """
    from xencolod import domains
    from xencolod.config import on_xen

    run(lambda client: domains.destroy(client, domid, xen=on_xen()))
    click.echo(f"domain {domid} destroyed")
