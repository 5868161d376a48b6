"""The life of a replicated disk for the reference page: its diagram, and what its words mean."""

from collections.abc import Iterator, Mapping

from xencolo.disk import Role
from xencolo.replication import TABLE, Event, Place

#: What may happen in every state and would hide the rest: told in words below the diagram.
_LEFT_OUT: Mapping[Event, str] = {
    Event.QEMU_GONE: "leads from every state to `launching` of the same role",
    Event.REFUSED: "leads from every state but `failing-over` to `failed`",
    Event.SUPERSEDED: "leads from every state of a primary to `failed`",
    Event.ACTION_FAILED: "leads from `resyncing` and `replicating` to `degraded`, where a primary stays "
    "then; from every other state to `failed`",
    Event.QEMU_ERROR: "leads from `resyncing` and `replicating` to `degraded`, from `launching` to "
    "`failed`",
}

#: What each event tells.
EVENT_MEANINGS: Mapping[Event, str] = {
    Event.CLEAN: "QEMU was found without anything of replication",
    Event.ATTACHED: "a primary's QEMU was found attached, in a session",
    Event.PARTIAL: "QEMU was found halfway, as a killed xencolod leaves it",
    Event.SERVING: "a secondary's QEMU was found to export its disks",
    Event.IN_SESSION: "a secondary's QEMU was found replicating",
    Event.SPENT: "a secondary's QEMU was found with a replication that has ended",
    Event.UNFINISHED: "the record tells of a failover that is not known to have ended",
    Event.TAKEN_OVER: "the QEMU of a promoted domain was found, with no other host to reach for",
    Event.QEMU_GONE: "QEMU ended, or the connection to it",
    Event.QEMU_ERROR: "QEMU reports an error in its replication or mirroring, or was asked in vain",
    Event.DISK_FAILED: "a primary's own disk refused a write that its secondary has",
    Event.PEER_READY: "the secondary was reached, and has to be resynced",
    Event.PEER_EQUAL: "the secondary was reached, and somebody said that the disks are equal",
    Event.PEER_AGREES: "both sides are in the same session and go on with it",
    Event.PEER_LOST: "the connection to the other host's xencolod ended",
    Event.PEER_SILENT: "the other host does not answer any more, or was not back in time",
    Event.ABANDONED: "the primary was not back in time: its session is over",
    Event.PEER_PREPARES: "the primary begins a session",
    Event.PEER_STARTS: "the primary wants replication to start",
    Event.PEER_CHECKPOINTS: "the primary wants a checkpoint; its guest stands",
    Event.PEER_DETACHES: "the primary has left the session by the operator's command",
    Event.SUPERSEDED: "another host was promoted: it has a later generation",
    Event.CHECKPOINT: "the operator, or the configured interval, wants a checkpoint",
    Event.DETACH: "the operator wants the primary to go on alone",
    Event.FAILOVER: "the operator wants the secondary to take over from its last checkpoint",
    Event.FORCE_FAILOVER: "the operator wants it to take over with whatever is on its disks",
    Event.FENCED: "the configured fencing command has made sure that the primary is dead",
    Event.REFUSED: "the nodes, or the record, forbid to replicate",
    Event.BYPASSED: "the guest's PV driver writes past the quorum",
    Event.ACCEPTED: "nothing forbids it any more",
    Event.MIRRORED: "every disk of the secondary is equal",
    Event.ACTION_FAILED: "an action failed, or it is not known whether it did",
    Event.TORN: "QEMU refused a checkpoint that some of several disks may have taken",
    Event.RETRY: "it is time to try again what failed",
}


def diagram() -> str:
    """Return the states by role and what leads from one to the other, as a Mermaid state diagram."""
    arrows: dict[Role, list[str]] = {Role.PRIMARY: [], Role.SECONDARY: []}
    across: list[str] = []
    for (start, end), events in _arrows().items():
        line = f"{_node(start)} --> {_node(end)}" + (f": {', '.join(events)}" if events else "")
        (arrows[start.role] if start.role is end.role else across).append(line)
    lines = ["stateDiagram-v2"]
    for role, inside in arrows.items():
        names = [f'state "{p.state}" as {_node(p)}' for p in _places() if p.role is role]
        lines += [
            f"    state {role} {{",
            *(f"        {line}" for line in (*names, *inside)),
            "    }",
        ]
    return "\n".join([*lines, *(f"    {line}" for line in across)]) + "\n"


def _arrows() -> dict[tuple[Place, Place], list[Event]]:
    arrows: dict[tuple[Place, Place], list[Event]] = {}
    for (role, state, event), after in TABLE.items():
        start = Place(role, state)
        if start == after.then or event in _LEFT_OUT:
            continue
        # A promotion goes on for long enough to be seen.
        seen = after.then if after.then.role is role else Place(role, after.during)
        arrows.setdefault((start, seen), []).append(event)
        if seen != after.then:
            arrows[seen, after.then] = []
    return arrows


def _places() -> list[Place]:
    return list(dict.fromkeys(Place(role, state) for role, state, _ in TABLE))


def _node(place: Place) -> str:
    return f"{place.role}_{place.state}".replace("-", "_")


def life() -> Iterator[str]:
    """Yield the part of the reference page, Markdown."""
    yield f"\n```mermaid\n{diagram()}```\n\nNot drawn, for they would hide the rest:\n\n"
    yield from (f"- `{event}` {where}.\n" for event, where in _LEFT_OUT.items())
    yield "\n| event | meaning |\n| --- | --- |\n"
    yield from (f"| `{event}` | {EVENT_MEANINGS[event]} |\n" for event in Event)
    yield "\nWhat is done, in this order, when an event comes:\n\n"
    yield "| role | state | event | shown meanwhile | actions | state after |\n"
    yield "| --- | --- | --- | --- | --- | --- |\n"
    for (role, state, event), done in TABLE.items():
        after = done.then.state if done.then.role is role else " ".join(done.then)
        actions = "; ".join(done.actions) or "none"
        yield f"| {role} | `{state}` | `{event}` | `{done.during}` | {actions} | `{after}` |\n"
