"""What stands in xenstore of a replicated domain, as a program that watches it sees it."""

import pytest

from tests.e2e.host import end, until
from tests.e2e.site import COLO, DOMID, UUID, Member, frozen, listening, replicating


class Watcher:
    """A program that is told of every change below a domain's directory."""

    def __init__(self, member: Member) -> None:
        self._store = member.store
        self._monitor = member.store.client.monitor()
        self._monitor.watch(COLO.encode(), b"watcher")
        self.changed()

    def changed(self) -> list[str]:
        """Return the paths that were written or removed since the last call."""
        self._store.read(COLO)  # what happened before is told before the answer
        events = self._monitor.events
        return [events.get_nowait()[0].decode() for _ in range(events.qsize())]


@pytest.mark.walks("secondary degraded peer-prepares", "primary replicating qemu-gone")
def test_what_outlives_a_qemu_is_not_touched_at_its_end(two: list[Member]) -> None:
    a, b = two
    replicating(a, b)
    watcher = Watcher(b)
    for member in (a, b):
        marks = [each.mark() for each in two]
        end(member.qemu(DOMID))
        a.event("resync.done", since=marks[0])
        b.walks("secondary listening peer-starts", since=marks[1])
        for each in two:
            each.is_("replicating")
    mark = b.mark()
    a.stop()
    b.is_("degraded")
    end(a.qemu(DOMID))
    a.start()
    b.walks("secondary degraded peer-prepares", since=mark)
    for each in two:
        each.is_("replicating")
    changed = watcher.changed()
    assert f"{COLO}/state" in changed
    assert not {COLO, f"{COLO}/generation", f"{COLO}/record"} & set(changed)


def comes_back(b: Member) -> None:
    """Create the domain anew, with all that it had; its daemon sees nothing in between."""
    with frozen(b.pid):
        b.store.create(DOMID, identity=UUID)
        for disk in b.disks:
            b.store.attach(disk, role="secondary")


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "while its QEMU ends"])
def test_a_domain_that_comes_back_at_once_is_published_whole(two: list[Member], seen: bool) -> None:
    b = two[1]
    b.set(qemu={"quit_timeout": 0.5, "term_timeout": 0.1})
    listening(b)
    before, pid = b.store.tree(COLO), b.qemu(DOMID)
    assert before[f"{COLO}/generation"] == "1"
    if seen:
        with frozen(pid):
            b.store.destroy(DOMID)
            b.event("qemu.ending")
            b.barrier()
            comes_back(b)
    else:
        with frozen(b.pid):
            b.store.destroy(DOMID)
            comes_back(b)
    until(lambda: not seen or b.qemus(DOMID) not in ([pid], []), "there is another QEMU")
    after = before | {f"{COLO}/qemu-pid": str(b.qemu(DOMID))}
    until(lambda: b.store.tree(COLO) == after, f"all of it is published: {after}")
