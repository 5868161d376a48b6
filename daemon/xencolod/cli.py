"""The programs: ``xencolo``, the operator's command, and ``xencolod``, the daemon."""

import gc
import os
from pathlib import Path

import click

from xencolo.errors import ConfigError
from xencolod.commands import disk, domain, keys, replication, show, status
from xencolod.commands.common import Failure, Reporting, ReportingGroup, Settings, examples

#: So many more new values than old ones have gone, and the daemon looks for those that hold each other.
_GARBAGE = 5000

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    "xencolo",
    cls=ReportingGroup,
    context_settings=_CONTEXT,
    epilog=examples(
        "xencolo domain create 5 --name web",
        "xencolo disk add 5 /images/web.raw,raw,xvda,rw",
        "xencolo status --watch",
    ),
)
@click.option(
    "--xenstore",
    metavar="SOCKET",
    help="Xenstored's socket; by default as libxenstore finds it: $XENSTORED_PATH, "
    "$XENSTORED_RUNDIR/socket, /run/xenstored/socket.",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Say on stderr how a disk's backend was chosen."
)
@click.version_option(package_name="xencolo")
@click.pass_context
def main(ctx: click.Context, xenstore: str | None, verbose: bool) -> None:
    """Disks of Xen guests that COLO replicates: what they are in xenstore, and what QEMU is given.

    Exit status: 0 done, 1 not done with the reason on stderr, 2 wrong usage.
    """
    ctx.obj = Settings(xenstore, verbose)


for _command in (
    disk.disk,
    domain.domain,
    domain.role,
    show.drives,
    status.status,
    replication.checkpoint,
    replication.resync,
    replication.failover,
    replication.detach,
    keys.keys,
    show.events,
    show.completion,
    show.demo,
):
    main.add_command(_command)


class _Misconfigured(Failure):
    """The configuration can't be used; the unit has systemd not try it again."""

    exit_code = os.EX_CONFIG


@click.command(
    "xencolod",
    cls=Reporting,
    context_settings=_CONTEXT,
    epilog=examples(
        "xencolod",
        "xencolod --xenstore embedded:/tmp/xenstore     # with a store of its own, without Xen",
    ),
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The configuration; /etc/xencolo/xencolod.toml by default, if it is there.",
)
@click.option(
    "--xenstore",
    metavar="WHERE",
    help="Xenstored's socket, or embedded[:SOCKET] to serve an in-memory store there. By default "
    "as the configuration says, then as libxenstore finds it.",
)
@click.option(
    "--log",
    "log_format",
    type=click.Choice(["json", "console"]),
    help="How the log is written; by default console on a terminal, else json.",
)
@click.option("--debug", is_flag=True, help="Write the events of level debug too.")
@click.version_option(package_name="xencolo")
def daemon_main(
    config: Path | None, xenstore: str | None, log_format: str | None, *, debug: bool
) -> None:
    """Keep one QEMU per domain running with the drives that its COLO role asks for.

    Exit status: 0 ended by a signal, 1 failed, 2 wrong usage, 78 a configuration that can't be used.
    """
    gc.disable()
    from xencolod import app  # noqa: PLC0415 - --help answers at once
    from xencolod.config import load  # noqa: PLC0415

    # What is imported stays for good, and a look makes thousands of values that go by themselves.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    gc.enable()
    try:
        settings = load(config)
    except ConfigError as error:
        raise _Misconfigured("xencolod", str(error)) from None
    app.run(settings, config, xenstore, log_format, debug=debug)
