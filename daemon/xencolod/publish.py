"""Writes what is into xenstore: only what changed, and never for a domain that is gone."""

from xencolo import requests
from xencolo.paths import DevicePaths, colo_path, device_model_path, domain_path
from xencolo.requests import Request
from xencolo.status import DeviceState, DomainState, DomainStatus, status_values
from xencolo.wire import PAYLOAD_MAX, Op
from xencolod.devices import remove_with_empty_parents
from xencolod.xenstore import Client, Transaction, absent_as_none, demand, directory

#: What the daemon does not write itself below ``colo``.
_INPUTS = frozenset({"role"})


def published(domid: int, own_domid: int, status: DomainStatus) -> dict[str, str]:
    """Return every node that says this, path to value."""
    values = status_values(domid, status)
    if status.state in {DomainState.RUNNING, DomainState.OUTDATED} and status.qemu_pid:
        values[f"{domain_path(domid)}/image/device-model-pid"] = str(status.qemu_pid)
        values[f"{device_model_path(domid, own_domid)}/state"] = "running"
    for devid, (state, error) in status.devices.items():
        if state is DeviceState.ERROR and error:
            values[DevicePaths(domid, devid, own_domid).error] = error
    return {path: _fitting(path, value) for path, value in values.items()}


def _fitting(path: str, value: str) -> str:
    """Cut a value that xenstore would refuse as too long (XSA-323: one long value stops no other)."""
    room = PAYLOAD_MAX - len(path) - 1
    data = value.encode()
    return value if len(data) <= room else data[: room - 3].decode("utf-8", "ignore") + "…"


class Publisher:
    """Remembers what it wrote, so that each pass writes only the difference."""

    def __init__(self, client: Client, own_domid: int) -> None:
        self._client = client
        self._own = own_domid
        self._written: dict[int, dict[str, str]] = {}

    def forget(self) -> None:
        """Take nothing for written any more: the store may be another one."""
        self._written.clear()

    async def publish(self, domid: int, status: DomainStatus) -> bool:
        """Say how a domain is; return False if it went away meanwhile.

        The domain's home is read in the same transaction: a status must not bring the directories of a
        domain that has just been destroyed to life again.

        :raises XenstoreError: xenstored failed; nothing was written.
        """
        values = published(domid, self._own, status)
        before = self._written.get(domid)
        if before == values:
            return True
        keep_pid = status.state is DomainState.FAILED

        async def body(transaction: Transaction) -> bool:
            answers = await transaction.batch([requests.read(domain_path(domid))])
            if absent_as_none(answers[0]) is None:
                return False
            old = before
            if old is None:
                old = await self._clear(transaction, domid)
            stale = [path for path in old if path not in values]
            if keep_pid:  # as libxl leaves it: it tells that a device model ran and is dead
                stale = [path for path in stale if not path.endswith("/device-model-pid")]
            changed = [
                requests.write(path, value)
                for path, value in values.items()
                if old.get(path) != value
            ]
            await demand(transaction, [*map(requests.rm, stale), *changed], absent_ok=[Op.RM])
            await self._prune_errors(transaction, stale)
            return True

        if done := await self._client.transaction(body):
            self._written[domid] = values
        else:
            self._written.pop(domid, None)
        return done

    async def _clear(self, transaction: Transaction, domid: int) -> dict[str, str]:
        """Remove what an earlier xencolod left; return nothing as written."""
        base = colo_path(domid)
        names = await directory(transaction, base)
        doomed = [f"{base}/{name}" for name in names if name not in _INPUTS]
        doomed.append(f"{device_model_path(domid, self._own)}/state")
        errors = f"/local/domain/{self._own}/error/backend/qdisk/{domid}"
        batch: list[Request] = [*map(requests.rm, doomed)]
        await demand(transaction, batch, absent_ok=[Op.RM])
        await remove_with_empty_parents(transaction, errors, depth=2)
        return {}

    async def _prune_errors(self, transaction: Transaction, stale: list[str]) -> None:
        for path in stale:
            if "/error/backend/" in path:
                await remove_with_empty_parents(transaction, path.removesuffix("/error"), depth=3)

    async def withdraw(self, domid: int) -> None:
        """Remove all that was said of a domain.

        :raises XenstoreError: xenstored failed.
        """
        base = colo_path(domid)

        async def body(transaction: Transaction) -> None:
            await self._clear(transaction, domid)
            home = await transaction.batch([requests.read(domain_path(domid))])
            if absent_as_none(home[0]) is None:
                await remove_with_empty_parents(transaction, base, depth=1)
                await remove_with_empty_parents(
                    transaction, device_model_path(domid, self._own), depth=0
                )
                return
            pid = f"{domain_path(domid)}/image/device-model-pid"
            if pid in self._written.get(domid, {}):
                await demand(transaction, [requests.rm(pid)], absent_ok=[Op.RM])

        await self._client.transaction(body)
        self._written.pop(domid, None)


