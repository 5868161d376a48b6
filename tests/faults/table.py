"""All faults, in the order in which they are made."""

from tests.faults import daemons, nodes, qemus, quotas, resources, stores
from tests.faults.trial import Fault

FAULTS = (
    Fault("xenstored killed, filled again at once", stores.killed_full, 40, 2),
    Fault("xenstored killed, empty for a while", stores.killed_empty, 40, 1),
    Fault("oxenstored killed, empty for a while", stores.oxenstored_killed, 20, 0),
    Fault("xenstored killed while it replicates", stores.killed_replicating, 20),
    Fault("nodes damaged, in memory", nodes.in_memory, 1_000_000, 600),
    Fault("nodes damaged, under xencolod", nodes.with_daemon, 400, 5),
    Fault("transactions that meet conflicts", quotas.conflicts, 5),
    Fault("a guest's quota used up, xenstored", quotas.guest_full_xenstored, 5),
    Fault("a guest's quota used up, oxenstored", quotas.guest_full_oxenstored, 5),
    Fault("no room for the state", resources.no_room_for_state, 10),
    Fault("no room for the images", resources.no_room_for_images, 10),
    Fault("no room for the log", resources.no_room_for_the_log, 10),
    Fault("no descriptors left", resources.no_descriptors, 20),
    Fault("the clock set back", resources.clock_set_back, 5),
    Fault("QEMU ends at its start, ten times", qemus.ends_at_its_start, 5),
    Fault("QEMU stopped", qemus.stopped, 10),
    Fault("a secondary's QEMU stopped", qemus.secondary_stopped, 5, 0),
    Fault("xencolod killed under load, replicating", daemons.killed, 200, 2),
)
