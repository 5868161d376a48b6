"""What the operator's command prints: JSON, lines, tables, changes, help, and every error."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

from tests.daemon.cli_rig import (
    BACKEND_NODES,
    BE,
    LX,
    PROGRAM,
    Process,
    ended,
    remove,
    spec,
    started,
    write,
    write_raw,
    xencolo,
)
from tests.rigs import Server
from tests.rigs.servers import DEADLINE
from xencolo.disk import Disk, Role
from xencolo.drives import Form
from xencolo.errors import DomainError, SpecError, WrongNode
from xencolo.status import RESTORED_ROLE
from xencolod.cli import daemon_main, main
from xencolod.commands import common, domain, output, show
from xencolod.events import CATALOGUE

# -- what is printed -------------------------------------------------------------------------------

JSON_COMMANDS = [
    ["disk", "check", spec(), "--json"],
    ["disk", "list", "--json"],
    ["disk", "list", "5", "--json"],
    ["drives", "5", "--json"],
    ["drives", "5", "--role", "secondary", "--form", "2016", "--json"],
    ["status", "--json"],
    ["status", "5", "--json"],
    ["events", "--json"],
]


def test_json_is_one_document_and_nothing_else(colo_guest: Server) -> None:
    for args in JSON_COMMANDS:
        with started(colo_guest, *args) as process:
            returned, stdout, stderr = ended(process)
        assert (returned, stderr) == (0, "")
        assert isinstance(json.loads(stdout), list)


#: What goes wrong with each command that has --json: its arguments, and whether it has a document.
JSON_FAILURES = {
    "a bad specification": (["disk", "check", "x", spec(), "--json"], True),
    "no domain to list": (["disk", "list", "9", "--json"], False),
    "no domain to show": (["status", "9", "--json"], False),
    "no domain's drives": (["drives", "9", "--json"], False),
    "a broken disk's drives": (["drives", "5", "--json"], True),
    "disks that claim the same": (["drives", "6", "--json"], True),
    "a broken role's drives": (["drives", "7", "--json"], False),
    "no xenstored": (["--xenstore", "/nowhere", "disk", "list", "--json"], False),
    "no xenstored to show": (["--xenstore", "/nowhere", "status", "--json"], False),
    "no xenstored for drives": (["--xenstore", "/nowhere", "drives", "5", "--json"], False),
}


def test_json_is_one_document_or_none_where_it_fails(colo_guest: Server) -> None:
    remove(colo_guest, f"{LX}/colo-port")
    for domid in ("6", "7"):
        xencolo(colo_guest, "domain", "create", domid)
        for vdev in ("xvda", "xvdb"):
            xencolo(colo_guest, "disk", "add", domid, spec(vdev=vdev, colo_export=f"e-{vdev}"))
    write(colo_guest, "/libxl/7/colo/role", b"boss")
    for args, has_document in JSON_FAILURES.values():
        with started(colo_guest, *args) as process:
            returned, stdout, stderr = ended(process)
        assert returned == 1
        assert stderr.startswith("xencolo: ")
        assert stderr.count("xencolo: ") == 1
        if has_document:
            assert isinstance(json.loads(stdout), list)
        else:
            assert stdout == ""


def test_what_xencolod_can_t_have_published_is_not_shown(colo_guest: Server) -> None:
    odd = {
        "/libxl/5/colo/qemu-pid": "\u00b2".encode(),
        "/libxl/5/colo/device/00/state": b"ready",
        f"/libxl/5/colo/device/{'9' * 30}/state": b"ready",
        "/libxl/5/colo/device/x/state": b"ready",
    }
    trio.run(write_raw, colo_guest, odd)
    (domain,) = json.loads(xencolo(colo_guest, "status", "--json").stdout)
    assert domain["qemu_pid"] is None
    assert domain["disks"] == [{"devid": 51712, "vdev": "xvda", "state": None, "error": None}]


def test_json_of_a_store_without_domains_is_an_empty_array(xenstored: Server) -> None:
    for args in (["disk", "list"], ["status"]):
        assert json.loads(xencolo(xenstored, *args, "--json").stdout) == []


def test_disk_list_json_has_libxls_names(colo_guest: Server) -> None:
    (row,) = json.loads(xencolo(colo_guest, "disk", "list", "--json").stdout)
    assert row == {
        "domid": 5,
        "devid": 51712,
        "role": "primary",
        "backend_domid": 0,
        "pdev_path": "/i/web.raw",
        "vdev": "xvda",
        "backend": "qdisk",
        "format": "raw",
        "script": None,
        "removable": False,
        "readwrite": True,
        "is_cdrom": False,
        "direct_io_safe": False,
        "discard_enable": True,
        "specification": "xen",
        "trusted": True,
        "colo_enable": True,
        "colo_restore_enable": False,
        "colo_host": "192.0.2.2",
        "colo_port": 9000,
        "colo_export": "web",
        "active_disk": "/i/active.qcow2",
        "hidden_disk": "/i/hidden.qcow2",
    }


MANDATORY = ["type", "dev", "removable", "mode", "device-type"]
MANDATORY += ["colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"]


def test_an_unreadable_disk_keeps_its_row_and_names_the_node(colo_guest: Server) -> None:
    xencolo(colo_guest, "disk", "add", "5", "vdev=xvdb,backendtype=qdisk,target=/i/b")
    for node in MANDATORY:
        remove(colo_guest, f"{LX}/{node}")
        broken, whole = json.loads(xencolo(colo_guest, "disk", "list", "--json").stdout)
        wanted = {"domid": 5, "devid": 51712, "role": "primary"}
        error = f"Missing xenstore node {LX}/{node}"
        place = {"vdev": "xvda", "backend_domid": 0}
        fields = dict.fromkeys(Disk.__struct_fields__) | place
        assert broken == wanted | fields | {"error": error}
        assert [*broken] == [*whole, "error"]
        assert "error" not in whole
        assert error in xencolo(colo_guest, "disk", "list").stdout
        (domain,) = json.loads(xencolo(colo_guest, "status", "--json").stdout)
        assert [(d["vdev"], d["state"], d["error"]) for d in domain["disks"]] == [
            ("xvda", "error", error),
            ("xvdb", None, None),
        ]
        write(colo_guest, f"{LX}/{node}", BACKEND_NODES[node])
    assert "error" not in json.loads(xencolo(colo_guest, "disk", "list", "--json").stdout)[0]


@pytest.mark.parametrize(
    "args", [["--help"], ["status"], ["disk", "list", "--json"], ["drives", "5"], ["events"]]
)
def test_a_full_disk_behind_stdout_is_said(args: list[str], colo_guest: Server) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [PROGRAM, *args],
            env=os.environ | {"XENSTORED_PATH": str(colo_guest.socket)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    words = "xencolo: what it says can't be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (1, words)


def test_drives_takes_what_cannot_be_looked_at_for_a_file(guest: Server) -> None:
    path = f"/{'x' * 1000}"
    xencolo(guest, "disk", "add", "5", f"vdev=xvda,backendtype=qdisk,target={path}")
    assert f'"file":{{"driver":"file","filename":"{path}"}}' in xencolo(guest, "drives", "5").stdout


def test_drives_prints_the_others_of_a_broken_disk(colo_guest: Server) -> None:
    xencolo(colo_guest, "disk", "add", "5", "vdev=xvdb,backendtype=qdisk,target=/i/b")
    whole = xencolo(colo_guest, "drives", "5", "--form", "2016").stdout.splitlines()
    assert whole == [
        "-drive",
        (
            "if=ide,index=0,media=disk,cache=writeback,driver=quorum,id=web,"
            "children.0.file.filename=/i/web.raw,children.0.driver=raw,read-pattern=fifo,"
            "vote-threshold=1"
        ),
        "-drive",
        "file=/i/b,if=ide,index=1,media=disk,format=raw,cache=writeback",
    ]
    remove(colo_guest, f"{LX}/colo-port")
    result = xencolo(colo_guest, "drives", "5", "--form", "2016", status=1)
    assert result.stdout.splitlines() == whole[2:]
    assert result.stderr == f"xencolo: Missing xenstore node {LX}/colo-port\n"


def test_drives_says_what_is_skipped_or_refused(guest: Server) -> None:
    xencolo(guest, "disk", "add", "5", "vdev=xvde,backendtype=qdisk,target=/i/e")
    skipped = xencolo(guest, "drives", "5")
    assert skipped.stdout == ""
    assert skipped.stderr.startswith("xencolo: xvde skipped: ")
    xencolo(guest, "disk", "add", "5", spec(vdev="xvdf"))
    assert "xvdf" in xencolo(guest, "drives", "5", status=1).stderr
    assert xencolo(guest, "drives", "5", "--role", "none").stderr.count("skipped") == 2


def test_status_shows_what_xencolod_published(colo_guest: Server) -> None:
    values = {
        "state": b"failed",
        "role-in-force": b"primary",
        "error": b"QEMU died",
        "qemu-pid": b"4711",
        "device/51712/state": b"skipped",
        "device/51712/error": b"a fifth one",
    }
    for name, value in values.items():
        write(colo_guest, f"/libxl/5/colo/{name}", value)
    assert json.loads(xencolo(colo_guest, "status", "5", "--json").stdout) == [
        {
            "domid": 5,
            "name": "web",
            "role": "primary",
            "role_in_force": "primary",
            "state": "failed",
            "error": "QEMU died",
            "qemu_pid": 4711,
            "replication": None,
            "command": None,
            "answer": None,
            "disks": [{"devid": 51712, "vdev": "xvda", "state": "skipped", "error": "a fifth one"}],
        }
    ]
    assert xencolo(colo_guest, "status").stdout.splitlines() == [
        "DOMID\tNAME\tVDEV\tROLE\tIN-FORCE\tSTATE\tPEER\tGENERATION\tCHECKPOINT\tRESYNC\tQEMU-PID\tERROR",
        "5\tweb\t-\tprimary\tprimary\tfailed\t-\t-\t-\t-\t4711\tQEMU died",
        "5\tweb\txvda\t-\t-\tskipped\t-\t-\t-\t-\t-\ta fifth one",
    ]


def test_disk_check_shows_the_good_and_names_the_bad(tmp_path: Path) -> None:
    nowhere = Path("/nowhere")
    good, bad = "/i/a,qcow2,hda,r", "/i/a,qcow2,hdx"
    result = xencolo(nowhere, "disk", "check", good, bad, status=1)
    assert result.stdout.splitlines()[1:] == ["hda\tqdisk\tqcow2\tro\t/i/a\t-"]
    assert bad in result.stderr
    result = xencolo(nowhere, "disk", "check", good, bad, "--json", status=1)
    first, second = json.loads(result.stdout)
    assert (first["spec"], first["error"], first["disk"]["vdev"]) == (good, None, "hda")
    assert "xvda" not in first["backend_reasons"]
    assert any("backend qdisk fits" in reason for reason in first["backend_reasons"])
    assert (second["spec"], second["disk"]) == (bad, None)
    assert "hdx" in second["error"]
    image = tmp_path / "image"
    image.touch()
    here = xencolo(nowhere, "-v", "disk", "check", f"vdev=xvda,target={image}")
    assert "backend.considered" in here.stderr
    assert "phy unsuitable as the target is not a block device" in here.stderr


def test_control_characters_of_nodes_are_escaped(colo_guest: Server) -> None:
    evil = {
        "/local/domain/5/name": "\x1b]0;owned\x07\r\n\x9b31m\u202etxt".encode(),
        f"{LX}/mode": b"\xff\x1b[2J",
        f"{LX}/dev": b"xv\tda\x1b[2J",
        "/libxl/5/colo/state": b"\x1b[2J",
    }
    trio.run(write_raw, colo_guest, evil)
    for args in (["status"], ["disk", "list"], ["status", "--json"], ["disk", "list", "--json"]):
        plain = xencolo(colo_guest, *args)
        shown = (plain.stdout + plain.stderr).replace("\n", "").replace("\t", "")
        assert shown.isprintable()
    rows = xencolo(colo_guest, "status").stdout.splitlines()
    assert [row.count("\t") for row in rows] == [11, 11, 11]
    assert r"\x1b]0;owned\x07\r\n\x9b31m\u202etxt" in rows[1]


def on_a_terminal(server: Server, *args: str) -> str:
    """Run a command whose stdout is a terminal, and return all that it wrote there."""
    master, slave = pty.openpty()
    environment = os.environ | {"XENSTORED_PATH": str(server.socket), "TERM": "xterm-256color"}
    environment |= {"COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [PROGRAM, *args], env=environment, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave
    )
    os.close(slave)
    written = b""
    try:
        while data := os.read(master, 65536):
            written += data
    except OSError:  # EIO: the last writer has closed it
        pass
    finally:
        os.close(master)
        process.wait(DEADLINE)
    return written.decode()


def test_a_terminal_gets_a_table_in_colours(colo_guest: Server) -> None:
    write(colo_guest, "/libxl/5/colo/state", b"failed")
    trio.run(write_raw, colo_guest, {"/local/domain/5/name": b"[red]\x1b[2J"})
    shown = on_a_terminal(colo_guest, "status")
    assert "\x1b[1;31mfailed" in shown
    assert "─" in shown
    assert r"[red]\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "IN-FORCE" not in shown  # nothing to say in it


# -- following -------------------------------------------------------------------------------------


def read_lines(process: Process, count: int) -> list[str]:
    """Read lines as they come, before a deadline."""
    assert process.stdout
    end, data = time.monotonic() + DEADLINE, b""
    while data.count(b"\n") < count:
        readable, _, _ = select.select([process.stdout], [], [], end - time.monotonic())
        assert readable, data
        more = os.read(process.stdout.fileno(), 65536)
        assert more, (data, process.stderr and process.stderr.read())
        data += more
    return data.decode().splitlines()


def test_status_watch_prints_changes_and_ends_on_an_interrupt(colo_guest: Server) -> None:
    with started(colo_guest, "status", "--watch") as process:
        assert read_lines(process, 3)[1:] == [
            "5\tweb\t-\tprimary" + "\t-" * 8,
            "5\tweb\txvda" + "\t-" * 9,
        ]
        write(colo_guest, "/libxl/5/colo/role", b"secondary")
        assert read_lines(process, 1) == ["5\tweb\t-\tsecondary" + "\t-" * 8]
        remove(colo_guest, f"{BE}/dev")
        error = f"Missing xenstore node {BE}/dev"
        assert read_lines(process, 1) == ["5\tweb\txvda\t-\t-\terror" + "\t-" * 5 + f"\t{error}"]
        xencolo(colo_guest, "disk", "remove", "5", "xvda", "--force")
        # The domain's line goes with its last disk: there is nothing more to say of it.
        assert read_lines(process, 2) == [
            "5\tweb\t-\t-\t-\tgone" + "\t-" * 6,
            "5\tweb\txvda\t-\t-\tgone" + "\t-" * 6,
        ]
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "")


def test_status_watch_prints_a_line_of_json_at_each_change(colo_guest: Server) -> None:
    with started(colo_guest, "status", "--watch", "--json") as process:
        (first,) = read_lines(process, 1)
        assert json.loads(first) == json.loads(xencolo(colo_guest, "status", "--json").stdout)
        write(colo_guest, "/libxl/5/colo/role", b"secondary")
        (domain,) = json.loads(read_lines(process, 1)[0])
        assert (domain["domid"], domain["role"]) == (5, "secondary")
        write(colo_guest, "/libxl/5/other", b"no part of it")
        xencolo(colo_guest, "disk", "remove", "5", "xvda", "--force")
        assert read_lines(process, 1) == ["[]"]
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "")


def test_status_watch_lives_through_a_restart_of_xenstored(colo_guest: Server) -> None:
    with started(colo_guest, "status", "5", "--watch") as process:
        read_lines(process, 3)
        colo_guest.restart()  # its store is empty, as that of a host that boots
        assert read_lines(process, 2) == [
            "5\tweb\t-\t-\t-\tgone" + "\t-" * 6,
            "5\tweb\txvda\t-\t-\tgone" + "\t-" * 6,
        ]
        xencolo(colo_guest, "domain", "create", "5", "--name", "back")
        assert read_lines(process, 1) == ["5\tback\t-\tnone" + "\t-" * 8]
        process.send_signal(signal.SIGINT)
        returned, stdout, stderr = ended(process)
    assert (returned, stdout) == (130, "")
    for said in stderr.splitlines():  # none if it was away only between two reads
        assert said.startswith("xencolo: ")
        assert said.endswith("; waiting for xenstored")


# -- help, completion, errors ----------------------------------------------------------------------


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(("name", "command"), list(commands(main)), ids=str)
def test_every_command_has_help_with_examples(name: str, command: click.Command) -> None:
    shown = xencolo(Path("/nowhere"), *name.split(), "--help").stdout
    assert command.help
    assert command.help.splitlines()[0] in " ".join(shown.split())
    assert f"Examples:\n    xencolo {name}" in shown


@pytest.mark.parametrize("group", [[], ["disk"], ["domain"]], ids=" ".join)
def test_a_list_of_commands_cuts_no_sentence(group: list[str]) -> None:
    assert "..." not in xencolo(Path("/nowhere"), *group, "--help").stdout.partition("Commands:")[2]


def test_help_answers_at_once() -> None:
    """What makes it slow is what it imports: none of these is needed to say what there is."""
    slow = ["trio", "rich", "structlog", "asyncio", "ssl", "xencolo.disk", "xencolod.app"]
    code = (
        "import sys; from xencolod.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {slow} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert done.stdout.startswith("Usage: ")
    assert done.stderr == "[]\n"


def test_choices_are_those_of_the_library() -> None:
    assert tuple(Role) == common.ROLES
    assert sorted(Form) == sorted(show.FORMS)
    assert tuple(RESTORED_ROLE) == domain.STREAMS


def test_events_are_the_catalogue(xenstored: Server) -> None:
    listed = json.loads(xencolo(xenstored, "events", "--json").stdout)
    assert listed == [{**e._asdict(), "fields": list(e.fields)} for e in CATALOGUE.values()]
    lines = xencolo(xenstored, "events").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == list(CATALOGUE)


@pytest.mark.parametrize("shell", show.SHELLS)
def test_completion_script(shell: str) -> None:
    assert "_XENCOLO_COMPLETE" in xencolo(Path("/nowhere"), "completion", shell).stdout


def test_completion_completes(xenstored: Server) -> None:
    environment = os.environ | {
        "_XENCOLO_COMPLETE": "bash_complete",
        "COMP_WORDS": "xencolo role 5 ",
        "COMP_CWORD": "3",
        "XENSTORED_PATH": str(xenstored.socket),
    }
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,none", "plain,primary", "plain,secondary"]


def test_daemons_options() -> None:
    runner = CliRunner()
    shown = runner.invoke(daemon_main, ["--help"]).stdout
    for option in ("--config FILE", "--xenstore WHERE", "--log [json|console]", "--version"):
        assert option in shown
    assert runner.invoke(daemon_main, ["--log", "xml"]).exit_code == 2
    assert "version" in runner.invoke(daemon_main, ["--version"]).stdout


def test_errors_in_groups_are_all_reported() -> None:
    first, second = DomainError("first"), WrongNode("/a", "b", "no\x1bne")
    with pytest.raises(common.Failure) as failure, common.reported("xencolo"):
        raise ExceptionGroup("", [first, ExceptionGroup("", [second, first])])
    assert failure.value.message == "first\nWrong xenstore node /a/b: no\\x1bne"
    with pytest.raises(click.exceptions.Exit) as interrupted, common.reported("xencolo"):
        raise BaseExceptionGroup("", [KeyboardInterrupt(), first])
    assert interrupted.value.exit_code == 130
    with pytest.raises(ExceptionGroup), common.reported("xencolo"):
        raise ExceptionGroup("", [first, ZeroDivisionError()])  # a bug is not hidden


def test_the_caret_stands_under_the_place_of_an_escaped_specification() -> None:
    error = SpecError("no", "a\x1b,b", 3)
    assert output.message(error) == "no\n  a\\x1b,b\n        ^"
