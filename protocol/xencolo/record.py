"""The record of a replicated domain: the little that must outlive a reboot.

One JSON file for each domain. Everything else is found again in xenstore, in the QEMUs and in the images.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from xencolo.disk import Disk, Format, Role
from xencolo.errors import RecordError

FORMAT = 1
"""The number of this layout. A change that an older xencolo would misread raises it."""

_UUID = r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"
Uuid = Annotated[str, Meta(pattern=_UUID)]
Generation = Annotated[int, Meta(ge=1)]


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The images of one disk of a secondary: active over hidden over secondary.

    :ivar secondary: absolute path of the disk itself, as the other two are.
    :ivar format: the layout of the secondary disk; the other two are qcow2.
    """

    devid: Annotated[int, Meta(ge=0)]
    secondary: str
    format: Format
    hidden: str
    active: str

    def __post_init__(self) -> None:
        for path in (self.secondary, self.hidden, self.active):
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path!r} is not an absolute path")
        if self.format in {Format.UNKNOWN, Format.EMPTY}:
            raise ValueError(f"the secondary disk can't have the format {self.format}")


class Settled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last checkpoint of a primary that stayed away: it needs no QEMU any more.

    :ivar disks: each hidden disk, flushed, over its secondary disk is the checkpoint, and nobody writes to
        either. What active holds is no part of it.
    :ivar whole: the secondary disks are the checkpoint: what hidden held has been put into them.
    :ivar number: of the checkpoint in its session, 0 for the session's beginning.
    :ivar seconds: when it was taken, since the epoch.
    """

    disks: tuple[Chain, ...]
    whole: bool = False
    number: Annotated[int, Meta(ge=0)] = 0
    seconds: Annotated[int, Meta(ge=0)] | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a replicated domain for longer than it runs.

    :ivar uuid: the domain's, in lower case; it also names the file.
    :ivar role: primary or secondary; a promoted secondary is a primary.
    :ivar generation: raised by each failover; of two hosts the higher one has the data.
    :ivar in_sync: a secondary whose disks hold a checkpoint of the primary.
    :ivar settled: of a secondary that is in sync: how its checkpoint outlives QEMU, None while it does not.
    :ivar own: a secondary that was the primary until it was made one: its disks hold all that its guest
        wrote, and no other primary has begun to copy over it.
    :ivar promoted: a primary that was a secondary before.
    :ivar unfinished: the disks of a failover that was begun and is not known to have ended. The guest must
        not run from the end of QEMU's commit until they are out of here: `xencolod.images.make_whole`
        would put the older active and hidden over what it wrote since.
    :ivar superseded_by: the higher generation of the other host; this one's disks are stale.
    :ivar spoiled: a primary's disk refused a write that its secondary has, and that the guest counts as done.
    :ivar peer: the other host, ``host`` or ``host:port``, where the operator chose another than colo-host.
    :ivar detached: by the operator's command: the other host is not to be reached.
    :ivar untold: detached, and the other host may not know: it is reached once more, to be told.
    :ivar diverged: a primary that has replicated once, or took over: no secondary's disks are known to be
        equal to its own any more, whatever the configuration says of the first start.
    :ivar relaunched: a primary whose QEMU is not its first: what its guest wrote before is not known.
    """

    uuid: Uuid
    name: str
    role: Role
    generation: Generation
    in_sync: bool = False
    promoted: bool = False
    unfinished: tuple[Chain, ...] = ()
    superseded_by: Generation | None = None
    peer: str | None = None
    detached: bool = False
    diverged: bool = False
    relaunched: bool = False
    settled: Settled | None = None
    own: bool = False
    spoiled: bool = False
    untold: bool = False

    def __post_init__(self) -> None:
        if self.role is Role.NONE:
            raise ValueError("a replicated domain is primary or secondary")
        if self.promoted and self.role is not Role.PRIMARY:
            raise ValueError("a promoted domain is a primary")


#: What changes in a record whose disks hold no checkpoint any more.
NO_CHECKPOINT: Mapping[str, object] = {"in_sync": False, "settled": None}


def latest_generation(record: Record, heard: int | None = None) -> int:
    """Return the latest generation that a host knows of; that of one that takes over has to be later.

    :param heard: of the primary that spoke to it last.
    """
    return max(record.generation, record.superseded_by or 0, heard or 0)


def check_uuid(uuid: str) -> str:
    """Return the uuid if it can name a record.

    :raises RecordError: it is no uuid in lower case.
    """
    if not re.search(_UUID, uuid):
        raise RecordError(f"{uuid[:40]!r} is no uuid of a domain: lower case, as in /vm/<uuid>")
    return uuid


def chain_of(disk: Disk) -> Chain:
    """Return the images of a COLO disk, as its secondary uses them.

    :raises RecordError: a path is missing or relative, or the format is not known.
    """
    given = {
        "devid": disk.devid,
        "secondary": disk.pdev_path,
        "format": disk.format,
        "hidden": disk.hidden_disk,
        "active": disk.active_disk,
    }
    try:
        return msgspec.convert(given, Chain)
    except msgspec.ValidationError as error:
        raise RecordError(f"no chain of images for {disk.vdev}: {error}") from None


def render(record: Record) -> bytes:
    """Return the file's content: JSON for people, that `parse` reads back as the same record.

    :raises RecordError: a field holds what `parse` refuses.
    """
    fields = msgspec.to_builtins(record)
    document = {"format": FORMAT, **fields, "checksum": _checksum(fields)}
    # What is not ASCII is escaped: a name that is no UTF-8 must not keep a failover from being recorded.
    data = json.dumps(document, indent=2).encode() + b"\n"
    if parse(data) != record:
        raise RecordError(f"{record} would be read back as another record")
    return data


def parse(data: bytes) -> Record:
    """Return the record that a file holds.

    :raises RecordError: it is cut off, damaged, or of a layout that this xencolo does not know.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"no JSON ({error})") from None
    if not isinstance(document, dict):
        raise _damaged("no JSON object")
    number = document.pop("format", None)
    if number is None:
        raise _damaged("format is missing")
    if number != FORMAT:
        raise RecordError(
            f"format {number!r} is not known to this xencolo, which writes {FORMAT}: "
            f"install the version that wrote it"
        )
    if document.pop("checksum", None) != _checksum(document):
        raise _damaged("the checksum does not fit")
    try:
        return msgspec.convert(document, Record)
    except msgspec.ValidationError as error:
        raise _damaged(str(error)) from None


def _checksum(fields: dict[str, Any]) -> str:
    """Sum up the values, not the bytes: the layout for people may change, the record does not."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _damaged(what: str) -> RecordError:
    return RecordError(
        f"damaged: {what}; remove it, and the domain begins anew, at generation 1 and not in sync. If a "
        f"failover was under way, its active and hidden disks hold data: keep copies of them first"
    )
