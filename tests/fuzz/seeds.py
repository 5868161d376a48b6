"""The first inputs of each target, made by what writes them in earnest: `python -m tests.fuzz.seeds`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.fuzz.targets import CORPUS, PLACE
from tests.rigs.disks import COLO, PLAIN
from xencolo import link, nodes, requests, wire
from xencolo.command import COMMANDS
from xencolo.device import read_requests
from xencolo.disk import Backend, Disk, Format, Role
from xencolo.diskspec import format_spec
from xencolo.record import Chain, Record, render
from xencolo.requests import Request
from xencolo.store import Store
from xencolo.wire import Op, Packet
from xencolod import config, keys

_COLO = msgspec.structs.replace(COLO, pdev_path="/i/a,b.qcow2", format=Format.QCOW2)
_CDROM = Disk(
    vdev="xvda",
    backend=Backend.QDISK,
    format=Format.EMPTY,
    is_cdrom=True,
    removable=True,
    readwrite=False,
)
_UUID = "5f1a9d3e-0b0c-4c1d-8e2f-3a4b5c6d7e8f"


def _answers(disk: Disk) -> bytes:
    """What a store answers of a disk that has been added, a line for each."""
    store = Store()
    session = store.connect()
    for op, payload in nodes.add_requests(disk, PLACE):
        store.handle(session, Packet(op, 0, 0, payload))
    lines = []
    for op, payload in read_requests(PLACE):
        *_, (_, reply) = store.handle(session, Packet(op, 0, 0, payload))
        lines.append(b"-" if reply.op == Op.ERROR else reply.payload)
    return b"\n".join(lines)


def _packets(*batch: Request) -> bytes:
    return b"".join(wire.encode(op, n, 0, payload) for n, (op, payload) in enumerate(batch))


def _record() -> Record:
    chain = Chain(
        devid=51712, secondary="/i/a", format=Format.RAW, hidden="/i/hidden", active="/i/active"
    )
    return Record(
        uuid=_UUID,
        name="web",
        role=Role.SECONDARY,
        generation=2,
        in_sync=True,
        unfinished=(chain,),
        peer="b:9990",
    )


def _link() -> Iterator[bytes]:
    disks = (link.DiskInfo("xvda", "web", 1 << 20),)
    session = "0123456789abcdef"
    for message in (
        link.Hello(uuid=_UUID, name="web", generation=1, session=session, disks=disks),
        link.Prepare(session),
        link.Start(session),
        link.Checkpoint(session, 7),
        link.Detach(session),
        link.Ping(),
        link.Done(),
        link.Welcome(
            generation=1, state="listening", session=None, host="h", port=9000, encrypted=True
        ),
        link.refusal("generation", "no", 3),
    ):
        yield link.encode(1, message)


def seeds() -> dict[str, list[bytes]]:
    """Return the first inputs of each target."""
    with tempfile.TemporaryDirectory() as directory:
        keys.make(Path(directory, "keys.pem"))
        key_file = Path(directory, "keys.pem").read_bytes()
    commands = [rule.word.encode() for rule in COMMANDS.values()]
    events = _packets(Request(Op.WATCH_EVENT, b"/libxl/5\0token\0"), requests.read("/x"))
    return {
        "wire_decoder": [
            events,
            _packets(Request(Op.GET_PERMS, b"n0\0r5\0"), Request(Op.ERROR, b"ENOENT\0")),
        ],
        "specification": [
            format_spec(PLAIN).encode(),
            b"/i/a.img,qcow2,hda,r",
            format_spec(_COLO).encode(),
            b"raw:/dev/vg/v,hdc:cdrom,r",
        ],
        "nodes": [_answers(disk) for disk in (PLAIN, _COLO, _CDROM)],
        "qmp": [
            b'{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}},"capabilities":["oob"]}}\r\n',
            b'{"return":{},"id":1}\r\n{"error":{"class":"GenericError","desc":"no"},"id":2}\n',
            b'{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP","data":{}}\n',
        ],
        "link_messages": list(_link()),
        "record_file": [render(_record())],
        "command_node": [
            *commands,
            b"resync to=[::1]:9990 assume-equal id=0a",
            b"failover force id=0123",
            b"checkpoint id=0a done number 1",
            b"resync failed: no",
        ],
        "names": [
            b"/local/domain/0/backend/qdisk/5/51712",
            b"/libxl/5/colo/role",
            b"sdb1",
            b"d3p0",
        ],
        "published": [b"primary", b"2\nb:9990\n0a\n3\n1700000000\n1\n2\n3\n4"],
        "store": [
            _packets(
                requests.write("/local/domain/5/x", "1"),
                requests.set_permissions("/local/domain/5", [wire.Permission("n", 5)]),
                requests.directory("/local/domain/5"),
                Request(Op.WATCH, b"/local\0t\0"),
                Request(Op.TRANSACTION_START, b"\0"),
                requests.rm("/local/domain/5/x"),
            )
        ],
        "configuration": [
            config.example().replace("\n#", "\n").encode()[-6000:],
            b"[link]\nport=1\n",
        ],
        "key_file": [key_file],
    }


if __name__ == "__main__":
    for name, inputs in seeds().items():
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (directory / f"seed-{number}").write_bytes(data)
