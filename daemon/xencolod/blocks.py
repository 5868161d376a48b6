"""What QEMU is asked for the replication of a domain's disks: idempotent steps; nothing here decides.

Each step looks at what QEMU has (nodes, exports, jobs, markers) and does what is missing, so the one who
takes over from a killed daemon repeats it. Seen on QEMU 7.2, and written down at each step: what QEMU
answers in odd moments. It needs :data:`xencolo.plan.REPLICATING_QEMU` (``tls-hostname`` and
``open-timeout`` of an nbd node). No
command waits longer than the deadline; one that is late raises QmpClosed, QEMU may still perform it, and
the connection can be used further.

A disk of the other host that does not answer hangs QEMU as a whole: ``stop`` and ``blockdev-del`` wait
for it, and no further command is taken but out of band
(:meth:`xencolod.primary_blocks.PrimaryBlocks.cut`).
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import trio

from xencolo.disk import Disk
from xencolo.errors import ReplicationError
from xencolo.graph import Form
from xencolod.qmp import Qmp

_SESSION = "xencolo-session-"
_CHECKPOINT = "xencolo-checkpoint-"
_LAST = re.compile(rf"{_CHECKPOINT}(\d{{1,18}})-(\d{{1,18}})", re.ASCII)
_PAUSED = "xencolo-paused"

#: What QEMU says of a replication that was not started.
NOT_RUNNING = "Block replication is not running"

#: Seconds between two looks at what QEMU does by itself, at first and at most: the guest may stand meanwhile.
_LOOK = 0.001, 0.05


class Edge(NamedTuple):
    """A node or job or device (``parent``), the part that the child plays in it, and the child."""

    parent: str
    name: str
    child: str


class Graph(NamedTuple):
    """Every block node's name, and how nodes, jobs and devices hang together."""

    nodes: set[str]
    edges: list[Edge]


class Mark(NamedTuple):
    """What a QEMU is told of its replication; it forgets it when it ends.

    :ivar session: that it is in.
    :ivar number: of the last checkpoint, 0 before the first.
    :ivar seconds: when that was taken, since the epoch.
    """

    session: str | None = None
    number: int = 0
    seconds: int | None = None


class Blocks:
    """The COLO disks in one QEMU, whatever the role.

    A new one for each QMP connection costs nothing.

    :param disks: the domain's COLO disks.
    :param form: how QEMU was given them.
    :param timeout: seconds for each command, and for each thing that QEMU is waited for.
    :param credentials: directory of QEMU's ``tls-creds-x509``; None: NBD neither encrypted nor authenticated.
    """

    def __init__(
        self,
        qmp: Qmp,
        disks: Sequence[Disk],
        form: Form,
        *,
        timeout: float,
        credentials: str | None,
    ) -> None:
        self._qmp = qmp
        self._disks = {disk.devid: disk for disk in disks}
        self._form = form
        self._timeout = timeout
        self._credentials = credentials

    # -- the guest --------------------------------------------------------------------------------

    async def pause(self) -> bool:
        """Stop the guest if it runs, marked as stopped by the daemon; return whether it is so marked.

        QEMU's ``stop`` flushes every disk, so it hangs while a secondary does.
        """
        marked = _PAUSED in await self._objects()
        if (await self._do("query-status"))["running"]:
            if not marked:
                await self._add_marker(_PAUSED)
            await self._do("stop")
            return True
        return marked  # once more, ``stop`` would flush every disk once more

    async def resume(self) -> None:
        """Let the guest run again if it was stopped by :meth:`pause`.

        A guest that has meanwhile shut down, or stopped at an error, stays so.
        """
        if _PAUSED in await self._objects():
            if (await self._do("query-status"))["status"] == "paused":
                await self._do("cont")
            await self._remove(_PAUSED)

    async def stands(self) -> bool:
        """Return whether the guest stands since :meth:`pause`."""
        marked = _PAUSED in await self._objects()
        return marked and not (await self._do("query-status"))["running"]

    async def flush(self) -> None:
        """Have all that QEMU holds in memory written; a guest that runs goes on after it.

        ``stop`` flushes every node, in a guest that does not run and was never started too, and leaves its
        state. It says nothing of a flush that fails.
        """
        held = _PAUSED in await self._objects()
        if not held and await self.pause():
            await self.resume()
        else:
            await self._do("stop")

    # -- markers ----------------------------------------------------------------------------------

    async def marked(self) -> Mark:
        """Return what this QEMU was told."""
        names = await self._objects()
        session = [name.removeprefix(_SESSION) for name in names if name.startswith(_SESSION)]
        if not session:
            return Mark()
        # Two are there where a daemon was killed in between.
        taken = [(int(m[1]), int(m[2])) for m in map(_LAST.fullmatch, names) if m]
        return Mark(session[0], *max(taken, default=()))

    async def mark(self, mark: Mark) -> None:
        """Note in QEMU the session that it is in, and its last checkpoint."""
        wanted = set(_markers(mark))
        found = {name for name in await self._objects() if name.startswith((_SESSION, _CHECKPOINT))}
        for name in wanted - found:
            await self._add_marker(name)
        for name in found - wanted:
            await self._remove(name)

    async def _objects(self) -> set[str]:
        return {item["name"] for item in await self._do("qom-list", path="/objects")}

    async def _add_marker(self, name: str) -> None:
        # the lightest object that there is in every QEMU; it holds no secret
        await self._do("object-add", **{"qom-type": "secret", "id": name, "data": "-"})

    async def _remove(self, name: str) -> None:
        await self._do("object-del", id=name)

    # -- the replication --------------------------------------------------------------------------

    async def fault(self) -> str | None:
        """Return what QEMU says is wrong with the replication of any disk.

        Not started, it is "Block replication is not running"; a primary's is "I/O error occurred" from the
        first write that did not reach the secondary on, not before; a secondary's knows nothing of its
        primary's end. A secondary's is an I/O error while it fails over, and none after that.
        """
        status = await self._do("query-xen-replication-status")
        return str(status.get("desc", "no reason given")) if status["error"] else None

    async def checkpoint(self) -> None:
        """Take a checkpoint in this QEMU: a secondary empties its buffers, a primary does nothing.

        Not started, a secondary refuses ("Backup job was cancelled unexpectedly"); one that failed over
        does nothing and says success.
        """
        await self._do("xen-colo-do-checkpoint")

    # -- QEMU -------------------------------------------------------------------------------------

    async def _do(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - JSON
        return await self._qmp.execute(command, arguments, timeout=self._timeout)

    async def _graph(self) -> Graph:
        graph = await self._do("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return Graph(
            {node["name"] for node in graph["nodes"] if node["type"] == "block-driver"},
            [Edge(names[e["parent"]], e["name"], names[e["child"]]) for e in graph["edges"]],
        )

    async def _until(self, check: Callable[[], Awaitable[bool]], what: str) -> None:
        """Look until it is so; ReplicationError at the deadline."""
        deadline = trio.current_time() + self._timeout
        pause, longest = _LOOK
        while not await check():
            if trio.current_time() > deadline:
                raise ReplicationError(f"QEMU did not {what} within {self._timeout:g} s")
            await trio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _tls(self, endpoint: str) -> dict[str, str]:
        """Make the credentials anew from their files; return the argument that names them."""
        await self._drop_tls(endpoint)
        if self._credentials is None:
            return {}
        name = _tls_id(endpoint)
        arguments = {"qom-type": "tls-creds-x509", "id": name, "endpoint": endpoint}
        await self._do("object-add", **arguments, dir=self._credentials, **{"verify-peer": True})
        return {"tls-creds": name}

    async def _drop_tls(self, endpoint: str) -> None:
        if _tls_id(endpoint) in await self._objects():
            await self._remove(_tls_id(endpoint))


def _markers(mark: Mark) -> Iterator[str]:
    if mark.session:
        yield _SESSION + mark.session
    if mark.session and mark.number:
        yield f"{_CHECKPOINT}{mark.number}-{mark.seconds or 0}"


def _tls_id(endpoint: str) -> str:
    return f"xencolo-tls-{endpoint}"
