"""Transactions of the in-memory xenstore.

As in the C xenstored 4.17 (``xenstored_transaction.c``): every write gives its node the next
generation, and a transaction commits if each node that it has accessed, missing ones and looked-at
parents included, has the generation that it had then.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from xencolo._store_tree import Change, Grant, Node, Tree
from xencolo.errors import StoreError


@dataclass(slots=True)
class _Access:
    node: Node | None
    seen: int | None
    before: tuple[Grant, ...] | None
    modified: bool = False
    #: None: watches hear nothing; else whether only exact ones do.
    fire_exact: bool | None = None


@dataclass(slots=True)
class Transaction:
    """A view in which all that was accessed stays as it was then.

    Nodes first accessed after somebody else's change may disagree with those from before it, a child
    with its parent. Xenstored then lists a child twice, here it is there once; both say EAGAIN at
    the end.
    """

    base: Tree
    number: int
    max_accesses: int | None
    accesses: dict[str, _Access] = field(default_factory=dict)
    changed_owned: dict[int, int] = field(default_factory=dict)
    created: bool = False
    failed: bool = False

    def get(self, path: str) -> Node | None:
        access = self.accesses.get(path)
        if access is None:
            access = self._access(path)
        return access.node

    def _access(self, path: str) -> _Access:
        if self.max_accesses is not None and len(self.accesses) >= self.max_accesses:
            self.failed = True
            raise StoreError(errno.ENOSPC, path=path)
        node = self.base.nodes.get(path)
        if node is None:
            access = _Access(None, None, None)
        else:
            node.shared = True
            access = _Access(node, node.generation, node.grants)
        self.accesses[path] = access
        return access

    def edit(self, path: str) -> Node:
        access, node = self._present(path)
        if not access.modified:
            node = access.node = node.copy()
            access.modified = True
        node.generation = self.base.next_generation()
        return node

    def _present(self, path: str) -> tuple[_Access, Node]:
        access = self.accesses[path]
        if access.node is None:
            raise KeyError(path)
        return access, access.node

    def add(self, path: str, node: Node) -> None:
        access = self.accesses[path]
        access.node, access.modified = node, True
        node.generation = self.base.next_generation()
        self.created = True
        self._count(node.grants[0].domid, 1)

    def delete(self, path: str) -> None:
        access, node = self._present(path)
        self._count(node.grants[0].domid, -1)
        access.node, access.modified = None, True

    def owned(self, domid: int) -> int:
        # As in xenstored, what the transaction adds is looked at when it ends.
        return self.base.owned(domid)

    def change_owner(self, old: int, new: int) -> None:
        self._count(old, -1)
        self._count(new, 1)

    def fail(self) -> None:
        self.failed = True

    def _count(self, domid: int, change: int) -> None:
        self.changed_owned[domid] = self.changed_owned.get(domid, 0) + change

    def fire(self, path: str, exact: bool) -> None:
        """Remember an event until the commit; one for children too replaces an exact one."""
        access = self.accesses[path]
        access.fire_exact = exact and access.fire_exact is not False

    def commit(self, max_owned: int | None) -> Iterator[Change]:
        """Make it so, node by node in the order of the first accesses; yields each that changed.

        As in xenstored, who may hear of a node is decided before the nodes after it are changed.

        :param max_owned: the quota of nodes, None if the caller has none.
        :raises StoreError: EAGAIN, something accessed has changed; ENOSPC, over the quota; ENOMEM,
            the transaction failed before. Nothing is changed then.
        """
        if self.failed:
            raise StoreError(errno.ENOMEM)
        if self.created and max_owned is not None and self._over(max_owned):
            raise StoreError(errno.ENOSPC)
        nodes = self.base.nodes
        for path, access in self.accesses.items():
            node = nodes.get(path)
            if (None if node is None else node.generation) != access.seen:
                raise StoreError(errno.EAGAIN)
        for domid, change in self.changed_owned.items():
            self.base.count(domid, change)
        for path, access in self.accesses.items():
            if access.modified:
                self._apply(path, access)
            # What came and went inside the transaction was never there.
            if access.fire_exact is not None and (access.node or access.before):
                yield Change(path, access.fire_exact, access.before)

    def _over(self, max_owned: int) -> bool:
        changes = self.changed_owned.items()
        return any(domid and self.base.owned(domid) + more >= max_owned for domid, more in changes)

    def _apply(self, path: str, access: _Access) -> None:
        if access.node is None:
            self.base.nodes.pop(path, None)
        else:
            access.node.generation = self.base.next_generation()
            self.base.nodes[path] = access.node
