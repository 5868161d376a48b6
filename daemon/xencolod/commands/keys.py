"""``xencolo keys``."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

from pathlib import Path

import click

from xencolod.commands.common import examples
from xencolod.config import Link

_DEFAULT = Link().keys


@click.command(
    epilog=examples(
        "xencolo keys",
        f"scp -p {_DEFAULT} other-host:{_DEFAULT}",
    )
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=_DEFAULT)
def keys(file: Path) -> None:
    """Make the key file of the hosts that replicate.

    Once, on one of them. FILE is /etc/xencolo/keys.pem unless given. It is never overwritten.
    Copy it to each of the hosts, over a way that nobody listens to, and start or reload the
    daemons: who has it can read and write the replicated disks, and who has it not gets no
    connection. It holds for ten years; xencolod's log warns 90 days before the end.
    """
    from xencolod.keys import make

    made = make(file)
    click.echo(f"{file} made, to be copied to each host; it holds until {made.expires:%Y-%m-%d}")
    click.echo(f"SHA-256 of the certificate: {made.fingerprint}")
