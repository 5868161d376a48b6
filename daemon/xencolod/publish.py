"""Writes what is into xenstore: only what changed, and never for a domain that is gone."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, starmap

import trio

from xencolo import requests
from xencolo.errors import StoreError, XenstoreError
from xencolo.paths import DevicePaths, colo_path, device_model_path, domain_path
from xencolo.plan import uuid_of
from xencolo.requests import Answer, Request, absent_as_none
from xencolo.status import (
    ANSWER,
    COMMAND,
    DEVICE,
    ERROR,
    QEMU_PID,
    QEMU_RUNS,
    RECORD,
    ROLE,
    STATE,
    DeviceState,
    DomainState,
    DomainStatus,
    status_values,
)
from xencolo.wire import Op
from xencolod.asks import (
    TRANSACTION_ATTEMPTS,
    Asks,
    all_done,
    demand,
    directories,
    names_in,
)
from xencolod.devices import remove_with_empty_parents
from xencolod.transaction import Transaction
from xencolod.xenstore import Client

#: What is no state: others write it, and the answer stays for who waits for it.
_INPUTS = frozenset({ROLE, COMMAND, ANSWER})
#: A device's directories go with the last node in them: part of their paths, and how many there are.
_DEVICE_DIRECTORIES = {"/error/backend/": 5, "/colo/device/": 2}
#: How many directories above a domain's errors go with the last of them.
_ERRORS_DEPTH = 3
#: So many domains are published in one transaction, which is tried so often before each has its own. In
#: the C xenstored a request takes longer the more nodes its transaction has touched: more is slower again.
_TOGETHER, _ATTEMPTS = 8, 3
#: Half of what a value may have by the quotas of either xenstored (2048 bytes).
_VALUE_MAX = 1024


def published(domid: int, own_domid: int, status: DomainStatus) -> dict[str, str]:
    """Return every node that says this, path to value."""
    values = status_values(domid, status)
    if status.state in QEMU_RUNS and status.qemu_pid:
        values[f"{domain_path(domid)}/image/device-model-pid"] = str(status.qemu_pid)
        values[f"{device_model_path(domid, own_domid)}/state"] = "running"
    for devid, (state, error) in status.devices.items():
        if state is DeviceState.ERROR and error:
            values[DevicePaths(domid, devid, own_domid).error] = error
    return {path: _fitting(value) for path, value in values.items()}


def _fitting(value: str) -> str:
    """Cut a value that xenstore could refuse as too long (XSA-323: one long value stops no other)."""
    data = value.encode()
    if len(data) <= _VALUE_MAX:
        return value
    return data[: _VALUE_MAX - 3].decode("utf-8", "ignore") + "…"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


@dataclass(slots=True, eq=False)
class _Saying:
    """What is to be said of a domain, and what became of it.

    :ivar before: what was written of it last, None where nobody knows.
    :ivar emptied: what is removed, and how many directories may go with it.
    :ivar said: False if the guest went away meanwhile.
    """

    domid: int
    uuid: str | None
    state: DomainState
    values: dict[str, str]
    before: dict[str, str] | None = None
    emptied: list[tuple[str, int]] = field(default_factory=list)
    said: bool = False
    error: XenstoreError | None = None


class _ChangedError(Exception):
    """What stands is not what was said last, or the guest has gone."""


class Publisher:
    """Remembers what it wrote, so that each pass writes only the difference."""

    def __init__(self, client: Client, own_domid: int) -> None:
        self._client = client
        self._own = own_domid
        # One at a time: all transactions touch the same parents and would meet conflicts.
        self._lock = trio.Lock()
        self._waiting: list[_Saying] = []
        self._written: dict[int, dict[str, str]] = {}
        self._forgotten = 0

    def forget(self, domid: int | None = None) -> None:
        """Take nothing of a domain, or of any, for written any more: somebody removed it."""
        if domid is None:
            self._forgotten += 1  # what is under way may have been read before
            self._written.clear()
        else:
            self._written.pop(domid, None)

    async def publish(self, domid: int, status: DomainStatus, uuid: str | None) -> bool:
        """Say how a domain is; return False if it went away meanwhile.

        The domain's home is read in the same transaction: a status must not bring the directories of a
        domain that has just been destroyed to life again, nor be said of the next one under its domid.
        So is its state: where that is not as it was said, all that stands is compared with what should.
        What comes while a transaction is under way goes into the next one together.

        :param uuid: the guest's whose status it is.

        :raises XenstoreError: xenstored failed; nothing was written.
        """
        values = published(domid, self._own, status)
        if domid not in self._written:
            # What stands is read before: a transaction that reads takes longer, and others wait for it.
            forgotten, standing = self._forgotten, await self._standing(self._client, domid, values)
            if forgotten == self._forgotten:
                self._written[domid] = standing
        if self._written.get(domid) == values:
            return True
        saying = _Saying(domid, uuid, status.state, values)
        self._waiting.append(saying)
        try:
            async with self._lock:
                if saying in self._waiting:
                    await self._say_waiting()
        finally:
            if saying in self._waiting:
                self._waiting.remove(saying)
        if saying.error:
            raise saying.error
        return saying.said

    async def _say_waiting(self) -> None:
        together, self._waiting[:] = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
        if len(together) == 1 or not await self._said_at_once(together):
            for saying in together:
                await self._say_alone(saying)

    async def _said_at_once(self, together: Sequence[_Saying]) -> bool:
        """Return False if it has to be said of each alone: what is refused of one is no other's matter."""
        try:
            await self._say(together, attempts=_ATTEMPTS)
        except StoreError:
            return False
        except XenstoreError as error:
            for saying in together:
                saying.error = type(error)(*error.args)
        return True

    async def _say_alone(self, saying: _Saying) -> None:
        try:
            await self._say([saying])
        except XenstoreError as error:
            saying.error = error

    async def _say(
        self, together: Sequence[_Saying], *, attempts: int = TRANSACTION_ATTEMPTS
    ) -> None:
        """Write in one transaction what is not as it was said last.

        :raises XenstoreError: xenstored failed; nothing was written.
        """
        forgotten = self._forgotten
        for saying in together:
            saying.before = self._written.get(saying.domid)
        write = self._write_at_once if all(map(self._foreseeable, together)) else self._write
        try:
            await self._client.transaction(partial(write, together), attempts=attempts)
        except _ChangedError:
            await self._client.transaction(partial(self._write, together), attempts=attempts)
        for saying in together:
            if saying.said and forgotten == self._forgotten:
                self._written[saying.domid] = saying.values
            else:
                self._written.pop(saying.domid, None)

    def _foreseeable(self, saying: _Saying) -> bool:
        """Whether it can be known what is to be written, unless what was said last does not stand."""
        ours = self._device_model(saying.domid)
        return saying.before is not None and self._stale(saying, saying.before).isdisjoint(ours)

    async def _write_at_once(self, together: Sequence[_Saying], transaction: Transaction) -> None:
        """Read and write in one round trip, as if all stood as it was said last.

        :raises _ChangedError: it does not, or a guest has gone: what was written has to be thrown away.
        """
        asked = [self._questions(saying) for saying in together]
        changes = [r for saying in together for r in self._difference(saying, saying.before or {})]
        answers = iter(await transaction.batch([*chain.from_iterable(asked), *changes]))
        for saying, questions in zip(together, asked, strict=True):
            if not self._stands(saying, list(islice(answers, len(questions)))) or not saying.said:
                raise _ChangedError
        all_done(changes, list(answers), absent_ok=[Op.RM])
        await self._remove_emptied(together, transaction)

    async def _write(self, together: Sequence[_Saying], transaction: Transaction) -> None:
        """Read and write in a round trip each, however many domains there are."""
        asked = [self._questions(saying) for saying in together]
        answers = iter(await transaction.batch(list(chain.from_iterable(asked))))
        changes: list[Request] = []
        for saying, questions in zip(together, asked, strict=True):
            mine = list(islice(answers, len(questions)))
            changes += await self._changes(transaction, saying, mine)
        await demand(transaction, changes, absent_ok=[Op.RM])
        await self._remove_emptied(together, transaction)

    async def _remove_emptied(self, together: Sequence[_Saying], transaction: Transaction) -> None:
        """Remove directories after all is written: what another domain needs is not empty."""
        emptied = chain.from_iterable(saying.emptied for saying in together)
        await remove_with_empty_parents(transaction, emptied)

    def _questions(self, saying: _Saying) -> list[Request]:
        """Return what tells whether the guest is still there, and whether what was said is.

        No more than that: the C xenstored copies each node that a transaction reads, which takes longer the
        more its store holds.
        """
        home = domain_path(saying.domid)
        paths = [f"{home}/vm", f"{colo_path(saying.domid)}/{STATE}"]
        if saying.uuid is None:  # else there is a vm node, and with it a home
            paths.append(home)
        return [*map(requests.read, paths)]

    def _stands(self, saying: _Saying, answers: Sequence[Answer]) -> bool:
        """Take the answers, and return whether the domain's state is as it was said last."""
        vm, state, *home = map(absent_as_none, answers)
        saying.said = uuid_of(vm) == saying.uuid and home != [None]
        old = saying.before
        return old is not None and old.get(f"{colo_path(saying.domid)}/{STATE}") == _text(state)

    async def _changes(self, to: Asks, saying: _Saying, answers: Sequence[Answer]) -> list[Request]:
        """Return what makes the difference: none where the guest has gone."""
        stands = self._stands(saying, answers)
        saying.emptied = []
        if not saying.said:
            return []
        old = saying.before if stands else None
        if old is None:
            old = await self._standing(to, saying.domid, saying.values)
        kept = await self._kept(to, saying, self._stale(saying, old))
        return self._difference(saying, {path: old[path] for path in old.keys() - kept})

    def _stale(self, saying: _Saying, old: Mapping[str, str]) -> set[str]:
        return old.keys() - saying.values.keys()

    def _difference(self, saying: _Saying, old: Mapping[str, str]) -> list[Request]:
        """Return what makes of the old nodes those that are to be said."""
        stale = self._stale(saying, old)
        saying.emptied = [
            (path, depth)
            for path in stale
            for part, depth in _DEVICE_DIRECTORIES.items()
            if part in path
        ]
        changed = [(path, value) for path, value in saying.values.items() if old.get(path) != value]
        return [*map(requests.rm, sorted(stale)), *starmap(requests.write, changed)]

    async def _kept(self, to: Asks, saying: _Saying, stale: AbstractSet[str]) -> set[str]:
        """Return which nodes of the device model stay, though xencolod has none now."""
        pid, state = self._device_model(saying.domid)
        if stale.isdisjoint((pid, state)):
            return set()
        theirs, own = await self._read(to, self._pids(saying.domid))
        # Foreign is a QEMU of xencolod's own, too, that was started with another runtime directory.
        if saying.state is DomainState.FOREIGN or theirs is None or theirs != own:
            return {pid, state}
        # As libxl leaves it: it tells that a device model ran and is dead.
        return {pid} if saying.state is DomainState.FAILED else set()

    async def _standing(self, to: Asks, domid: int, values: Mapping[str, str]) -> dict[str, str]:
        """Return what stands in xenstore of all that is xencolod's to say, by an earlier one perhaps.

        :param values: what is to stand there.
        """
        base, errors = self._places(domid)
        devices = f"{base}/{DEVICE}"
        names, devids, wrong = await directories(to, [base, devices, errors])
        paths = [f"{base}/{name}" for name in names if name not in _INPUTS | {DEVICE}]
        paths += [f"{devices}/{devid}/{name}" for devid in devids for name in (STATE, ERROR)]
        paths += [f"{errors}/{devid}/{ERROR}" for devid in wrong]
        if QEMU_PID in names:
            paths += self._device_model(domid)
        found = {
            path: text
            for path, value in zip(paths, await self._read(to, paths), strict=True)
            if (text := _text(value)) is not None
        }
        # A record's name stays, for who has to know that there was one.
        record = f"{base}/{RECORD}"
        if found.get(record) != values.get(record):
            found.pop(record, None)
        return found

    def _places(self, domid: int) -> tuple[str, str]:
        """Return the directories that are xencolod's own."""
        return colo_path(domid), f"/local/domain/{self._own}/error/backend/qdisk/{domid}"

    def _device_model(self, domid: int) -> tuple[str, str]:
        """Return the nodes that libxl writes too: pid and state of the device model."""
        return (
            f"{domain_path(domid)}/image/device-model-pid",
            f"{device_model_path(domid, self._own)}/state",
        )

    def _pids(self, domid: int) -> tuple[str, str]:
        """Return where the device model's pid stands, anybody's and xencolod's: alike, it is ours."""
        return self._device_model(domid)[0], f"{colo_path(domid)}/{QEMU_PID}"

    async def _read(self, to: Asks, paths: Sequence[str]) -> list[bytes | None]:
        """Return the values of nodes, in one round trip."""
        return list(map(absent_as_none, await to.batch([*map(requests.read, paths)])))

    async def withdraw(self, domid: int) -> None:
        """Remove all that was said of a domain.

        :raises XenstoreError: xenstored failed.
        """
        base, errors = self._places(domid)
        asked = [
            *map(requests.read, (domain_path(domid), *self._pids(domid))),
            *map(requests.directory, (base, errors)),
        ]

        async def body(transaction: Transaction) -> None:
            *values, listed, wrong = await transaction.batch(asked)
            home, theirs, own = map(absent_as_none, values)
            names = set(await names_in(transaction, base, listed))
            if home is None:
                doomed = [(base, 1), (device_model_path(domid, self._own), 0)]
            elif names.isdisjoint(_INPUTS):
                doomed = [(base, 0)]
            else:
                doomed = [(f"{base}/{name}", 0) for name in names - _INPUTS]
            if await names_in(transaction, errors, wrong):
                doomed.append((errors, _ERRORS_DEPTH))
            if home is not None and theirs is not None and theirs == own:
                doomed += [(path, 1) for path in self._device_model(domid)]
            await remove_with_empty_parents(transaction, doomed)

        async with self._lock:
            await self._client.transaction(body)
            self._written.pop(domid, None)
