"""What a xenstore answers: one table for the in-memory store and for both real servers.

Payloads are written as in Xen's docs/misc/xenstore.txt: ``|`` is a NUL. ``#`` at the start of an
answer stands for a whole number that only the server knows. Where oxenstored answers differently the
row says how and why, and that is asserted as well.

Not here, because the servers' answer is not theirs to decide: READ and its like with a payload that is
not one string (C: whatever errno held before; the in-memory store: EINVAL), and requests without any
payload, which oxenstored answers when the next one comes.
"""

from tests.e2e.store_rows_guests import GUESTS
from tests.e2e.store_rows_nodes import LISTINGS, NODES
from tests.e2e.store_rows_transactions import TRANSACTIONS
from tests.e2e.store_rows_watches import DOMAINS, WATCHES

SCENARIOS = (*NODES, *LISTINGS, *TRANSACTIONS, *WATCHES, *DOMAINS, *GUESTS)
