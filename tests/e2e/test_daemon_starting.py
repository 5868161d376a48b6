"""Changes while a QEMU starts, before it can run a guest."""

from pathlib import Path

import pytest

from tests.e2e.host import XVDB, Host, until

#: A QEMU that starts when it is told to.
HELD = """#!/bin/sh
while [ ! -e {go} ]; do sleep 0.01; done
exec qemu-system-x86_64 "$@"
"""


@pytest.fixture
def go(host: Host, tmp_path: Path) -> Path:
    """The file that lets QEMU start."""
    wrapper, file = tmp_path / "qemu-held", tmp_path / "go"
    wrapper.write_text(HELD.format(go=file))
    wrapper.chmod(0o755)
    # As on Xen: what has run is never replaced.
    host.configure(qemu={"binary": str(wrapper), "restart": False, "memory": 64})
    host.start()
    return file


def test_a_disk_that_is_added_meanwhile_is_not_left_out(host: Host, go: Path) -> None:
    first = host.domain(5)
    host.event("qemu.starting", domid=5, attempt=1)
    second = host.disk(5, "xvdb", XVDB)
    host.store.attach(second)
    host.event("device.found", domid=5, devid=XVDB)
    host.barrier()
    go.touch()
    host.state(5, "running")
    assert host.has_open(5, first.image, second.image)
    assert [e["pid"] for e in host.events("qemu.running")] == host.qemus(5)


def test_a_domain_that_goes_meanwhile(host: Host, go: Path) -> None:
    host.domain(5)
    host.event("qemu.starting", domid=5)
    host.store.destroy(5)
    host.event("device.gone", domid=5)
    go.touch()
    host.event("qemu.ended")
    until(lambda: not host.qemus(5), "the QEMU of a domain that has gone ends")
    assert not host.events("qemu.running")
    assert not host.store.exists("/libxl/5")
