"""What the commands share: parameters, the way to xenstored, and the one place for errors."""

# ruff: noqa: PLC0415 - slow modules are imported where they are needed: --help answers at once

import errno
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click

from xencolo._pyxs import PyXSError
from xencolo.errors import PathError, XencoloError
from xencolo.paths import DOMID_MAX, parse_domid
from xencolod.commands.output import message

if TYPE_CHECKING:
    from xencolod.xenstore import Client

T = TypeVar("T")

ROLES = ("none", "primary", "secondary")
#: What shells give a command that ^C ended: 128 + SIGINT.
INTERRUPTED = 130


class Settings(NamedTuple):
    """The options that stand before the command.

    :ivar xenstore: xenstored's socket; None finds it as libxenstore does.
    """

    xenstore: str | None
    verbose: bool


class Domid(click.ParamType[int]):
    """A domid on the command line."""

    name = "domid"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number, or fail with what is needed."""
        try:
            return parse_domid(str(value))
        except PathError:
            self.fail(f"{value!r} is not a whole number from 0 to {DOMID_MAX}", param, ctx)


DOMID = click.argument("domid", type=Domid())
DOMID_OR_ALL = click.argument("domid", type=Domid(), required=False)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def examples(*lines: str) -> str:
    r"""Return an epilog that shows the lines as they are; click would fill them without ``\b``."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in lines)])


def run(operation: Callable[["Client"], Awaitable[T]]) -> T:
    """Connect to xenstored, perform the operation, and return its result."""
    import trio

    from xencolod.xenstore import open_client

    settings = click.get_current_context().find_object(Settings)

    async def connected() -> T:
        async with open_client(settings.xenstore if settings else None) as client:
            return await operation(client)

    # Else ^C may hit a task of the connection, and the command would have none to take back what it asked.
    return trio.run(connected, restrict_keyboard_interrupt_to_checkpoints=True)


class Failure(click.ClickException):
    """The command was not done: the reason goes to stderr and the exit status is 1."""

    def __init__(self, program: str, text: str) -> None:
        super().__init__(text)
        self.program = program

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print the reason."""
        click.echo(f"{self.program}: {self.message}", err=True)


#: What a full disk or a used up quota behind stdout answers.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in a group, however deep; trio puts what its tasks raise into groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


@contextmanager
def reported(program: str) -> Iterator[None]:
    """Turn what xencolo raises into a message and an exit status; all else is a bug."""
    try:
        yield
    except (XencoloError, PyXSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        found = leaves(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            raise click.exceptions.Exit(INTERRUPTED) from None
        if not all(isinstance(leaf, XencoloError | PyXSError) for leaf in found):
            raise
        raise Failure(program, "\n".join(dict.fromkeys(map(message, found)))) from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise Failure(program, f"what it says can't be written: {error.strerror}") from None


class Reporting(click.Command):
    """Reports the errors of a program: what it is asked for, and how it runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the command line; ``--help`` and ``--version`` are answered here."""
        with reported(self.name or ""):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run it."""
        with reported(self.name or ""):
            return super().invoke(ctx)


class ReportingGroup(Reporting, click.Group):
    """A program with commands, whose errors are reported."""
