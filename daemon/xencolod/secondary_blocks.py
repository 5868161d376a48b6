"""A secondary's disks in QEMU: exported to the primary, replicating, and failed over."""

from enum import Enum

from xencolo.disk import Disk
from xencolo.errors import CommitError, QmpCommandError, ReplicationError
from xencolo.graph import replication_node
from xencolo.observed import Service
from xencolod.blocks import Blocks, Graph


class _Stage(Enum):
    """Where the replication of one disk is; UNCOMMITTED: its commit ended by an error."""

    NONE = "none"
    RUNNING = "running"
    STOPPED = "stopped"
    UNCOMMITTED = "uncommitted"
    COMMITTED = "committed"


def _stage(graph: Graph, devid: int, disk: Disk) -> _Stage:
    """Return what the children of the replication node tell.

    Started, it holds the hidden disk too, and the secondary disk through the filter of its backup job,
    which saves what the primary overwrites. Stopped, it holds the secondary disk itself, and the active
    commit that a failover begins, a job with that for its target, ends with its file being that. QEMU says
    nothing of one that failed, and begins no other.
    """
    node = replication_node(devid)
    child = {edge.name: edge.child for edge in graph.edges if edge.parent == node}
    if child.get("file") == disk.colo_export:
        return _Stage.COMMITTED
    if "secondary disk" not in child:
        return _Stage.NONE
    if child["secondary disk"] != disk.colo_export:
        return _Stage.RUNNING
    targets = {edge.child for edge in graph.edges if edge.name == "target"}
    return _Stage.STOPPED if disk.colo_export in targets else _Stage.UNCOMMITTED


class SecondaryBlocks(Blocks):
    """The disks of a QEMU that was started as a secondary."""

    async def observe(self) -> Service:
        """Return what the disks are doing; a running replication counts, exported or not."""
        stages = await self._stages()
        if stages == {_Stage.RUNNING}:
            return Service.REPLICATING
        if stages != {_Stage.NONE}:
            return Service.SPENT
        exported = await self._exported()
        if exported and len(exported) < len(self._disks):
            return Service.PARTIAL
        return Service.SERVING if exported else Service.FRESH

    async def _stages(self) -> set[_Stage]:
        graph = await self._graph()
        return {_stage(graph, devid, disk) for devid, disk in self._disks.items()}

    async def _exported(self) -> set[int]:
        exports = {
            export["id"]
            for export in await self._do("query-block-exports")
            if not export["shutting-down"]
        }
        return {devid for devid in self._disks if _export(devid) in exports}

    # -- serving ----------------------------------------------------------------------------------

    async def serve(self, host: str, port: int) -> None:
        """Start the NBD server and export every disk by its colo-export, all or none.

        Where all are exported already it is left as it is, wherever it listens and with whatever keys.

        :raises QmpCommandError: the port is taken ("Failed to find an available port"), the host is not
            one of this machine's, the credentials can't be used.
        """
        if await self.serves():
            return
        # a server without exports can't be seen
        await self.unserve()
        try:
            await self._serve(host, port)
        except QmpCommandError:
            await self.unserve()
            raise

    async def serves(self) -> bool:
        """Whether every disk is exported."""
        return len(await self._exported()) == len(self._disks)

    async def _serve(self, host: str, port: int) -> None:
        address = {"type": "inet", "data": {"host": host, "port": str(port)}}
        await self._do("nbd-server-start", addr=address, **await self._tls("server"))
        for devid, disk in self._disks.items():
            export = {"id": _export(devid), "node-name": disk.colo_export, "name": disk.colo_export}
            await self._do("block-export-add", type="nbd", writable=True, **export)

    async def unserve(self) -> None:
        """Stop the NBD server, which ends the exports and every connection."""
        try:
            await self._do("nbd-server-stop")
        except QmpCommandError as error:
            if error.description != "NBD server not running":
                raise
        await self._drop_tls("server")

    # -- replicating ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the replication of every disk.

        QEMU refuses a disk that is not exported ("The secondary disk doesn't have block backend") and one
        whose active or hidden disk is not as long as the secondary disk. What it started before the
        refusal goes on: SPENT. Active and hidden disks that are not empty it empties.

        :raises ReplicationError: not every disk is exported, or a replication ran here before.
        :raises QmpCommandError: QEMU refused it.
        """
        service = await self.observe()
        if service is Service.REPLICATING:
            return
        if service is not Service.SERVING:
            raise ReplicationError(
                f"the replication can't be started, the secondary's disks are {service.value}: "
                f"serve a fresh QEMU's disks first"
            )
        await self._do("xen-set-replication", enable=True, primary=False)

    async def failover(self) -> None:
        """Drop the primary's writes since the last checkpoint and begin to commit what the guest wrote.

        The one way to stop a secondary: without ``failover`` QEMU fails in between ("Backup job was cancelled
        unexpectedly") and neither empties nor keeps anything. With it, it says success even if nothing
        was started, so that is looked at here. Again, it does nothing.

        :raises ReplicationError: no replication runs, or not one of each disk.
        :raises CommitError: it did already, and could not commit.
        """
        stages = await self._stages()
        if _Stage.NONE in stages:
            raise ReplicationError(
                "there is nothing to fail over to: the replication of a disk was never started"
            )
        _check_commit(stages)
        await self.unserve()
        await self._do("xen-set-replication", enable=False, primary=False, failover=True)
        if _Stage.RUNNING in await self._stages():
            raise ReplicationError(
                f"QEMU did not fail over: {await self.fault() or 'without a reason'}"
            )

    async def committed(self) -> bool:
        """Whether every disk is only its secondary disk, all that the guest wrote in it.

        :raises CommitError: one will never be, in this QEMU.
        """
        stages = await self._stages()
        _check_commit(stages)
        return stages == {_Stage.COMMITTED}


def _check_commit(stages: set[_Stage]) -> None:
    if _Stage.UNCOMMITTED in stages:
        raise CommitError(
            "QEMU could not write into the disk what its guest wrote: look whether its file system is full; "
            "the disk is made whole before the domain's next QEMU starts"
        )


def _export(devid: int) -> str:
    return f"export-{devid}"
