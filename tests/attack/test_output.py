"""Values from xenstore on the way out: to the terminal by every command, and to the log by the daemon."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attack.guest import guest
from tests.daemon.cli_rig import BE, FE, LX, spec, started, write_raw, xencolo
from tests.daemon.test_cli_output import on_a_terminal
from tests.daemon.test_cli_replication import take
from tests.e2e.host import Host
from tests.rigs import Server
from tests.rigs.servers import DEADLINE
from xencolod.cli import main
from xencolod.events import CATALOGUE
from xencolod.log import configure, emit

#: Titles, colours, the C1 forms of them, line ends, what overwrites a line, bidi marks, rich's markup.
EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\x85\u2028\u202e\u200b[bold red]\x08\x7f<3>{}\t".encode()

BELOW = (
    *("params", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk", "dev"),
    *("type", "mode", "device-type", "frontend", "frontend-id", "removable", "specification"),
)
PUBLISHED = (
    *("role", "state", "error", "role-in-force", "qemu-pid", "generation", "peer", "session"),
    *("checkpoint", "checkpoint-time", "resync-done", "resync-total", "resync-rate", "resync-left"),
    *("answer", "device/51712/state", "device/51712/error"),
)
#: What is spoiled, one kind at a time: spoiling all at once would hide what is behind the first error.
SPOILED = {
    "names": {"/local/domain/5/name": EVIL, "/local/domain/5/vm": EVIL, "/libxl/5/type": EVIL},
    "published": {f"/libxl/5/colo/{name}": EVIL for name in PUBLISHED},
    "backend": {f"{BE}/{name}": EVIL for name in (*BELOW, "state", "online")},
    "both": {f"{at}/{name}": EVIL for at in (BE, LX) for name in BELOW},
    "path": {f"{at}/params": b"aio:/\xc2\x9b31m\xe2\x80\xaex" for at in (BE, LX)},
    "frontend": {f"{FE}/{name}": EVIL for name in ("backend", "state", "params")},
    "places": {
        "/libxl/5/device/vbd/evil": EVIL,
        "/local/domain/0/backend/qdisk/5/x": EVIL,
        "/local/domain/0/error/backend/qdisk/5/51712/error": EVIL,
    },
}
_TEXT = EVIL.decode()
#: Arguments of each command, what removes last; None is a command that says nothing of a store's.
COMMANDS: dict[str, list[list[str]] | None] = {
    "disk check": [[_TEXT], [f"target=/x,vdev={_TEXT}"], ["--json", _TEXT]],
    "disk add": [["5", f"/i/b{_TEXT}.raw,raw,xvdb,rw"], ["5", spec(vdev="xvdb")]],
    "disk list": [[], ["5"], ["--json"]],
    "drives": [["5"], ["5", "--role", "secondary", "--form", "2016"], ["5", "--json"]],
    "role": [["5"]],
    "domain restore": [["5", "--checkpointed-stream", "colo"]],
    "domain create": [["7", "--name", _TEXT], ["5"]],
    "status": [[], ["5"], ["--json"]],
    "checkpoint": [["5", "--timeout", "0.05"]],
    "resync": [["5", "--timeout", "0.05"], ["5", "--to", _TEXT]],
    "failover": [["5", "--timeout", "0.05"], ["5", "--timeout", "0.05", "--force"]],
    "detach": [["5", "--timeout", "0.05"]],
    "keys": [[f"/nowhere{_TEXT}/keys.pem"]],
    "disk remove": [["5", "xvda", "--force"], ["5", "xvdz"]],
    "domain destroy": [["5"]],
    "events": None,
    "completion": None,
    "demo": None,
}


def leaves(group: click.Group, prefix: str = "") -> Iterator[str]:
    """Every command's whole name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_every_command_is_attacked() -> None:
    assert set(leaves(main)) == set(COMMANDS)


def is_clean(text: str) -> bool:
    """Whether nothing but lines and tabs of the command's own is in it."""
    return text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
def test_no_command_lets_a_control_character_out(
    spoiled: dict[str, bytes], colo_guest: Server
) -> None:
    trio.run(write_raw, colo_guest, spoiled)
    for name, runs in COMMANDS.items():
        for words in runs or ():
            shown = xencolo_at_all(colo_guest, *name.split(), *words)
            if (name, spoiled) == ("drives", SPOILED["path"]) and "--json" not in words:
                # what goes into a pipe is for a program: the arguments as they are, a line each
                shown = shown.replace("\x9b", "").replace("\u202e", "")
            assert is_clean(shown), (name, words, shown)


def xencolo_at_all(server: Server, *words: str) -> str:
    """Run a command, whatever its status; return all that it wrote."""
    for status in (0, 1, 2):
        try:
            done = xencolo(server, *words, status=status)
        except AssertionError:
            continue
        return done.stdout + done.stderr
    raise AssertionError(f"{words} ended with another status than 0, 1 or 2")


@pytest.mark.parametrize("spoiled", ["names", "published", "both"])
def test_no_table_on_a_terminal_does(spoiled: str, colo_guest: Server) -> None:
    trio.run(write_raw, colo_guest, SPOILED[spoiled])
    for words in (["status"], ["disk", "list"], ["drives", "5"]):
        shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(colo_guest, *words))
        assert is_clean(shown.replace("\r\n", "\n")), (words, shown)


def test_no_answer_does(colo_guest: Server) -> None:
    with started(colo_guest, "checkpoint", "5") as process:
        take(colo_guest, f"failed: {EVIL.decode()}")
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert b"owned" in stderr
    assert is_clean((stdout + stderr).decode())


# -- the log ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def reset_log() -> Iterator[None]:
    yield
    structlog.reset_defaults()


values = st.recursive(
    st.text() | st.integers() | st.none() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("form", ["json", "console"])
@given(value=values, name=st.sampled_from(sorted(CATALOGUE)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_event_is_one_line_whatever_its_fields_hold(
    form: str, value: object, name: str
) -> None:
    out = io.StringIO()
    fields = dict.fromkeys(CATALOGUE[name].fields, value)
    emit(configure(form, stream=out, level="debug").bind(domid=5, vdev=value), name, **fields)
    written = out.getvalue()
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    written.encode()
    if form == "json":
        assert json.loads(written)["event"] == name


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_daemons_log_of_a_hostile_store_is_whole_lines(
    form: str, host: Host, xenstored: Server
) -> None:
    """As the journal gets it: each line with its priority, and none that a value brought along."""
    evil = EVIL.decode()
    host.store.create(5, name=evil)
    host.store.attach(host.disk(5, make=False, params=f"aio:/i{evil}", colo_host=evil, mode=""))
    host.store.create(6, name=evil)
    host.store.attach(host.disk(6), role=evil)
    journal = host.directory / "journal"
    with journal.open("wb") as log, guest(host.store, xenstored, 6) as attacker:
        attacker.write("/local/domain/6/device/vbd/51712/backend", evil)
        at = os.fstat(log.fileno())
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from xencolod.cli import daemon_main; daemon_main()"),
                *("--config", str(host.config), "--xenstore", str(xenstored.socket)),
                *("--log", form),
            ],
            stdout=log,
            stderr=subprocess.PIPE,
            env=os.environ | {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"},
        )
        try:
            end = time.monotonic() + DEADLINE
            while b"daemon.ready" not in journal.read_bytes():
                assert time.monotonic() < end, journal.read_bytes()
                time.sleep(0.02)
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=DEADLINE)
    assert errors == b""
    lines = journal.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    said = "".join(lines)
    for event in ("device.error", "device.suspicious", "domain.role_error", "daemon.stopping"):
        assert event in said
    for line in lines:
        assert re.match(r"<[3-7]>", line), line
        assert line.isprintable(), line
        if form == "json":
            json.loads(line[3:])
