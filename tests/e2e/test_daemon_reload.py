"""SIGHUP under running QEMUs."""

import signal

from tests.e2e.host import XVDB, Host, argv_of


def reload(host: Host) -> None:
    mark = host.mark()
    host.signal(signal.SIGHUP)
    host.event("daemon.reloaded", since=mark)
    host.barrier()


def test_another_form_of_the_same_drives_replaces_no_qemu(host: Host) -> None:
    host.start()
    disk, pid = host.running(5)
    assert "-drive" not in argv_of(pid)
    for form in ("2016", "blockdev", "2016"):
        host.configure(qemu={"form": form})
        reload(host)
        assert host.qemus(5) == [pid]
        host.state(5, "running")
    # An adopted one is left alone as well.
    host.kill()
    host.start()
    host.barrier()
    assert host.qemus(5) == [pid]
    # Once its drives change it is replaced by one in the new form.
    host.store.attach(host.disk(5, "xvdb", XVDB, colo=False))
    host.event("qemu.ended", pid=pid)
    words = argv_of(host.published(5))
    assert words.count("-drive") == 2
    assert "-blockdev" not in words
    assert host.has_open(5, disk.image)
