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
