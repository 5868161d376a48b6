"""What all replicators share: the records, the keys, and the answering end of the link."""

import trio

from xencolo import link, requests
from xencolo.disk import Role
from xencolo.errors import ConfigError, KeysError, LinkSilent, ReplicationError
from xencolo.link import refusal
from xencolo.paths import domain_path
from xencolo.plan import uuid_of
from xencolo.requests import absent_as_none
from xencolo.status import role_path
from xencolod.asks import Asks, ask
from xencolod.keys import qemu_credentials
from xencolod.listener import Peer, serve_link
from xencolod.log import emit
from xencolod.records import Records
from xencolod.replicator import Replicator
from xencolod.security import Security, security_of
from xencolod.supervisor import Settings
from xencolod.transaction import Transaction
from xencolod.xenstore import Client

#: Keys that were missing, or a port that was taken, are looked at again after this many seconds.
_AGAIN = 5.0


class Hub:
    """The replicators of this host, found by their domain's uuid.

    :ivar settings: the daemon's.
    :ivar records: of all domains.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self.settings = settings
        self.records = Records(settings.config.daemon.state_directory)
        self._client = client
        self._security: Security | None = None
        self._credentials: str | None = None
        self._replicators: dict[int, Replicator] = {}
        self._reloaded = trio.Event()
        self._said: str | None = None

    # -- for the replicators -------------------------------------------------------------------------

    def security(self) -> Security:
        """Return how the link is secured; the key file is read when it is needed first.

        :raises KeysError: there are no keys to be used; with the remedy.
        """
        if self._security is None:
            config = self.settings.config
            security = security_of(config.link)
            if security.keys:
                directory = config.daemon.runtime_directory
                self._credentials = qemu_credentials(config.link.keys, directory)
            self._security = security
        return self._security

    def credentials(self) -> str | None:
        """Return the directory of QEMU's TLS credentials, None for the plain mode.

        :raises KeysError: there are no keys to be used; with the remedy.
        """
        self.security()
        return self._credentials

    async def has_role(self, domid: int, uuid: str, role: Role) -> bool:
        """Return whether the role node of the domain of this uuid says this now.

        :raises ReplicationError: the domid has come to another domain.
        :raises XenstoreError: xenstored failed.
        """
        return await _role(self._client, domid, uuid) == role.encode()

    async def set_role(self, domid: int, uuid: str, role: Role) -> None:
        """Write the role node, unless the domid has come to another domain.

        :raises ReplicationError: it has.
        :raises XenstoreError: xenstored failed.
        """

        async def body(transaction: Transaction) -> None:
            await _role(transaction, domid, uuid)
            await ask(transaction, requests.write(role_path(domid), role))

        await self._client.transaction(body)

    def add(self, replicator: Replicator) -> None:
        """Have a domain's requests answered."""
        self._replicators[replicator.domid] = replicator

    def remove(self, domid: int) -> None:
        """Answer for a domain no more."""
        self._replicators.pop(domid, None)

    def reload(self) -> None:
        """Read the keys again; a link that has the same ones goes on.

        One that can't be read any more changes nothing: what runs was let in by the one before.
        """
        before, self._security = self._security, None
        credentials = self._credentials
        try:
            same = before is not None and self.security().keys == before.keys
        except KeysError as error:
            emit(self.settings.log, "link.unavailable", error=str(error))
            same = before is not None
        if same:
            self._security, self._credentials = before, credentials
        else:
            self._reloaded.set()

    # -- the link ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer other hosts' daemons for ever; as soon as there are keys, and on the port as it is had."""
        while True:
            self._reloaded = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                await self._reloaded.wait()
                nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        config = self.settings.config.link
        while True:
            try:
                security = self.security()
                self._said = None
                await serve_link(
                    config.listen,
                    config.port,
                    security,
                    self._answer,
                    self.settings.log,
                    timeout=config.timeout,
                    on_gone=self._gone,
                )
            except (ConfigError, KeysError) as error:
                if str(error) != self._said:
                    self._said = str(error)
                    emit(self.settings.log, "link.unavailable", error=self._said)
            await trio.sleep(_AGAIN)

    def _of(self, uuid: str) -> list[Replicator]:
        found = self._replicators.values()
        return [r for r in found if r.performer.record and r.performer.record.uuid == uuid]

    async def _answer(self, request: link.Request, peer: Peer) -> link.Reply:
        """Answer for the one domain that the peer's hello named."""
        match self._of(peer.hello.uuid):
            case [replicator]:
                return await replicator.answering.answer(request, peer)
            case []:
                return refusal("domain", f"no COLO domain with uuid {peer.hello.uuid} is here")
            case several:
                domids = ", ".join(str(r.domid) for r in several)
                reason = f"several domains here have the uuid {peer.hello.uuid}: {domids}"
                return refusal("domain", reason)

    def _gone(self, peer: Peer) -> None:
        silent = isinstance(peer.lost, LinkSilent)
        for replicator in self._of(peer.hello.uuid):
            replicator.answering.gone(peer, str(peer.lost), silent=silent)


async def _role(to: Asks, domid: int, uuid: str) -> bytes | None:
    """Return what the role node holds.

    :raises ReplicationError: the domid has come to another domain.
    :raises XenstoreError: xenstored failed.
    """
    asked = map(requests.read, (f"{domain_path(domid)}/vm", role_path(domid)))
    vm, role = map(absent_as_none, await to.batch([*asked]))
    # A store that has lost what it held knows of none.
    if (uuid_of(vm) or uuid).lower() != uuid:
        raise ReplicationError(f"domain {domid} is not {uuid} any more")
    return role
