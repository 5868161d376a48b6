"""The real xenstore servers, run without Xen: see ``servers``."""

from tests.rigs.servers import Server, start_oxenstored, start_xenstored

__all__ = ["Server", "start_oxenstored", "start_xenstored"]
