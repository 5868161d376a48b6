"""A primary's disks in QEMU: connected to the secondary's, mirrored to them, attached, detached."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import trio

from xencolo.errors import QmpCommandError, ReplicationError
from xencolo.graph import Form, nbd_node, peer_node, quorum_node
from xencolo.observed import Attachment
from xencolod.blocks import NOT_RUNNING, Blocks, Graph, Mark

# Seconds for QEMU to connect. It goes on trying for as long where there is no hope too, the keys being
# wrong for example, and the guest waits.
_OPEN = 2

#: The host name in the certificate of either end.
_TLS_HOSTNAME = "xencolo"


class Progress(NamedTuple):
    """Of the mirror jobs of all disks.

    :ivar done: bytes copied.
    :ivar total: bytes to copy; grows while the guest writes.
    :ivar ready: every secondary disk is equal by now, and kept equal.
    :ivar failed: which disk's job failed or is gone, and QEMU's words.
    """

    done: int
    total: int
    ready: bool
    failed: str | None


class PrimaryBlocks(Blocks):
    """The disks of a primary, or of a secondary that was promoted."""

    async def observe(self) -> Attachment:
        """Return how far the disks are attached.

        A secondary that died is noticed by the first write only: until then it is ATTACHED. Not so where the
        guest stands for a checkpoint that nobody ended: the secondary may yet take it, of what comes after.
        """
        graph = await self._graph()
        jobs = await self._jobs()
        session = (await self.marked()).session
        wanted = {name(devid) for devid in self._disks for name in (nbd_node, peer_node)}
        if not jobs and not session and not wanted & graph.nodes:
            return Attachment.CLEAN
        attached = wanted <= graph.nodes and len(self._places(graph)) == len(self._disks)
        whole = attached and session and not jobs
        if whole and not await self.stands() and not await self.fault():
            return Attachment.ATTACHED
        return Attachment.PARTIAL

    def _places(self, graph: Graph) -> dict[int, tuple[str, str]]:
        """Return of each disk that is attached the quorum, and the secondary's place in it."""
        places = {edge.child: (edge.parent, edge.name) for edge in graph.edges}
        return {d: places[peer_node(d)] for d in self._disks if peer_node(d) in places}

    def _top(self, devid: int) -> str:
        """Return the name of the quorum; the text of 2016 gave it none but the drive's."""
        if self._form is Form.BLOCKDEV:
            return quorum_node(devid)
        return str(self._disks[devid].colo_export)

    # -- connecting -------------------------------------------------------------------------------

    async def connect(self, host: str, port: int) -> None:
        """Reach every disk of the secondary over NBD, all or none; what is reached already is left alone.

        While QEMU connects everything else in it waits, the guest too, for minutes where packets are
        dropped, and ``yank`` ends it only when it is connected. So a server is greeted from here first.

        :raises ReplicationError: nobody listens there, it does not speak NBD or not our TLS, or it
            lacks an export.
        """
        missing = await self._without(nbd_node)
        if not missing:
            return
        where = f"the secondary's NBD server at {host} port {port}"
        try:
            with trio.fail_after(self._timeout):
                await _greet(host, port)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            why = _kernel_words(error) or f"it was silent for {self._timeout:g} s"
            remedy = "look for a firewall, and at what the xencolod there says"
            raise ReplicationError(f"{where} can't be reached, {why}: {remedy}") from None
        try:
            await self._connect(missing, host, port)
        except QmpCommandError as error:
            await self._delete(nbd_node)
            await self._drop_tls("client")
            raise ReplicationError(f"{where} does not serve: {error.description}") from None

    async def _without(self, name: Callable[[int], str]) -> list[int]:
        nodes = (await self._graph()).nodes
        return [devid for devid in self._disks if name(devid) not in nodes]

    async def _connect(self, devids: Iterable[int], host: str, port: int) -> None:
        tls = await self._tls("client")
        if tls:
            tls["tls-hostname"] = _TLS_HOSTNAME
        how = {
            "driver": "nbd",
            "server": {"type": "inet", "host": host, "port": str(port)},
            "open-timeout": _OPEN,
            **tls,
        }
        for devid in devids:
            node = {"node-name": nbd_node(devid), "export": self._disks[devid].colo_export}
            await self._do("blockdev-add", **how, **node)

    async def cut(self) -> None:
        """End the NBD connections at once; what QEMU waits for from the secondary fails.

        Out of band, so it works while QEMU hangs in a ``stop``, which then ends. The nodes stay, and every
        write to them fails; the status tells so after the first one. A QEMU before 6.0 has no yank, and no
        connection of ours.
        """
        names = {nbd_node(devid) for devid in self._disks}
        # yank refuses all of a list with an unknown one
        try:
            known = await self._qmp.execute("query-yank", timeout=self._timeout, oob=True)
        except QmpCommandError as error:
            if error.error_class == "CommandNotFound":
                return
            raise
        ours = [instance for instance in known if instance.get("node-name") in names]
        await self._qmp.execute("yank", {"instances": ours}, timeout=self._timeout, oob=True)

    async def writes(self) -> int:
        """Return how many writes the guest has made to the disks since QEMU started."""
        tops = {self._top(devid) for devid in self._disks}
        return sum(
            entry["stats"]["wr_operations"] + entry["stats"]["unmap_operations"]
            for entry in await self._do("query-blockstats")
            if tops & {entry.get("node-name"), entry.get("device")}
        )

    # -- mirroring --------------------------------------------------------------------------------

    async def mirror(self, speed: int) -> None:
        """Start copying every disk whole; a job that is there already is left alone, failed or not.

        The jobs stay after their end until they are dismissed, so that a failure can't be missed.

        :param speed: bytes/s for each disk, 0 for no limit.
        """
        jobs = await self._jobs()
        for devid in self._disks:
            if devid not in jobs:
                await self._do(
                    "blockdev-mirror",
                    device=self._top(devid),
                    target=nbd_node(devid),
                    sync="full",
                    speed=speed,
                    **{"job-id": _job(devid), "auto-dismiss": False},
                )

    async def progress(self) -> Progress:
        """Return how far the mirrors of all disks are.

        One whose secondary died fails at its next write, which a limit of speed delays.
        """
        jobs = await self._jobs()
        return Progress(
            sum(job["offset"] for job in jobs.values()),
            sum(job["len"] for job in jobs.values()),
            len(jobs) == len(self._disks) and all(job["ready"] for job in jobs.values()),
            self._failure(jobs),
        )

    def _failure(self, jobs: dict[int, Any]) -> str | None:
        for devid, disk in self._disks.items():
            if devid not in jobs:
                return f"{disk.vdev}: it is not being mirrored"
            if error := jobs[devid].get("error"):
                return f"{disk.vdev}: {error}"
        return None

    async def finish_mirror(self) -> None:
        """End the mirrors at a moment when both sides are equal; the guest is paused.

        A job that is cancelled when it is ready copies what is left and ends without an error; any
        other end has one.

        :raises ReplicationError: a disk was not ready, its copying failed, or it has no mirror.
        """
        jobs = await self._jobs()
        late = [d for d, job in jobs.items() if not job["ready"] and job["status"] != "concluded"]
        if late:
            raise ReplicationError(f"{self._disks[late[0]].vdev} is not copied yet: wait for it")
        for devid, job in jobs.items():
            if job["status"] in _CANCELLABLE:
                await self._do("block-job-cancel", device=_job(devid))
        await self._until(self._copied, "end the mirrors")
        for devid in jobs:
            await self._do("job-dismiss", id=_job(devid))

    async def _copied(self) -> bool:
        jobs = await self._jobs()
        if failure := self._failure(jobs):
            raise ReplicationError(failure)
        return all(job["status"] == "concluded" for job in jobs.values())

    async def _jobs(self) -> dict[int, Any]:
        names = {_job(devid): devid for devid in self._disks}
        jobs = await self._do("query-block-jobs")
        return {names[job["device"]]: job for job in jobs if job["device"] in names}

    # -- attaching --------------------------------------------------------------------------------

    async def attach(self) -> None:
        """Have every write go to the secondary too, from now on.

        A secondary that is dead already is noticed by the first write only. Enabling twice QEMU refuses
        ("Block replication is running or done"), so it is told once, when it says that nothing runs.

        :raises ReplicationError: a write failed meanwhile.
        """
        graph = await self._graph()
        attached = self._places(graph)
        for devid in self._disks:
            node = {"node-name": peer_node(devid), "file": nbd_node(devid)}
            if peer_node(devid) not in graph.nodes:
                await self._do("blockdev-add", driver="replication", mode="primary", **node)
            if devid not in attached:
                top = self._top(devid)
                await self._do("x-blockdev-change", parent=top, node=peer_node(devid))
        if await self.fault() == NOT_RUNNING:
            await self._do("xen-set-replication", enable=True, primary=True)
        if error := await self.fault():
            raise ReplicationError(f"the secondary was lost while it was attached: {error}")

    async def detach(self, *, cut: bool) -> None:
        """Go back to disks without a secondary, from any state.

        The replication need not be disabled: deleting its node stops it.

        :param cut: end the connections first, for a secondary that may be silent.
        :raises ReplicationError: a job did not end.
        """
        if cut:
            await self.cut()
        await self._until(self._end_jobs, "end the mirrors")
        for quorum, place in self._places(await self._graph()).values():
            await self._do("x-blockdev-change", parent=quorum, child=place)
        await self._delete(peer_node)
        await self._delete(nbd_node)
        await self._drop_tls("client")
        await self.mark(Mark())

    async def _end_jobs(self) -> bool:
        jobs = await self._jobs()
        for devid, job in jobs.items():
            if job["status"] == "concluded":
                await self._do("job-dismiss", id=_job(devid))
            elif job["status"] in _CANCELLABLE:
                await self._cancel(devid)
        return not jobs

    async def _cancel(self, devid: int) -> None:
        try:
            await self._do("block-job-cancel", device=_job(devid), force=True)
        except QmpCommandError:
            # it may have ended by itself meanwhile
            job = (await self._jobs()).get(devid)
            if job and job["status"] in _CANCELLABLE:
                raise

    async def _delete(self, name: Callable[[int], str]) -> None:
        nodes = (await self._graph()).nodes
        for devid in self._disks:
            if name(devid) in nodes:
                await self._do("blockdev-del", **{"node-name": name(devid)})


async def _greet(host: str, port: int) -> None:
    """Have an NBD server's first words, and take leave of it.

    :raises OSError, trio.BrokenResourceError: nobody listens, or it is no NBD server.
    """
    async with await trio.open_tcp_stream(host, port) as stream:
        said = await stream.receive_some(len(_NBD_GREETING))
        if said != _NBD_GREETING:
            raise ConnectionError("what listens there is no NBD server")
        await stream.send_all(_NBD_LEAVE)


def _kernel_words(error: BaseException) -> str:
    """Return what is behind trio's "all attempts to connect failed", of the first address."""
    cause = error.__cause__
    return str(cause.exceptions[0] if isinstance(cause, ExceptionGroup) else error)


# NBD's fixed newstyle negotiation: the server's magics and flags; the client's flags, and NBD_OPT_ABORT.
_NBD_GREETING = b"NBDMAGICIHAVEOPT\0\3"
_NBD_LEAVE = b"\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0"


# What QEMU can cancel; the rest is on its way to an end.
_CANCELLABLE = {"created", "running", "paused", "ready", "standby"}


def _job(devid: int) -> str:
    return f"resync-{devid}"
