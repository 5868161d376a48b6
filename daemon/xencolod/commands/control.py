"""Gives xencolod a command by node, and follows what becomes of it."""

import secrets
from collections.abc import Callable

import msgspec
import trio

from xencolo import requests
from xencolo.command import (
    COMMANDS,
    Answer,
    Command,
    Outcome,
    command_path,
    parse_answer,
    render,
)
from xencolo.errors import CommandError
from xencolo.paths import colo_path
from xencolod.asks import demand, read
from xencolod.commands.status import Status, changed, next_status, read_status
from xencolod.domains import require
from xencolod.transaction import Transaction
from xencolod.watch import Watch
from xencolod.xenstore import Client

#: Seconds in which a living xencolod has taken a command, and has published what a done one did.
PROMPT = 10.0


async def give(client: Client, domid: int, command: Command) -> None:
    """Write the command into its node, for xencolod to take.

    :raises CommandError: another one waits there, or this one can't be.
    :raises DomainError: there is no such domain.
    :raises XenstoreError: xenstored failed.
    """
    node, value = command_path(domid), render(command)

    async def body(transaction: Transaction) -> None:
        await require(transaction, domid)
        if waiting := await read(transaction, node):
            shown = waiting[:80].decode("utf-8", "backslashreplace")
            raise CommandError(
                f"another command waits in {node}: {shown}; try again when xencolod has taken it, or "
                f"take it back by emptying the node",
                command.word,
            )
        await demand(transaction, [requests.write(node, value)])

    await client.transaction(body)


async def take_back(client: Client, domid: int, command: Command) -> bool:
    """Empty the node if the command still waits there; return whether it did.

    :raises XenstoreError: xenstored failed.
    """
    node = command_path(domid)

    async def body(transaction: Transaction) -> bool:
        if waits := await read(transaction, node) == render(command):
            await demand(transaction, [requests.write(node, b"")])
        return waits

    return await client.transaction(body)


async def perform(
    client: Client,
    domid: int,
    command: Command,
    *,
    wait: bool,
    timeout: float | None,
    show: Callable[[Status], None],
) -> Answer:
    """Give a command and return xencolod's answer; a command that nobody takes is taken back.

    :param wait: return only when the command is done and its effect is seen in the state.
    :param timeout: seconds; None for `PROMPT` until the command is taken and then without a deadline, as
        nobody knows how long a resync takes.
    :param show: called with the status whenever it was read.
    :raises CommandError: not taken or not done in time, or its answer made room for another's.
    :raises DomainError: there is no such domain, or no longer.
    :raises XenstoreError: xenstored failed.
    """
    known = msgspec.structs.replace(command, id=secrets.token_hex(8))
    deadline = trio.current_time() + (timeout or float("inf"))
    async with client.watch(colo_path(domid)) as watch:
        await _hand_over(client, watch, domid, known, timeout or PROMPT)
        following = _Following(client, watch, domid, known, show)
        with trio.move_on_at(deadline):
            return await following.done() if wait else await following.answer()
        raise CommandError(
            f"{known.word} of domain {domid} is not done after {timeout:g} s; xencolod goes on with it: "
            f"xencolo status {domid} --watch",
            known.word,
        )


async def _hand_over(
    client: Client, watch: Watch, domid: int, command: Command, timeout: float
) -> None:
    """Give the command and wait until it is taken; take it back when that lasts too long.

    It is taken back for one who is interrupted as well: a failover must not happen hours later.
    """
    taken = False
    try:
        await give(client, domid, command)
        with trio.move_on_after(timeout):
            while await read(client, command_path(domid)) == render(command):
                await changed(watch)
            taken = True
    finally:
        if not taken:
            with trio.CancelScope(shield=True):  # each request has the client's deadline
                taken = not await take_back(client, domid, command)
    if not taken:
        raise CommandError(
            f"no xencolod took {command.word} from {command_path(domid)} in {timeout:g} s, and it was "
            f"taken back: is xencolod running, and does it manage domain {domid}?",
            command.word,
        )


class _Following:
    """A command that was taken."""

    def __init__(
        self,
        client: Client,
        watch: Watch,
        domid: int,
        command: Command,
        show: Callable[[Status], None],
    ) -> None:
        self._client = client
        self._watch = watch
        self._domid = domid
        self._command = command
        self._show = show

    async def answer(self) -> Answer:
        """Return the answer as it is now: it was written with the taking."""
        (status,) = await read_status(self._client, self._domid)
        return self._judge(status)

    async def done(self) -> Answer:
        """Return the answer when the command failed, or is done and its effect is seen."""
        answer = await self.answer()
        while answer.outcome is Outcome.RUNNING:
            answer = self._judge(await self._next())
        effect = COMMANDS[self._command.word].effect
        if answer.outcome is Outcome.FAILED or effect is None:
            return answer
        (status,) = await read_status(self._client, self._domid)
        with trio.move_on_after(PROMPT):
            while status.state != effect:
                status = await self._next()
            return answer
        raise CommandError(
            f"{self._command.word} of domain {self._domid} is done, and {PROMPT:g} s later its state "
            f"is {status.state} and not {effect}: {status.error or 'no error is told'}",
            self._command.word,
        )

    async def _next(self) -> Status:
        (status,) = await next_status(self._client, self._watch, self._domid)
        self._show(status)
        return status

    def _judge(self, status: Status) -> Answer:
        answer = parse_answer(self._domid, (status.answer or "").encode())
        if answer.id != self._command.id:
            raise CommandError(
                f"the answer to {self._command.word} of domain {self._domid} made room for another's, "
                f"{status.answer}: look at xencolo status {self._domid}",
                self._command.word,
            )
        return answer
