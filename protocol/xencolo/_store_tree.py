"""The tree of the in-memory xenstore: nodes, permissions, quotas.

The semantics are those of the C xenstored 4.17 (``xenstored_core.c``).
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from xencolo.errors import StoreError

READ, WRITE, OWNER = 1, 2, 4
_ALL = READ | WRITE | OWNER
_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_LETTER_OF = {mask: letter for letter, mask in _LETTERS.items()}


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a guest may take (dom0 may take anything); the defaults are xenstored's.

    :ivar nodes: nodes that a domain owns.
    :ivar entry_size: bytes of one node: header, permissions, value, names of the children.
    :ivar watches: one more than this is taken, as in xenstored.
    :ivar transactions: at once; one more than this is taken, as in xenstored.
    :ivar permissions: entries of one node.
    :ivar accesses: nodes that one transaction may look at.
    :ivar path: bytes of a path, what is before the domain's own part not counted; dom0 too.
    """

    nodes: int = 1000
    entry_size: int = 2048
    watches: int = 128
    transactions: int = 10
    permissions: int = 5
    accesses: int = 1024
    path: int = 2048


class Caller(NamedTuple):
    """On whose behalf something is done; the target's rights count too (SET_TARGET)."""

    domid: int
    target: int | None = None

    def rights(self, grants: tuple["Grant", ...]) -> int:
        """Return READ, WRITE and OWNER as far as they are granted."""
        owner = grants[0]
        if self.domid in (0, owner.domid) or self.target == owner.domid:
            return _ALL
        for grant in grants[1:]:
            if not grant.stale and grant.domid in (self.domid, self.target):
                return grant.mask
        return owner.mask


class Grant(NamedTuple):
    """One entry of a node's permissions; a stale one is of a domain that is gone."""

    mask: int
    domid: int
    stale: bool = False

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.mask]}{self.domid}"


_GRANT = re.compile(r"([nrwb])(\d{1,9})", re.ASCII)


def parse_grants(parts: list[bytes]) -> tuple[Grant, ...]:
    """Return the permissions of a SET_PERMS request.

    :raises StoreError: EINVAL, an entry is none.
    """
    matches = [_GRANT.fullmatch(part.decode("latin-1")) for part in parts]
    grants = tuple(Grant(_LETTERS[match[1]], int(match[2])) for match in matches if match)
    if not grants or len(grants) != len(matches):
        raise StoreError(errno.EINVAL)
    return grants


# What xenstored keeps besides a node's data: it counts against the quota of an entry.
_HEADER_SIZE, _GRANT_SIZE = 24, 8


class Node:
    """A node; ``shared`` says that a transaction looks at this very object: copy before writing."""

    __slots__ = ("children", "generation", "grants", "shared", "value")

    def __init__(
        self,
        value: bytes,
        grants: tuple[Grant, ...],
        children: dict[str, None] | None = None,
        generation: int = 0,
    ) -> None:
        self.value = value
        self.grants = grants
        # A dict because listings keep the order of creation.
        self.children: dict[str, None] = {} if children is None else children
        self.generation = generation
        self.shared = False

    def copy(self) -> "Node":
        return Node(self.value, self.grants, dict(self.children), self.generation)


def parent_of(path: str) -> str:
    """Return the parent's path; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def child_of(path: str, name: str) -> str:
    """Return the path of a child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


class View(Protocol):
    """The tree, or a transaction's view of it."""

    def get(self, path: str) -> Node | None:
        """Return the node, to be looked at only."""

    def edit(self, path: str) -> Node:
        """Return a node that was looked at before, to be changed."""

    def add(self, path: str, node: Node) -> None:
        """Put a node where none was."""

    def delete(self, path: str) -> None:
        """Take away a node that was looked at before."""

    def owned(self, domid: int) -> int:
        """Return how many nodes count against the domain's quota."""

    def change_owner(self, old: int, new: int) -> None:
        """Count a node for another domain."""

    def fail(self) -> None:
        """Hear that a write was refused half way: a transaction can't be committed any more."""


class Tree:
    """The nodes themselves, by their absolute path."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._owned: dict[int, int] = {}
        self.generation = 0
        own = (Grant(0, 0),)
        for path in ("/", "/tool", "/tool/xenstored"):
            self.add(path, Node(b"", own))
        self.nodes["/"].children["tool"] = None
        self.nodes["/tool"].children["xenstored"] = None

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def get(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def edit(self, path: str) -> Node:
        node = self.nodes[path]
        if node.shared:
            node = self.nodes[path] = node.copy()
        node.generation = self.next_generation()
        return node

    def add(self, path: str, node: Node) -> None:
        node.generation = self.next_generation()
        self.nodes[path] = node
        self.count(node.grants[0].domid, 1)

    def delete(self, path: str) -> None:
        node = self.nodes.pop(path)
        self.generation += 1
        self.count(node.grants[0].domid, -1)

    def owned(self, domid: int) -> int:
        return self._owned.get(domid, 0)

    def change_owner(self, old: int, new: int) -> None:
        self.count(old, -1)
        self.count(new, 1)

    def fail(self) -> None:
        """Without a transaction nothing is half written."""

    def count(self, domid: int, change: int) -> None:
        """Count nodes for a domain."""
        self._owned[domid] = self._owned.get(domid, 0) + change


class Change(NamedTuple):
    """What watches hear of: ``exact`` if only watches on this very path do.

    :ivar before: the permissions that the node had; None if it was not there.
    """

    path: str
    exact: bool
    before: tuple[Grant, ...] | None


def _rights_above(view: View, caller: Caller, path: str) -> int:
    node = None
    while node is None:
        path = parent_of(path)
        node = view.get(path)
    return caller.rights(node.grants)


def look_up(view: View, caller: Caller, path: str, need: int) -> Node:
    """Return the node if the caller has all the rights that are needed.

    :raises StoreError: ENOENT, or EACCES where the caller may not even know that.
    """
    node = view.get(path)
    if node is None:
        # Asked of dom0 too: in a transaction it makes the parent one of the accessed nodes.
        above = _rights_above(view, caller, path)
        raise StoreError(errno.ENOENT if above & need else errno.EACCES, path=path)
    if caller.rights(node.grants) & need != need:
        _rights_above(view, caller, path)  # xenstored asks for them, so they are accessed
        raise StoreError(errno.EACCES, path=path)
    return node


def _check_size(view: View, caller: Caller, path: str, node: Node, quotas: Quotas) -> None:
    if not caller.domid:
        return
    names = sum(map(len, node.children)) + len(node.children)
    size = _HEADER_SIZE + _GRANT_SIZE * len(node.grants) + len(node.value) + names
    if size >= quotas.entry_size:
        view.fail()
        raise StoreError(errno.ENOSPC, path=path)


def alter(
    view: View,
    caller: Caller,
    path: str,
    quotas: Quotas,
    *,
    value: bytes | None = None,
    grants: tuple[Grant, ...] | None = None,
) -> None:
    """Give a node that was looked up another value, or other permissions.

    :raises StoreError: ENOSPC, a guest's node would be too big; nothing is changed then.
    """
    old = look_up(view, caller, path, WRITE)
    wanted = Node(
        old.value if value is None else value,
        old.grants if grants is None else grants,
        old.children,
    )
    _check_size(view, caller, path, wanted, quotas)
    view.change_owner(old.grants[0].domid, wanted.grants[0].domid)
    node = view.edit(path)
    node.value, node.grants = wanted.value, wanted.grants


def create(view: View, caller: Caller, path: str, value: bytes, quotas: Quotas) -> None:
    """Make a node and the parents that it lacks; permissions come from the nearest parent.

    :raises StoreError: ENOSPC, over a guest's quota; nothing is made then.
    """
    missing, parent_path = [path], parent_of(path)
    while (parent := view.get(parent_path)) is None:
        missing.append(parent_path)
        parent_path = parent_of(parent_path)
    grants = parent.grants
    names = [name.rpartition("/")[2] for name in missing]
    if caller.domid:
        grants = (grants[0]._replace(domid=caller.domid), *grants[1:])
        if view.owned(caller.domid) + len(missing) > quotas.nodes:
            raise StoreError(errno.ENOSPC, path=path)
        _check_size(view, caller, path, Node(value, grants), quotas)
        grown = Node(parent.value, parent.grants, parent.children | {names[-1]: None})
        _check_size(view, caller, parent_path, grown, quotas)
    view.edit(parent_path).children[names[-1]] = None
    for i in range(len(missing) - 1, 0, -1):
        view.add(missing[i], Node(b"", grants, {names[i - 1]: None}))
    view.add(path, Node(value, grants))


def remove(view: View, path: str) -> Iterator[Change]:
    """Take away a node and all below it; yields each before it goes, children first.

    :raises StoreError: EIO or EINVAL, parent and child disagree: the transaction read one of them
        before, the other after somebody else's change. Its commit will say EAGAIN.
    """
    above, name = parent_of(path), path.rpartition("/")[2]
    if (parent := view.get(above)) is None:
        raise StoreError(errno.EINVAL, path=path)
    yield from _remove_below(view, path, path)
    if name not in parent.children:
        raise StoreError(errno.EIO, path=path)
    del view.edit(above).children[name]


def _remove_below(view: View, path: str, root: str) -> Iterator[Change]:
    node = view.get(path)
    if node is None:
        raise StoreError(errno.EIO, path=path)
    for name in list(node.children):
        yield from _remove_below(view, child_of(path, name), root)
    yield Change(path, path != root, node.grants)
    view.delete(path)


def forget_domain(tree: Tree, domid: int) -> Iterator[Change]:
    """Take away what a gone domain owned, and what others granted to it (XSA-322)."""
    owned = [path for path, node in tree.nodes.items() if node.grants[0].domid == domid]
    for path in sorted(owned):
        if path in tree.nodes:
            yield from remove(tree, path)
    for node in tree.nodes.values():
        if any(grant.domid == domid for grant in node.grants):
            node.grants = tuple(
                grant._replace(stale=True) if grant.domid == domid else grant
                for grant in node.grants
            )
