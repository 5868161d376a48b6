"""The operator's command on the real xenstored: what it writes, removes and refuses."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from click.testing import Result

from tests.daemon.cli_rig import (
    BACKEND_NODES,
    BE,
    FE,
    FRONTEND_NODES,
    GUEST,
    LIBXL_NODES,
    LX,
    SERVED,
    TOOLSTACK,
    Node,
    breaking_off,
    ended,
    foreign,
    spec,
    started,
    store,
    write,
    xencolo,
)
from tests.rigs import Server
from xencolo.errors import DomainError
from xencolod import domains
from xencolod.commands import output, status
from xencolod.xenstore import open_client

# -- what is written -------------------------------------------------------------------------------


def expected_tree(root: str, nodes: dict[str, bytes], permissions: list[bytes]) -> dict[str, Node]:
    below = {f"{root}/{name}": (value, permissions) for name, value in nodes.items()}
    return {root: (b"", permissions), **below}


@pytest.mark.parametrize("kind", ["xenstored", "oxenstored"])
def test_disk_add_writes_libxls_nodes(kind: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(kind)
    xencolo(server, "domain", "create", "5")
    xencolo(server, "disk", "add", "5", spec())
    for root, nodes, permissions in (
        (LX, LIBXL_NODES, TOOLSTACK),
        (FE, FRONTEND_NODES, GUEST),
        (BE, {"frontend": FE.encode(), **BACKEND_NODES}, SERVED),
    ):
        written, expected = store(server, root.encode()), expected_tree(root, nodes, permissions)
        assert written == expected
        if kind == "xenstored":  # which lists names as they came; oxenstored sorts them
            assert list(written) == list(expected)


def test_disk_add_sets_the_role_with_it(guest: Server) -> None:
    xencolo(guest, "disk", "add", "5", spec(), "--role", "secondary")
    assert store(guest, b"/libxl/5/colo") == {
        "/libxl/5/colo": (b"", TOOLSTACK),
        "/libxl/5/colo/role": (b"secondary", TOOLSTACK),
    }


@pytest.mark.parametrize(
    "args", [["disk", "add", "5", spec(), "--role", "primary"], ["role", "5", "primary"]]
)
def test_a_role_that_the_guest_could_write_is_its_own_no_more(
    args: list[str], guest: Server
) -> None:
    with foreign(guest) as client:
        client.write(b"/libxl/5/colo/role", b"secondary")
        client.set_perms(b"/libxl/5/colo/role", [b"n5", b"b0"])
    assert "Untrusted" in xencolo(guest, "role", "5", status=1).stderr
    xencolo(guest, *args)
    assert xencolo(guest, "role", "5").stdout == "primary\n"
    assert store(guest, b"/libxl/5/colo/role") == {"/libxl/5/colo/role": (b"primary", TOOLSTACK)}


def test_a_disk_of_a_driver_domain_is_written_there(guest: Server) -> None:
    xencolo(guest, "disk", "add", "5", spec(backend="3"))
    assert store(guest, b"/local/domain/3/backend/qdisk/5/51712")[
        "/local/domain/3/backend/qdisk/5/51712"
    ] == (b"", [b"n3", b"r5"])
    (row,) = json.loads(xencolo(guest, "disk", "list", "--json").stdout)
    assert (row["backend_domid"], row["vdev"]) == (3, "xvda")
    drives = xencolo(guest, "drives", "5")
    assert drives.stdout == ""
    assert "/local/domain/3/backend/qdisk/5/51712 serves it" in drives.stderr


def test_domain_create_leaves_what_a_toolstack_does(xenstored: Server) -> None:
    before = store(xenstored)
    xencolo(xenstored, "domain", "create", "5", "--name", "web")
    after = store(xenstored)
    vm = after["/local/domain/5/vm"][0].decode()
    identity = vm.removeprefix("/vm/").encode()
    assert len(identity) == 36
    made = {
        "/local/domain/5": (b"", SERVED),
        "/local/domain/5/vm": (vm.encode(), SERVED),
        "/local/domain/5/name": (b"web", SERVED),
        "/local/domain/5/domid": (b"5", SERVED),
        vm: (b"", SERVED),
        f"{vm}/uuid": (identity, SERVED),
        f"{vm}/name": (b"web", SERVED),
        "/libxl/5": (b"", TOOLSTACK),
        "/libxl/5/type": (b"hvm", TOOLSTACK),
    }
    parents = {"/vm", "/libxl"}
    assert {path: after[path] for path in after.keys() - before.keys() - parents} == made


def test_domain_create_takes_the_uuid_that_the_guest_has_elsewhere(xenstored: Server) -> None:
    identity = "5f1a9d3e-0b0c-4c1d-8e2f-3a4b5c6d7e8f"
    xencolo(xenstored, "domain", "create", "5", "--uuid", identity.upper())
    nodes = store(xenstored)
    assert nodes["/local/domain/5/vm"][0] == f"/vm/{identity}".encode()
    assert nodes[f"/vm/{identity}/uuid"][0] == identity.encode()


def test_domain_destroy_removes_all_that_is_the_domains(colo_guest: Server) -> None:
    xencolo(colo_guest, "domain", "create", "55")
    others = {path: node for path, node in store(colo_guest).items() if "/55" in path}
    for path in (f"/local/domain/0/error{BE.removeprefix('/local/domain/0')}/error",):
        write(colo_guest, path, b"broken")
    write(colo_guest, "/local/domain/0/device-model/5/state", b"running")
    xencolo(colo_guest, "disk", "add", "5", "vdev=xvdb,backendtype=qdisk,backend=3,target=/i/b")
    xencolo(colo_guest, "domain", "destroy", "5")
    left = store(colo_guest)
    assert [path for path in left if "/5/" in f"{path}/"] == []
    assert {path: node for path, node in left.items() if "/55" in path} == others
    assert [path for path in left if path.startswith("/vm/")].count("/vm") == 0
    assert b"web" not in {value for value, _ in left.values()}


async def test_on_xen_domains_are_the_toolstacks(guest: Server) -> None:
    async with open_client(guest.socket) as client:
        with pytest.raises(DomainError, match="use xl create"):
            await domains.create(client, 6, "other", xen=True)
        with pytest.raises(DomainError, match="use xl destroy"):
            await domains.destroy(client, 5, xen=True)
        with pytest.raises(DomainError, match="can't be destroyed"):
            await domains.destroy(client, 0, xen=False)
        await domains.require(client, 5)


def test_role_and_restore(guest: Server) -> None:
    def role() -> str:
        return xencolo(guest, "role", "5").stdout.strip()

    def restore(stream: str) -> str:
        return xencolo(
            guest, "domain", "restore", "5", "--checkpointed-stream", stream
        ).stdout.strip()

    assert role() == "none"
    xencolo(guest, "disk", "add", "5", spec())
    assert role() == "primary"
    assert restore("colo") == "domain 5: secondary"
    assert role() == "secondary"
    (row,) = json.loads(xencolo(guest, "disk", "list", "5", "--json").stdout)
    assert (row["role"], row["colo_restore_enable"]) == ("secondary", True)
    for stream in ("none", "remus"):
        xencolo(guest, "role", "5", "secondary")
        restore(stream)
        assert role() == "primary"
        assert "/libxl/5/colo/role" not in store(guest)
    xencolo(guest, "role", "5", "none")
    assert role() == "none"
    write(guest, "/libxl/5/colo/role", b"boss")
    assert (
        "Wrong xenstore node /libxl/5/colo/role: 'boss'"
        in xencolo(guest, "role", "5", status=1).stderr
    )
    (row,) = json.loads(xencolo(guest, "disk", "list", "5", "--json").stdout)
    assert row["role"] is None


# -- removing --------------------------------------------------------------------------------------


def test_disk_remove_asks_the_backend_and_waits_for_it(colo_guest: Server) -> None:
    with (
        started(colo_guest, "disk", "remove", "5", "xvda") as process,
        foreign(colo_guest) as client,
    ):
        monitor = client.monitor()
        monitor.watch(f"{BE}/state".encode(), b"backend")
        for _ in monitor.wait():
            if client.read(f"{BE}/state".encode()) == b"5":
                break
        assert client.read(f"{BE}/online".encode()) == b"0"
        assert client.read(f"{LX}/state".encode()) == b"1"
        client.write(f"{BE}/state".encode(), b"6")
        assert ended(process) == (0, "xvda (51712) removed from domain 5\n", "")
    assert [path for path in store(colo_guest) if "51712" in path] == []


def test_disk_remove_by_number_and_by_force(colo_guest: Server) -> None:
    out = xencolo(colo_guest, "disk", "remove", "5", "51712", "--force")
    assert (out.stdout, out.stderr) == ("51712 (51712) removed from domain 5\n", "")
    assert [path for path in store(colo_guest) if "51712" in path] == []


# -- what is refused -------------------------------------------------------------------------------

BAD_SPECS = {
    "unknown key": (spec(colo_prot="1"), "colo-prot"),
    "key twice": ("vdev=xvda,vdev=xvdb,target=/i/a", "vdev was given already"),
    "no vdev": ("target=/i/a", "no vdev"),
    "vdev out of range": ("vdev=hde,target=/i/a", "hdd"),
    "vdev that is none": ("vdev=xyz,target=/i/a", "xyz"),
    "no colo-host": (spec(colo_host=""), "colo-host is missing"),
    "no colo-port": (spec(colo_port=""), "colo-port is missing"),
    "no colo-export": (spec(colo_export=""), "colo-export is missing"),
    "no active-disk": (spec(active_disk=""), "active-disk is missing"),
    "no hidden-disk": (spec(hidden_disk=""), "hidden-disk is missing"),
    "port 0": (spec(colo_port="0"), "'0' is not a whole number from 1 to 65535"),
    "port 70000": (spec(colo_port="70000"), "'70000' is not"),
    "port 99abc": (spec(colo_port="99abc"), "'99abc' is not"),
    "COLO with phy": (spec(backendtype="phy"), "phy"),
    "COLO with tap": (spec(backendtype="tap"), "tap"),
    "COLO with a script": (spec(script="block-nbd"), "script"),
    "COLO on its own image": (spec(active_disk="/i/web.raw"), "three files"),
}


@pytest.mark.parametrize(("bad", "words"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_bad_specification_is_refused_and_nothing_written(
    bad: str, words: str, guest: Server
) -> None:
    before = store(guest)
    checked = xencolo(Path("/nowhere"), "disk", "check", bad, status=1)
    added = xencolo(guest, "disk", "add", "5", bad, status=1)
    for result in (checked, added):
        assert result.stdout == ""
        assert words in result.stderr
        reason, shown, caret = result.stderr.splitlines()
        assert reason.startswith("xencolo: ")
        assert shown == f"  {bad}"
        assert re.fullmatch(r" {2,}\^", caret)
    assert store(guest) == before


def test_what_is_not_utf_8_or_too_long_for_xenstore_is_refused(guest: Server) -> None:
    before = store(guest)
    strange = os.fsdecode(b"vdev=xvda,backendtype=qdisk,target=/i/\xff")
    result = xencolo(guest, "disk", "add", "5", strange, status=1)
    assert result.stderr.splitlines() == [
        "xencolo: not UTF-8, which xenstore's values are",
        "  " + strange.replace("\udcff", r"\udcff"),
        " " * (2 + len(strange) - 1) + "^",
    ]
    long = spec(target="/" + "a" * 4096)
    assert "4096 at most" in one_line(xencolo(guest, "disk", "add", "5", long, status=1))
    assert store(guest) == before


REFUSED = {
    "a device that exists": (
        ["disk", "add", "5", spec()],
        "device xvda of domain 5 already exists",
    ),
    "the same export": (
        ["disk", "add", "5", spec(vdev="xvdb")],
        "colo-export web of xvdb is xvda's already",
    ),
    "a phy disk": (
        ["disk", "add", "5", "vdev=xvdc,script=block-nbd,target=x"],
        "use xl block-attach",
    ),
    "a missing image": (
        ["disk", "add", "5", "/i/none,raw,xvdc"],
        "target /i/none of xvdc: No such",
    ),
    "a domain that exists": (["domain", "create", "5"], "domain 5 already exists"),
    "a name that can't be": (["domain", "create", "6", "--name", "a\x1b[2J"], "name 'a\\x1b[2J'"),
    "a uuid that can't be": (
        ["domain", "create", "6", "--uuid", "5f1a\x1b"],
        "uuid '5f1a\\x1b': 32 hexadecimal digits are needed",
    ),
    "a disk that is not there": (["disk", "remove", "5", "xvdb"], "has no device 51728"),
    "by force": (["disk", "remove", "5", "xvdb", "--force"], "has no device 51728"),
    "a vdev that can't be": (["disk", "remove", "5", "hdz"], "hdz"),
    **{
        f"no domain for {' '.join(args[:2])}": (args, "domain 9 does not exist")
        for args in (
            ["disk", "add", "9", spec()],
            ["disk", "add", "9", "vdev=xvda,backendtype=qdisk,target=/i/a"],
            ["disk", "list", "9"],
            ["disk", "remove", "9", "xvda"],
            ["disk", "remove", "9", "xvda", "--force"],
            ["drives", "9"],
            ["role", "9"],
            ["role", "9", "primary"],
            ["status", "9"],
            ["status", "9", "--watch"],
            ["domain", "restore", "9", "--checkpointed-stream", "colo"],
            ["domain", "destroy", "9"],
        )
    },
}


@pytest.mark.parametrize(("args", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_t_be_done_has_one_message_and_no_effect(
    args: list[str], words: str, colo_guest: Server
) -> None:
    before = store(colo_guest)
    result = xencolo(colo_guest, *args, status=1)
    assert result.stdout in {"", output.line(status.COLUMNS) + "\n"}  # --watch has its heading out
    assert result.stderr.startswith("xencolo: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert store(colo_guest) == before


@pytest.mark.parametrize(
    "args",
    [
        ["disk", "check"],
        ["disk", "add", "5"],
        ["disk", "list", "-1"],
        ["disk", "list", "32752"],
        ["disk", "list", "05"],
        ["disk", "list", "web"],
        ["disk", "add", "5", spec(), "--role", "boss"],
        ["role", "5", "boss"],
        ["drives", "5", "--form", "2017"],
        ["domain", "restore", "5"],
        ["domain", "restore", "5", "--checkpointed-stream", "qemu"],
        ["completion", "tcsh"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(args: list[str]) -> None:
    result = xencolo(Path("/nowhere"), *args, status=2)
    assert result.stdout == ""
    assert "Error: " in result.stderr


COMMANDS = [
    ["disk", "add", "5", spec()],
    ["disk", "list"],
    ["disk", "remove", "5", "xvda"],
    ["drives", "5"],
    ["role", "5"],
    ["role", "5", "primary"],
    ["status"],
    ["status", "--watch"],
    ["detach", "5"],
    ["failover", "5", "--force"],
    ["domain", "create", "5"],
    ["domain", "destroy", "5"],
    ["domain", "restore", "5", "--checkpointed-stream", "colo"],
]


def one_line(result: Result) -> str:
    assert result.stdout in {"", output.line(status.COLUMNS) + "\n"}
    assert result.stderr.startswith("xencolo: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_xenstored_that_is_absent_or_refuses(args: list[str], tmp_path: Path) -> None:
    where = tmp_path / "socket"
    message = one_line(xencolo(where, *args, status=1))
    assert f"xenstored does not answer at {where}: No such file" in message
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(where))  # and does not listen
        assert f"{where}: Connection refused" in one_line(xencolo(where, *args, status=1))


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_xenstored_that_ends_in_the_middle_of_an_answer(args: list[str], tmp_path: Path) -> None:
    with breaking_off(tmp_path / "socket"):
        message = one_line(xencolo(tmp_path / "socket", *args, status=1))
    assert str(tmp_path / "socket") in message
    assert "closed the connection in the middle of a message (7 bytes)" in message
