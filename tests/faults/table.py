"""All faults, in the order in which they are made."""

from tests.faults import daemons, nodes, stores
from tests.faults.trial import Fault

FAULTS = (
    Fault("xenstored killed, filled again at once", stores.killed_full, 40, 2),
    Fault("xenstored killed, empty for a while", stores.killed_empty, 40, 1),
    Fault("nodes damaged, in memory", nodes.in_memory, 1_000_000, 2000),
    Fault("nodes damaged, under xencolod", nodes.with_daemon, 400, 8),
    Fault("xencolod killed under load, replicating", daemons.killed, 200, 2),
)
