"""Two hosts with a network between them that can go silent: packets are dropped, and nobody is told."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.host import Images
from tests.e2e.site import DOMID, Member, site

#: TEST-NET-1: nobody's, and of no other namespace.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Network:
    """A cable between two network namespaces, in which nothing but it can be reached."""

    def __init__(self) -> None:
        self.names = tuple(f"xencolo-{os.getpid()}-{end}" for end in "ab")

    def lay(self) -> None:
        """Connect the two."""
        here, there = self.names
        _ip(
            *("link", "add", "eth0", "netns", here, "type", "veth"),
            *("peer", "eth0", "netns", there),
        )
        for name, address in zip(self.names, _ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            # What is dropped is so before it is found to be this host's.
            _ip("-n", name, "rule", "add", "pref", "100", "lookup", "local")
            _ip("-n", name, "rule", "del", "pref", "0")

    @contextmanager
    def silent(self, port: int | None = None) -> Iterator[None]:
        """Drop what is sent, or only what is sent to a TCP port; connections stay as they are."""
        which = () if port is None else ("ipproto", "tcp", "dport", str(port))
        for name in self.names:
            _ip("-n", name, "rule", "add", "pref", "1", "iif", "eth0", *which, "blackhole")
        try:
            yield
        finally:
            for name in self.names:
                _ip("-n", name, "rule", "del", "pref", "1")


@contextmanager
def apart(directory: Path, images: Images) -> Iterator[tuple[Network, list[Member]]]:
    """Yield two hosts in network namespaces of their own, nothing started on them yet."""
    network = Network()
    with ExitStack() as stack:
        for name in network.names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        network.lay()
        members = stack.enter_context(site(directory, images))
        for name, address, member in zip(network.names, _ADDRESSES, members, strict=True):
            assert member.port_of(DOMID)  # looked for where a test can listen
            member.address = address
            member.within = ("nsenter", f"--net=/run/netns/{name}")
            member.set()
        yield network, members
