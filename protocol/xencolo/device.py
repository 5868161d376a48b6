"""A device read back from its nodes, by the table in :mod:`xencolo.nodes`.

Reading believes the toolstack's copy, ``/libxl/<D>/device/vbd/<devid>``: a backend may live in a
driver domain (XSA-178) and the guest owns its frontend (XSA-175). The backend's own nodes must say the
same.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from xencolo import requests
from xencolo.disk import COLO_FIELDS, Disk, Format
from xencolo.errors import (
    DiskError,
    MissingNode,
    NodeError,
    PathError,
    StoreError,
    UntrustedNode,
    VdevError,
    WireError,
    WrongNode,
)
from xencolo.nodes import BACKEND_NODES, LIBXL_NODES, Fields, Need, Node
from xencolo.paths import DevicePaths, devid_to_vdev, parse_backend
from xencolo.requests import Answer, Request, absent_as_none
from xencolo.wire import Op, parse_permissions, split, writers

_DESCRIPTION = tuple(node for node in (*LIBXL_NODES, *BACKEND_NODES) if node.parse)
#: The toolstack's copy alone has ``backend``; all else must stand in the backend's directory too.
_COPIED = tuple(node for node in _DESCRIPTION if node.name != "backend")
_LIVE = ("state", "online")
#: XenbusState (xen/include/public/io/xenbus.h).
CONNECTED, CLOSING, CLOSED = 4, 5, 6


class Device(NamedTuple):
    """A device as its nodes say it is.

    :ivar disk: None when ``errors`` says why it could not be read.
    :ivar is_colo: whether any of its COLO nodes is there, readable or not.
    :ivar state: XenbusState of the backend, None if absent (4 is connected, 5 closing, 6 closed).
    :ivar online: False while the device is being removed.
    :ivar suspicions: what the guest's own nodes say otherwise: told, not believed.
    """

    paths: DevicePaths
    disk: Disk | None
    is_colo: bool = False
    errors: tuple[NodeError, ...] = ()
    state: int | None = None
    online: bool = True
    suspicions: tuple[str, ...] = ()

    @property
    def vdev(self) -> str | None:
        """Its name in the guest, made of the devid where its nodes can't be read; None if none has that."""
        if self.disk:
            return self.disk.vdev
        try:
            return devid_to_vdev(self.paths.devid)
        except VdevError:
            return None

    @property
    def bypassed(self) -> bool:
        """Whether the guest's PV driver writes to a COLO disk, past the quorum."""
        return self.is_colo and self.state == CONNECTED

    @property
    def leaving(self) -> bool:
        """Whether its removal was asked for: offline, and closing or closed."""
        return not self.online and self.state in {CLOSING, CLOSED}


#: Plain numbers: they are compared and hashed for every node.
_READ, _GET_PERMS = int(Op.READ), int(Op.GET_PERMS)
#: What is asked of each directory; the empty name is the directory itself.
_OF_LIBXL = (
    (_GET_PERMS, ""),
    *((_READ, node.name) for node in _DESCRIPTION),
    *((_GET_PERMS, node.name) for node in _DESCRIPTION),
)
_OF_BACKEND = (
    (_GET_PERMS, ""),
    *((_READ, name) for name in _LIVE),
    *((_READ, node.name) for node in _COPIED),
)
_OF_FRONTEND = ((_READ, "backend"),)
_QUESTIONS = {"libxl": _OF_LIBXL, "backend": _OF_BACKEND}
#: How many answers belong to :func:`listing_requests`.
LISTINGS = 2


class Listings(NamedTuple):
    """Which nodes a device has, as ``DIRECTORY`` answers; None where nobody knows.

    :ivar libxl: the toolstack's copy.
    :ivar backend: the backend's directory.
    """

    libxl: bytes | None = None
    backend: bytes | None = None


def listing_requests(paths: DevicePaths) -> list[Request]:
    """Return what tells which nodes a device has; the answers go to :func:`listings`."""
    return [requests.directory(paths.libxl), requests.directory(paths.backend)]


def listings(answers: Sequence[Answer]) -> Listings:
    """Return what the answers to :func:`listing_requests` tell; too long a list tells nothing.

    :raises StoreError: an answer that is an error other than ENOENT or E2BIG.
    """
    return Listings(*map(_listing, answers))


def _listing(answer: Answer) -> bytes | None:
    if isinstance(answer, StoreError) and answer.errno == errno.E2BIG:
        return None
    return absent_as_none(answer) or b""


@lru_cache(maxsize=1024)
def _questions(directory: str, listing: bytes | None) -> tuple[tuple[int, str], ...]:
    """Return what is to be asked of a directory; nearly all devices have the same few lists of nodes."""
    if listing is None:
        return _QUESTIONS[directory]
    names = {"", *(name.decode("ascii", "replace") for name in split(listing))}
    return tuple(question for question in _QUESTIONS[directory] if question[1] in names)


def read_requests(paths: DevicePaths, there: Listings = Listings()) -> list[Request]:  # noqa: B008 - a value
    """Return what to read of a device; the answers go to :func:`device_from_answers`.

    The order does not matter to xenstored, so they may be spread over several connections.

    :param there: nodes that are not there are not asked for; by default all are.
    """
    return [
        *requests.below(paths.libxl, _questions("libxl", there.libxl)),
        *requests.below(paths.backend, _questions("backend", there.backend)),
        *requests.below(paths.frontend, _OF_FRONTEND),
    ]


def device_from_answers(
    paths: DevicePaths,
    answers: Sequence[Answer],
    trusted: frozenset[int],
    there: Listings = Listings(),  # noqa: B008 - a value
) -> Device | None:
    """Return the device that the answers to :func:`read_requests` describe; None if there is none.

    :param trusted: the domids whose word is taken: dom0's and the daemon's own.
    :param there: as it was given to :func:`read_requests`.
    :raises StoreError: an answer that is an error other than ENOENT.
    """
    rest = iter(answers)
    told, guarded = _sorted(_questions("libxl", there.libxl), rest)
    served, served_guarded = _sorted(_questions("backend", there.backend), rest)
    frontend_backend = absent_as_none(next(rest))
    libxl_perms, backend_perms = guarded.pop(""), served_guarded[""]
    if backend_perms is None and (
        libxl_perms is None or _served_elsewhere(told.get("backend"), paths)
    ):
        return None
    libxl = paths.libxl
    told_by_toolstack = {f"{libxl}/{name}": p for name, p in guarded.items()}
    errors: list[NodeError] = [
        *_distrust({libxl: libxl_perms, **told_by_toolstack}, trusted),
        *_distrust({paths.backend: backend_perms}, trusted | {paths.backend_domid}),
    ]
    is_colo = any(d.get(name) is not None for d in (told, served) for name in COLO_FIELDS.values())
    directories = {libxl: libxl_perms, paths.backend: backend_perms}
    # A directory that is missing is one error, and not one for each of its nodes.
    gone = [path for path, permissions in directories.items() if permissions is None]
    errors += [MissingNode(*path.rsplit("/", 1)) for path in gone]
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for node in () if gone else _DESCRIPTION:
        try:
            said = _field(node, paths, told, served, is_colo=is_colo)
        except NodeError as error:
            errors.append(error)
        else:
            fields |= said
            sources |= dict.fromkeys(said, node.name)
    return Device(
        paths,
        None if errors else _disk(fields, sources, paths, errors, is_colo=is_colo),
        is_colo,
        tuple(errors),
        _state(served.get("state")),
        served.get("online") != b"0",
        _suspicions(paths, frontend_backend),
    )


def _sorted(
    questions: Iterable[tuple[int, str]], answers: Iterator[Answer]
) -> tuple[dict[str, bytes | None], dict[str, bytes | None]]:
    """Return the values and the permissions that are the answers, by name."""
    values: dict[str, bytes | None] = {}
    permissions: dict[str, bytes | None] = {}
    for (op, name), answer in zip(questions, answers, strict=False):
        (values if op == _READ else permissions)[name] = absent_as_none(answer)
    return values, permissions


def _distrust(
    permissions: Mapping[str, bytes | None], trusted: frozenset[int]
) -> Iterator[NodeError]:
    for path, payload in permissions.items():
        try:
            check_trust(path, payload, trusted)
        except NodeError as error:
            yield error


def check_trust(path: str, permissions: bytes | None, trusted: frozenset[int]) -> None:
    """Check that only trusted domains could have written a node.

    :param permissions: the answer to ``GET_PERMS``; None where the node is absent, which is no matter.
    :raises UntrustedNode: another domain could have.
    :raises WrongNode: nobody can tell, the answer is no list of permissions.
    """
    try:
        trustworthy = permissions is None or _trustworthy(permissions, trusted)
    except WireError as error:
        directory, _, node = path.rpartition("/")
        raise WrongNode(directory, node, str(error)) from None
    if permissions is not None and not trustworthy:
        raise UntrustedNode(path, ",".join(map(str, parse_permissions(permissions))))


@lru_cache(maxsize=1024)
def _trustworthy(permissions: bytes, trusted: frozenset[int]) -> bool:
    """Whether trusted domains alone may write; nearly all nodes have the same few permissions."""
    domids, anybody = writers(parse_permissions(permissions))
    return not anybody and domids <= trusted


def _field(
    node: Node,
    paths: DevicePaths,
    told: Mapping[str, bytes | None],
    served: Mapping[str, bytes | None],
    *,
    is_colo: bool,
) -> Fields:
    """Return what one node says, in the toolstack's copy and in the backend's directory alike."""
    value = told.get(node.name)
    copy = value if node.name == "backend" else served.get(node.name)
    if value != copy:
        raise _disagreement(node, paths, value, copy)
    if value is None:
        if node.need is Need.ALWAYS or (node.need is Need.COLO and is_colo):
            raise MissingNode(paths.libxl, node.name)
        return {}
    return _parse(node, paths, paths.libxl, value)


def _disagreement(
    node: Node, paths: DevicePaths, value: bytes | None, copy: bytes | None
) -> NodeError:
    if copy is None:
        return MissingNode(paths.backend, node.name)
    if value is None:
        return MissingNode(paths.libxl, node.name)
    for directory, said in ((paths.backend, copy), (paths.libxl, value)):
        try:
            _parse(node, paths, directory, said)
        except NodeError as error:
            return error
    return WrongNode(
        paths.backend,
        node.name,
        f"it says {_shown(copy)}, and {paths.libxl}/{node.name} says {_shown(value)}",
    )


def _parse(node: Node, paths: DevicePaths, directory: str, value: bytes) -> Fields:
    if not node.parse:
        return {}
    try:
        return node.parse(value.decode(), paths)
    except UnicodeDecodeError:
        raise WrongNode(directory, node.name, f"{_shown(value)} is not UTF-8") from None
    except (ValueError, DiskError, VdevError) as error:
        raise WrongNode(directory, node.name, str(error)) from None


def _shown(value: bytes) -> str:
    text = value.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _disk(
    fields: dict[str, Any],
    sources: Mapping[str, str],
    paths: DevicePaths,
    errors: list[NodeError],
    *,
    is_colo: bool,
) -> Disk | None:
    """Return the disk; fields that don't go together are the error of the node that said one of them."""
    if "format" not in fields and not fields["is_cdrom"]:
        errors.append(MissingNode(paths.libxl, "params"))
        return None
    fields.setdefault("format", Format.EMPTY)
    disk = Disk(backend_domid=paths.backend_domid, colo_enable=is_colo, **fields)
    try:
        disk.check()
    except DiskError as error:
        errors.append(WrongNode(paths.libxl, sources[error.field], str(error)))
        return None
    return disk


def _served_elsewhere(backend: bytes | None, paths: DevicePaths) -> bool:
    """Whether the toolstack says that another domain or kind of backend serves the device."""
    try:
        return parse_backend((backend or b"").decode("ascii", "replace")) != paths
    except PathError:
        return False


def _state(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() else None


def _suspicions(paths: DevicePaths, frontend_backend: bytes | None) -> tuple[str, ...]:
    if frontend_backend is None:
        return (f"{paths.frontend}/backend is gone; the guest may have removed its frontend",)
    if frontend_backend != paths.backend.encode():
        return (f"{paths.frontend}/backend is {_shown(frontend_backend)}, not {paths.backend}",)
    return ()
