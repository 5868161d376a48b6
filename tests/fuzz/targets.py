"""What is fuzzed: a function of bytes for each reader of what others write.

A target returns for every input; what it raises is a bug. The errors that a reader documents are part of
what it may say.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from xencolo import command, diskspec, link, paths, record, requests, wire
from xencolo.device import device_from_answers, read_requests
from xencolo.disk import Role, disk_from_json, disk_to_json
from xencolo.drives import Form, domain_drives, image_drivers
from xencolo.errors import (
    CommandError,
    ConfigError,
    DiskError,
    KeysError,
    LinkProtocolError,
    NodeError,
    PathError,
    QmpProtocolError,
    RecordError,
    SpecError,
    StoreError,
    WireError,
)
from xencolo.qmp import Session
from xencolo.status import parse_replication, parse_role
from xencolo.store import Store
from xencolod import config, keys

CORPUS = Path(__file__).parent / "corpus"
PLACE = paths.DevicePaths(5, 51712)
ANSWERS = len(read_requests(PLACE))


def _is_said(error: Exception) -> None:
    """An error is one that a log and a node can hold."""
    assert len(str(error)) < 8192
    str(error).encode()


def _is_one_line(error: Exception) -> None:
    """An error is one that a terminal can be shown as it is."""
    assert str(error).isprintable()
    _is_said(error)


def _is_within(error: SpecError, text: str) -> None:
    assert 0 <= error.position <= len(text)


def wire_decoder(data: bytes) -> None:
    """Bytes from xenstored: in one piece and byte by byte they say the same."""
    one, other = wire.Decoder(), wire.Decoder()
    found: list[wire.Packet] = []
    try:
        whole: list[wire.Packet] | None = one.feed(data)
    except WireError as error:
        _is_said(error)
        whole = None
    try:
        for at in range(len(data)):
            found += other.feed(data[at : at + 1])
            assert other.pending < wire.HEADER.size + wire.PAYLOAD_MAX
    except WireError:
        assert whole is None
        return
    assert found == whole
    if whole is not None:
        sent = b"".join(wire.encode(*packet) for packet in whole)
        assert data.startswith(sent)
        assert len(data) - len(sent) == one.pending
    for packet in found:
        try:
            wire.writers(wire.parse_permissions(packet.payload))
        except WireError as error:
            _is_said(error)


def specification(data: bytes) -> None:
    """A disk specification: what can be read can be written, and is read again as the same."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        disk = diskspec.parse(text)
    except SpecError as error:
        _is_within(error, text)
        return
    disk.check()
    assert disk_from_json(json.loads(json.dumps(disk_to_json(disk)))) == disk
    try:
        written = diskspec.format_spec(disk)
    except DiskError as error:
        _is_said(error)
        return
    assert diskspec.parse(written) == disk, written


def nodes(data: bytes) -> None:
    """The nodes of a device: a line for each answer, ``-`` where it is absent."""
    count = len(read_requests(PLACE))
    lines = [*data.split(b"\n"), *[b"-"] * count][:count]
    absent = StoreError(2, "READ", "/x")
    answers = [absent if line == b"-" else line for line in lines]
    device = device_from_answers(PLACE, answers, frozenset({0}))
    if device is None:
        return
    assert (device.disk is None) == bool(device.errors)
    for error in device.errors:
        _is_one_line(error)
        assert error.path.startswith((PLACE.libxl, PLACE.backend))
    assert all(reason.isprintable() for reason in device.suspicions)
    if device.disk is None:
        return
    device.disk.check()
    for role in Role:
        for form in Form:
            drives = domain_drives([device.disk], role, form)
            named = {path for images in drives.images.values() for path in images.values()}
            assert set(image_drivers(drives.arguments)) == named
            assert not any("\0" in word or "\n" in word for word in drives.arguments)
            assert [word for word in drives.arguments[::2] if word[0] != "-"] == []


def qmp(data: bytes) -> None:
    """Lines from QEMU."""
    one, other = Session(), Session()
    for session in (one, other):
        for name in ("qmp_capabilities", "query-status", "quit"):
            session.command(name, {})
    whole: list[object] = []
    found: list[object] = []
    failed = []
    for session, into, chunks in (
        (one, whole, [data]),
        (other, found, [data[i : i + 1] for i in range(len(data))]),
    ):
        try:
            for chunk in chunks:
                into.extend(session.feed(chunk))
        except QmpProtocolError as error:
            _is_said(error)
            failed.append(session)
    assert len(failed) in {0, 2}
    if not failed:
        assert list(map(repr, found)) == list(map(repr, whole))


def link_messages(data: bytes) -> None:
    """Lines from another host's daemon, and from who pretends to be one."""
    for line in data.split(b"\n"):
        for decode in (link.decode_opening, link.decode_request, link.decode_reply):
            try:
                number, message = decode(line)
            except LinkProtocolError as error:
                _is_said(error)
                continue
            again = link.encode(number, message).rstrip(b"\n")
            if isinstance(message, link.Refusal):
                assert link.decode_reply(again) == (number, message)
            else:
                assert decode(again) == (number, message)


def record_file(data: bytes) -> None:
    """A record: what is read is written as it was."""
    try:
        found = record.parse(data)
    except RecordError as error:
        str(error).encode(errors="backslashreplace")
        return
    assert record.parse(record.render(found)) == found


def command_node(data: bytes) -> None:
    """A command, an answer and a peer's address by node."""
    try:
        found = command.parse(data)
    except CommandError as error:
        _is_one_line(error)
    else:
        assert command.parse(command.render(found)) == found
    try:
        answer = command.parse_answer(5, data)
    except NodeError as error:
        _is_one_line(error)
    else:
        written = command.render_answer(answer)
        assert len(written) <= 2048
        assert b"\n" not in written
        command.parse_answer(5, written)
    try:
        command.parse_peer(data.decode("latin-1"))
    except DiskError as error:
        _is_one_line(error)


def names(data: bytes) -> None:
    """Paths of watch events, names in listings, vdevs."""
    text = data.decode("ascii", "replace")
    paths.hint(text)
    paths.numbers(text.split("\0"), paths.parse_devid)
    wire.split(data)
    try:
        disk = paths.parse_vdev(text)
    except PathError as error:
        _is_one_line(error)
    else:
        devid = paths.vdev_to_devid(text)
        assert paths.devid_to_disk(devid) == disk
        assert paths.vdev_to_devid(paths.devid_to_vdev(devid)) == devid
    try:
        found = paths.parse_backend(text)
    except PathError as error:
        _is_one_line(error)
    else:
        assert found.backend == text


def published(data: bytes) -> None:
    """What the operator's command reads of what xencolod published."""
    try:
        parse_role(5, data)
    except NodeError as error:
        _is_one_line(error)
    fields = ("generation", "peer", "session", "checkpoint", "checkpoint-time", "resync-done")
    more = ("resync-total", "resync-rate", "resync-left")
    values = data.decode("utf-8", "replace").split("\n")
    parse_replication(dict(zip((*fields, *more), [*values, *[None] * 9], strict=False)))


def store(data: bytes) -> None:
    """Requests of a guest and of dom0 to the in-memory store, in turns."""
    served = Store()
    dom0, guest = served.connect(), served.connect(5)
    home = requests.mkdir("/local/domain/5")
    served.handle(dom0, wire.Packet(home.op, 0, 0, home.payload))
    try:
        packets = wire.Decoder(any_op=True).feed(data)
    except WireError:
        return
    for number, packet in enumerate(packets[:64]):
        who = (guest, dom0)[number % 2]
        replies = served.handle(who, packet)
        mine = [p for session, p in replies if session is who and p.op != wire.Op.WATCH_EVENT]
        assert [p.rq_id for p in mine] == [packet.rq_id]
        for _, reply in replies:
            wire.encode(*reply)


def configuration(data: bytes) -> None:
    """The configuration file."""
    try:
        config.parse(data, name="x", xen=False)
    except ConfigError as error:
        str(error).encode(errors="backslashreplace")


def key_file(data: bytes) -> None:
    """The key file."""
    try:
        keys.parse(data, "x")
    except KeysError as error:
        str(error).encode(errors="backslashreplace")


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(wire_decoder, specification, nodes, qmp, link_messages, record_file, command_node),
        *(names, published, store, configuration, key_file),
    )
}


def corpus(name: str) -> Iterable[Path]:
    """Return the kept inputs of a target."""
    return sorted((CORPUS / name).iterdir())
