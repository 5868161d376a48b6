"""The catalogue of the log: every event that xencolod writes, with its level, fields and meaning.

Names and meanings never change once released: monitoring is driven by them. :func:`xencolod.log.emit`
looks each event up here, so one that is not in the catalogue can't be logged.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Event(NamedTuple):
    """A row of the catalogue.

    :ivar level: ``debug``, ``info``, ``warning`` or ``error``; decides the priority in the journal.
    :ivar fields: what the event carries beside the bound ``domid``, ``devid`` and ``vdev``.
    """

    name: str
    level: str
    fields: tuple[str, ...]
    meaning: str


_EVENTS = (
    Event("daemon.started", "info", ("version", "pid", "xen"), "xencolod begins."),
    Event(
        "daemon.ready", "info", ("domains", "devices", "seconds"), "The first full pass is done."
    ),
    Event("daemon.reloaded", "info", ("config",), "The configuration was read again."),
    Event(
        "daemon.reload_failed",
        "error",
        ("config", "error"),
        "The configuration can't be used; the one before stays in force.",
    ),
    Event(
        "daemon.exhausted",
        "error",
        ("error",),
        "The host has no descriptor, memory or process to spare for what xencolod has to do; it is "
        "tried again until it has. See LimitNOFILE= of the unit.",
    ),
    Event("daemon.stopping", "info", ("signal",), "xencolod ends; QEMUs go on."),
    Event("xenstore.connected", "info", ("socket",), "Connected; everything is read anew."),
    Event("xenstore.lost", "error", ("socket", "error"), "Connection lost; retried for ever."),
    Event(
        "xenstore.empty",
        "warning",
        ("path",),
        "The store has lost what it held, or is not filled yet: `path` is absent. No QEMU is ended "
        "for what else is.",
    ),
    Event("xenstore.failed", "error", ("error",), "A request failed; the pass will be repeated."),
    Event(
        "log.full",
        "warning",
        ("lines",),
        "The log could not be written (its disk was full, its reader slow); so many lines are missing.",
    ),
    Event("embedded.listening", "info", ("socket",), "The in-memory store is served there."),
    Event("device.found", "info", ("backend", "colo"), "A disk was read."),
    Event("device.changed", "info", ("backend", "colo"), "A disk's nodes changed."),
    Event("device.gone", "info", ("backend",), "A disk's nodes are gone."),
    Event(
        "device.error",
        "error",
        ("path", "node", "kind", "error"),
        "A disk can't be read or can't be given to QEMU: `kind` is missing, wrong, untrusted, drive "
        "or image. Once for each change.",
    ),
    Event(
        "device.mended", "info", ("path", "node"), "What a device.error reported is right again."
    ),
    Event(
        "device.closed",
        "info",
        ("backend",),
        "QEMU has let go of a disk that is being removed: its backend is closed.",
    ),
    Event("device.kept", "warning", ("reason",), "QEMU does not let go of a disk that is removed."),
    Event("device.skipped", "warning", ("reason",), "QEMU does not emulate this disk."),
    Event(
        "device.suspicious",
        "warning",
        ("reason",),
        "The guest's own nodes say something else; they are not followed.",
    ),
    Event(
        "domain.state",
        "info",
        ("state", "before", "role", "error"),
        "The state of a domain changed.",
    ),
    Event("domain.gone", "info", (), "A managed domain is gone."),
    Event("domain.role_error", "error", ("path", "node", "error"), "The role node can't be used."),
    Event(
        "domain.foreign",
        "warning",
        ("reason",),
        "Somebody else runs the domain's device model; it is left alone.",
    ),
    Event("qemu.starting", "info", ("role", "attempt", "argv"), "A QEMU is started."),
    Event("qemu.running", "info", ("pid", "role", "version", "seconds"), "QEMU greeted over QMP."),
    Event("qemu.adopted", "info", ("pid", "role"), "A QEMU of an earlier xencolod was taken over."),
    Event(
        "qemu.start_failed",
        "warning",
        ("attempt", "attempts", "pause", "error"),
        "A QEMU did not come up; tried again after `pause` seconds.",
    ),
    Event("qemu.failed", "error", ("error",), "QEMU is given up until something changes."),
    Event("qemu.died", "error", ("pid", "status", "error"), "A QEMU ended that should run."),
    Event("qemu.ending", "info", ("pid", "reason"), "QEMU is asked to quit."),
    Event("qemu.signalled", "warning", ("pid", "signal"), "QEMU did not quit in time."),
    Event("qemu.ended", "info", ("pid", "seconds"), "QEMU ended, as it should."),
    Event("qemu.event", "debug", ("qmp_event", "data"), "QEMU said something over QMP."),
    Event("qemu.qmp_lost", "warning", ("error",), "The QMP connection to a living QEMU broke."),
    Event(
        "replication.state",
        "info",
        ("state", "before", "role", "cause", "generation", "peer", "error"),
        "The state of a domain's replication changed; `cause` is the event of the table.",
    ),
    Event(
        "replication.step",
        "debug",
        ("cause", "role", "state"),
        "A row of the replication's table is being walked: the event `cause` in this role and state.",
    ),
    Event(
        "replication.unexpected",
        "error",
        ("cause", "state", "role", "error"),
        "An event that the state does not expect; nothing was done.",
    ),
    Event(
        "replication.failed",
        "error",
        ("action", "cause", "error"),
        "An action of replication failed; the table says what follows.",
    ),
    Event(
        "replication.refused",
        "error",
        ("error",),
        "The domain can't replicate as it is described. Once for each change.",
    ),
    Event(
        "replication.superseded",
        "error",
        ("generation", "other", "peer"),
        "Another host runs this domain as primary in a later generation: this one refuses to be it.",
    ),
    Event(
        "replication.bypassed",
        "error",
        ("vdevs",),
        "The guest's PV driver writes to these disks, past the quorum; nothing is replicated.",
    ),
    Event(
        "replication.peer_lost",
        "error",
        ("peer", "error"),
        "The other side's daemon is gone or silent. A secondary takes over by command only.",
    ),
    Event(
        "replication.released",
        "info",
        ("peer",),
        "A secondary that could not be reached when it was detached has been told now.",
    ),
    Event(
        "replication.unreachable",
        "warning",
        ("peer", "error"),
        "The secondary can't be reached, or refuses; tried again. Once for each reason.",
    ),
    Event(
        "resync.started",
        "info",
        ("peer", "total", "generation"),
        "The disks are being copied to the secondary; bytes.",
    ),
    Event(
        "resync.needed",
        "warning",
        ("peer", "reason"),
        "Somebody said that the disks are equal, and they are not: they are copied.",
    ),
    Event(
        "resync.skipped",
        "warning",
        ("peer", "generation"),
        "The disks were not copied: the operator said that they are equal.",
    ),
    Event(
        "resync.progress",
        "info",
        ("done", "total", "rate", "left"),
        "How far the copy is: bytes, bytes per second, seconds.",
    ),
    Event(
        "resync.done",
        "info",
        ("seconds", "paused", "generation"),
        "Both hosts' disks are equal and replicate; the guest stood for `paused` seconds.",
    ),
    Event(
        "checkpoint.done",
        "info",
        ("number", "seconds", "paused", "generation"),
        "Both sides took a checkpoint; the guest stood for `paused` seconds.",
    ),
    Event("checkpoint.taken", "debug", ("number",), "This secondary took a checkpoint."),
    Event(
        "checkpoint.settled",
        "warning",
        ("generation",),
        "The primary stayed away: the session is over, and the last checkpoint outlives QEMU and host.",
    ),
    Event(
        "checkpoint.kept",
        "warning",
        ("generation",),
        "A settled disk was made the checkpoint itself, after its QEMU had ended.",
    ),
    Event(
        "failover.started",
        "warning",
        ("generation", "cause"),
        "This secondary takes over, in this generation.",
    ),
    Event("failover.step", "info", ("step", "seconds"), "One step of a failover is done."),
    Event(
        "failover.done",
        "warning",
        ("generation", "seconds"),
        "Promoted: all that was buffered is on the disks.",
    ),
    Event(
        "failover.recovered",
        "warning",
        ("generation",),
        "A disk was made whole after a failover that its QEMU did not survive.",
    ),
    Event("failover.fencing", "warning", ("command", "peer"), "The fencing command is run."),
    Event(
        "failover.fencing_failed",
        "error",
        ("command", "error"),
        "The fencing command did not succeed: this secondary does not take over.",
    ),
    Event("images.made", "info", ("path",), "An active or hidden image was made anew, empty."),
    Event("command.taken", "info", ("command",), "A command was taken from its node."),
    Event("command.done", "info", ("command", "answer"), "A command was carried out."),
    Event("command.failed", "error", ("command", "error"), "A command could not be carried out."),
    Event(
        "link.listening",
        "info",
        ("address", "port", "encrypted"),
        "Other hosts' daemons are answered there.",
    ),
    Event(
        "link.unavailable",
        "error",
        ("error",),
        "No other host's daemon is answered: there are no keys, or the port is taken. Tried again.",
    ),
    Event(
        "link.insecure",
        "warning",
        (),
        "Link and replication go without keys, as link.unencrypted_and_unauthenticated says: whoever "
        "reaches the ports can read and write the disks. At each start.",
    ),
    Event(
        "link.keys_expiring",
        "warning",
        ("file", "expires", "days"),
        "The keys will hold for so many days only: make others and copy them to each host.",
    ),
    Event(
        "link.connected",
        "info",
        ("peer", "uuid", "name"),
        "Another host's daemon was welcomed for a domain.",
    ),
    Event(
        "link.refused",
        "warning",
        ("peer", "error", "unlogged"),
        "Somebody connected and did not get as far as a hello. At most one a second; `unlogged` "
        "counts those before it that were not written.",
    ),
    Event(
        "link.lost",
        "warning",
        ("peer", "uuid", "kind", "error"),
        "A welcomed daemon is gone: `kind` is closed, silent or wrong.",
    ),
    Event("qemu.qmp_back", "info", (), "A QEMU whose QMP had broken talks again."),
    Event("backend.considered", "debug", ("reason",), "Why a backend was or was not chosen."),
    Event(
        "reconcile.done",
        "debug",
        ("domains", "devices", "seconds"),
        "A pass read these, and what should be was compared with what is.",
    ),
)

CATALOGUE: Mapping[str, Event] = {event.name: event for event in _EVENTS}
