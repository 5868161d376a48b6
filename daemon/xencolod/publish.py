"""Writes what is into xenstore: only what changed, and never for a domain that is gone."""

from collections.abc import Sequence

import trio

from xencolo import requests
from xencolo.paths import DevicePaths, colo_path, device_model_path, domain_path
from xencolo.plan import uuid_of
from xencolo.status import (
    ANSWER,
    COMMAND,
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
from xencolod.devices import remove_with_empty_parents
from xencolod.xenstore import (
    Asks,
    Client,
    Transaction,
    absent_as_none,
    demand,
    directories,
    directory,
)

#: What is no state: others write it, and the answer stays for who waits for it.
_INPUTS = frozenset({ROLE, COMMAND, ANSWER})
#: A device's directories go with the last node in them: part of their paths, and how many there are.
_DEVICE_DIRECTORIES = {"/error/backend/": 5, "/colo/device/": 2}
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


class Publisher:
    """Remembers what it wrote, so that each pass writes only the difference."""

    def __init__(self, client: Client, own_domid: int) -> None:
        self._client = client
        self._own = own_domid
        # One domain at a time: all transactions touch the same parents and would meet conflicts.
        self._lock = trio.Lock()
        self._written: dict[int, dict[str, str]] = {}

    def forget(self, domid: int | None = None) -> None:
        """Take nothing of a domain, or of any, for written any more: somebody removed it."""
        if domid is None:
            self._written.clear()
        else:
            self._written.pop(domid, None)

    async def publish(self, domid: int, status: DomainStatus, uuid: str | None) -> bool:
        """Say how a domain is; return False if it went away meanwhile.

        The domain's home is read in the same transaction: a status must not bring the directories of a
        domain that has just been destroyed to life again, nor be said of the next one under its domid.
        So is its state: a domain that was destroyed and has come back has none, and all is said again.

        :param uuid: the guest's whose status it is.

        :raises XenstoreError: xenstored failed; nothing was written.
        """
        values = published(domid, self._own, status)
        before = self._written.get(domid)
        if before == values:
            return True
        pid, state = self._device_model(domid)
        said = f"{colo_path(domid)}/{STATE}"

        async def body(transaction: Transaction) -> bool:
            places = [domain_path(domid), f"{domain_path(domid)}/vm", said, *self._pids(domid)]
            home, vm, standing, theirs, own = await self._read(transaction, places)
            if home is None or uuid_of(vm) != uuid:
                return False
            kept: set[str] = set()
            # Foreign is a QEMU of xencolod's own, too, that was started with another runtime directory.
            if status.state is DomainState.FOREIGN or theirs is None or theirs != own:
                kept = {pid, state}
            elif status.state is DomainState.FAILED:
                # As libxl leaves it: it tells that a device model ran and is dead.
                kept = {pid}
            old = before
            if old is None or standing is None:
                # A record's name stays, for who has to know that there was one.
                await self._clear(transaction, domid, kept=_INPUTS | {RECORD})
                old = dict.fromkeys((pid, state), "")
            stale = [path for path in old if path not in values and path not in kept]
            changed = [
                requests.write(path, value)
                for path, value in values.items()
                if old.get(path) != value
            ]
            await demand(transaction, [*map(requests.rm, stale), *changed], absent_ok=[Op.RM])
            await self._prune(transaction, stale)
            return True

        async with self._lock:
            if done := await self._client.transaction(body):
                self._written[domid] = values
            else:
                self._written.pop(domid, None)
        return done

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

    async def _clear(
        self, transaction: Transaction, domid: int, *, kept: frozenset[str] = _INPUTS
    ) -> None:
        """Remove what was said in places of xencolod's own."""
        base = colo_path(domid)
        errors = f"/local/domain/{self._own}/error/backend/qdisk/{domid}"
        names, wrong = await directories(transaction, [base, errors])
        doomed = [requests.rm(f"{base}/{name}") for name in names if name not in kept]
        await demand(transaction, doomed, absent_ok=[Op.RM])
        if wrong:
            await remove_with_empty_parents(transaction, errors, depth=3)

    async def _prune(self, transaction: Transaction, stale: list[str]) -> None:
        for path in stale:
            for part, depth in _DEVICE_DIRECTORIES.items():
                if part in path:
                    await remove_with_empty_parents(transaction, path, depth=depth)

    async def withdraw(self, domid: int) -> None:
        """Remove all that was said of a domain.

        :raises XenstoreError: xenstored failed.
        """
        base = colo_path(domid)

        async def body(transaction: Transaction) -> None:
            places = [domain_path(domid), *self._pids(domid)]
            home, theirs, own = await self._read(transaction, places)
            await self._clear(transaction, domid)
            if home is None:
                await remove_with_empty_parents(transaction, base, depth=1)
                await remove_with_empty_parents(
                    transaction, device_model_path(domid, self._own), depth=0
                )
                return
            if not await directory(transaction, base):
                await demand(transaction, [requests.rm(base)], absent_ok=[Op.RM])
            if theirs is not None and theirs == own:
                for path in self._device_model(domid):
                    await remove_with_empty_parents(transaction, path, depth=1)

        async with self._lock:
            await self._client.transaction(body)
            self._written.pop(domid, None)
