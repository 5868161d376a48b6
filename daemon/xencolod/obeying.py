"""The operator's commands: taken from their node, carried out, answered."""

from typing import TYPE_CHECKING

import trio

from xencolo import requests
from xencolo.command import (
    COMMANDS,
    Answer,
    Command,
    Outcome,
    Word,
    answer_path,
    command_path,
    parse,
    parse_answer,
    render_answer,
)
from xencolo.device import check_trust
from xencolo.disk import Role
from xencolo.errors import (
    CommandError,
    NodeError,
    UnexpectedEvent,
    WrongNode,
    XencoloError,
    XenstoreError,
)
from xencolo.replication import Event, failover_event, step
from xencolo.status import DomainState
from xencolod.asks import ask, demand, read
from xencolod.devices import trusted_domids
from xencolod.log import emit
from xencolod.transaction import Transaction
from xencolod.xenstore import Client

if TYPE_CHECKING:
    from xencolod.replicator import Replicator

_S = DomainState

_OTHER_ROLE = {
    Role.PRIMARY: "{} is for a secondary, and this domain is the primary",
    Role.SECONDARY: "{} is for the primary, and this domain is the secondary: ask on the other host",
}
#: To fill in: the domid here.
_NO_SECONDARY = "no secondary has its disks now; xencolo status {} tells why"
_NO_PEER = (
    "no node names the other host of a promoted domain: say which (xencolo resync {} --to HOST)"
)
_NOTHING_TO_TAKE_OVER = (
    "the disks hold no checkpoint of the primary; with force the domain runs on what is there, which may be "
    "part of a resync: all that was not copied yet is lost"
)
_OWN_DISKS = (
    "the disks hold no checkpoint of the primary; they hold all that the guest wrote here while this host "
    "was it: with force it is that again, and what the guest may have written on the other host since is lost"
)


#: Where a secondary may hold a checkpoint, and be in a session that nobody has ended for it.
_HAD_SESSION = {_S.REPLICATING, _S.DEGRADED}
_UNHEARD = (
    "but the secondary was not told: it is as soon as it can be reached; should it take over before that "
    "(xencolo failover there, or failover.policy), the guest is stopped here"
)


class Obeying:
    """The commands of one domain, one after the other."""

    def __init__(self, owner: "Replicator", client: Client) -> None:
        self._owner = owner
        self._client = client
        self._trusted = trusted_domids(owner.performer.host.settings.config.daemon.domid)
        self._poked = trio.Event()
        self._distrust: str | None = None
        self._started = False
        self._waits = False
        self._working = False

    @property
    def busy(self) -> bool:
        """Whether a command is being taken or carried out."""
        return self._working or self._poked.is_set()

    def see(self, command: bytes | None, error: str | None) -> None:
        """Take note that a command waits, or why it is not one."""
        self._say_distrust(error)
        self._waits = bool(command and not error)
        if self._waits or not self._started:
            self._poked.set()

    def _say_distrust(self, error: str | None) -> None:
        """Log once why the command is nobody's whom dom0 trusts."""
        if error and error != self._distrust:
            emit(self._owner.log, "command.failed", command="unknown", error=error)
        self._distrust = error

    async def run(self) -> None:
        """Take commands for ever."""
        while True:
            await self._poked.wait()  # without a deadline: the operator has none
            self._poked = trio.Event()
            self._working = True
            try:
                if not self._started:
                    await self._close_old()
                    self._started = True
                if self._waits:
                    await self._take()
            except XenstoreError as error:
                # The node still holds it, or its answer is lost with xenstored.
                emit(self._owner.log, "xenstore.failed", error=str(error))
            self._working = False

    async def _close_old(self) -> None:
        """Answer what an earlier daemon took and did not live to answer."""
        domid = self._owner.domid
        value = await read(self._client, answer_path(domid))
        try:
            answer = parse_answer(domid, value) if value else None
        except WrongNode:
            answer = None  # nobody waits for rubbish
        if answer and answer.outcome is Outcome.RUNNING:
            text = "xencolod ended meanwhile; the state tells how far it came"
            await self._say(answer._replace(outcome=Outcome.FAILED, text=text))

    async def _take(self) -> None:
        domid = self._owner.domid

        async def body(transaction: Transaction) -> bytes | None:
            value = await read(transaction, command_path(domid))
            if value:
                # Here, and not as it was when the nodes were read: it may be another's command by now.
                allowed = await ask(transaction, requests.get_permissions(command_path(domid)))
                check_trust(command_path(domid), allowed, self._trusted)
                taken = render_answer(_answer(value, Outcome.RUNNING))
                empty = requests.write(command_path(domid), b"")
                await demand(transaction, [empty, requests.write(answer_path(domid), taken)])
            return value

        try:
            value = await self._client.transaction(body)
        except NodeError as error:
            self._say_distrust(str(error))
            return
        if value:
            await self._say(await self._carry_out(value))

    async def _say(self, answer: Answer) -> None:
        await ask(
            self._client, requests.write(answer_path(self._owner.domid), render_answer(answer))
        )

    async def _carry_out(self, value: bytes) -> Answer:
        log, shown = self._owner.log, value[:200].decode("utf-8", "backslashreplace")
        try:
            emit(log, "command.taken", command=shown)
            text = await obey(self._owner, parse(value))
        except XencoloError as error:
            emit(log, "command.failed", command=shown, error=str(error))
            return _answer(value, Outcome.FAILED, str(error))
        emit(log, "command.done", command=shown, answer=text)
        return _answer(value, Outcome.DONE, text)


def _answer(value: bytes, outcome: Outcome, text: str = "") -> Answer:
    try:
        command = parse(value)
    except CommandError as error:
        return Answer(error.word, error.id, outcome, text)
    return Answer(command.word, command.id, outcome, text)


async def obey(owner: "Replicator", command: Command) -> str:
    """Carry a command out; return what there is to say of it.

    :raises XencoloError: it can't be carried out now, or failed.
    """
    performer = owner.performer
    if performer.record is None or not performer.disks:
        raise CommandError("the domain has no COLO disk that could be replicated, or no QEMU yet")
    if owner.place.role not in COMMANDS[command.word].roles:
        raise CommandError(_OTHER_ROLE[owner.place.role].format(command.word))
    match command.word:
        case Word.CHECKPOINT:
            try:
                await owner.push(Event.CHECKPOINT).outcome()
            except UnexpectedEvent as error:
                raise CommandError(f"{error}: {_NO_SECONDARY.format(owner.domid)}") from None
            return f"number {performer.number}"
        case Word.DETACH:
            step(owner.place, Event.DETACH)  # refused, it must not be recorded either
            untold = performer.known.untold or owner.place.state in _HAD_SESSION
            await performer.save(detached=True, untold=untold)
            await owner.push(Event.DETACH).outcome()
            await performer.save()  # what was noted of it
            return _UNHEARD if performer.known.untold else ""
        case Word.FAILOVER:
            return await _fail_over(owner, force=command.force)
        case Word.RESYNC:
            return await _resync(owner, command)


async def _fail_over(owner: "Replicator", *, force: bool) -> str:
    performer = owner.performer

    def event() -> Event | None:
        return failover_event(in_sync=performer.in_sync, force=force)

    # When its turn has come, the disks may hold no checkpoint any more.
    if wanted := event():
        await owner.push(wanted, void=lambda: event() is None).outcome()
    if performer.known.role is not Role.PRIMARY:
        raise CommandError(_OWN_DISKS if performer.known.own else _NOTHING_TO_TAKE_OVER)
    return f"generation {performer.known.generation}"


async def _resync(owner: "Replicator", command: Command) -> str:
    performer = owner.performer
    if owner.place.state in {_S.REPLICATING, _S.RESYNCING}:
        raise CommandError(f"it is {owner.place.state} already; to begin anew, detach first")
    if obstacle := owner.obstacle:
        raise CommandError(obstacle)
    await performer.save(peer=command.to or performer.known.peer, detached=False, untold=False)
    if owner.reach.address is None:
        raise CommandError(_NO_PEER.format(owner.domid))
    performer.equal_at = await performer.primary.writes() if command.assume_equal else None
    owner.reach.hang_up()
    owner.reach.hurry()
    return f"reaching for {owner.reach.peer}"
