"""The log: its forms, and that nothing is written that the catalogue does not have."""

import ast
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest
import structlog

import xencolod
from tests.daemon.disk_rig import fill, small_disk
from xencolod.events import CATALOGUE
from xencolod.log import configure, emit, is_journal

ROOT = Path(xencolod.__file__).parent
BOUND = {"domid", "devid", "vdev"}
#: Keys that structlog puts into a line itself.
RESERVED = {"event", "level", "timestamp", "exception", "exc_info", "stack", "stack_info"}


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- forms --------------------------------------------------------------------------------------


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    log = configure("json", stream=out)
    emit(log.bind(domid=5, devid=51712, vdev="xvda"), "device.found", backend="/b", colo=True)
    emit(log, "daemon.stopping", signal="SIGTERM")
    first, second = map(json.loads, out.getvalue().splitlines())
    stamp = first.pop("timestamp")
    assert stamp.endswith("Z")
    assert first == {
        "event": "device.found",
        "level": "info",
        "domid": 5,
        "devid": 51712,
        "vdev": "xvda",
        "backend": "/b",
        "colo": True,
    }
    assert (second["event"], second["signal"]) == ("daemon.stopping", "SIGTERM")


HOSTILE = "a\nb\r\x1b[2J\x00\x7f\u2028\ud800<3>{}"


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("text", [HOSTILE, "\x1b[31mred", "\x9b31m", "a\u2028b"], ids=ascii)
def test_what_a_guest_wrote_forges_no_line_and_moves_no_cursor(form: str, text: str) -> None:
    out = io.StringIO()
    emit(configure(form, stream=out), "device.suspicious", reason=text)
    assert out.getvalue().endswith("\n")
    assert out.getvalue()[:-1].isprintable()


def test_what_is_no_json_is_written_as_text() -> None:
    out = io.StringIO()
    emit(configure("json", stream=out), "daemon.reloaded", config=Path("/etc/xencolod.toml"))
    assert json.loads(out.getvalue())["config"] == "/etc/xencolod.toml"


def test_the_console_form_is_for_people() -> None:
    out = io.StringIO()
    emit(configure("console", stream=out), "device.gone", backend="/local/domain/0/backend")
    line = out.getvalue()
    assert "device.gone" in line
    assert "backend=/local/domain/0/backend" in line
    assert "{" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("form", "stream", "colours"),
    [
        (None, Terminal(), True),
        (None, io.StringIO(), None),
        ("json", Terminal(), None),
        ("console", io.StringIO(), False),
    ],
)
def test_the_form_follows_the_stream_unless_it_is_given(
    form: str | None, stream: io.StringIO, colours: bool | None
) -> None:
    """Colours: None where the line is JSON."""
    emit(configure(form, stream=stream), "domain.gone")
    line = stream.getvalue()
    if colours is None:
        assert json.loads(line)["event"] == "domain.gone"
    else:
        assert ("\x1b[" in line) is colours


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["qemu.event", "domain.gone", "device.skipped", "qemu.failed"]),
        ("info", ["domain.gone", "device.skipped", "qemu.failed"]),
        ("warning", ["device.skipped", "qemu.failed"]),
        ("error", ["qemu.failed"]),
    ],
)
def test_a_level_keeps_the_lower_ones_out(level: str, written: list[str]) -> None:
    out = io.StringIO()
    log = configure("json", stream=out, level=level)
    emit(log, "qemu.event", qmp_event="STOP", data={})
    emit(log, "domain.gone")
    emit(log, "device.skipped", reason="no")
    emit(log, "qemu.failed", error="no")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == written


# -- the journal --------------------------------------------------------------------------------


def journal_stream(stream: TextIO) -> str:
    status = os.fstat(stream.fileno())
    return f"{status.st_dev}:{status.st_ino}"


@pytest.mark.parametrize("form", ["json", "console"])
def test_under_systemd_each_line_begins_with_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with (tmp_path / "journal").open("w+") as out:
        monkeypatch.setenv("JOURNAL_STREAM", journal_stream(out))
        log = configure(form, stream=out, level="debug")
        emit(log, "qemu.event", qmp_event="STOP", data={})
        emit(log, "domain.gone")
        emit(log, "device.skipped", reason="a\nb")
        emit(log, "qemu.failed", error="no")
        out.seek(0)
        lines = out.read().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
    if form == "json":
        assert json.loads(lines[0].removeprefix("<7>"))["qmp_event"] == "STOP"


def test_another_stream_than_the_journals_has_no_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is inherited by whatever a unit starts, redirected or not."""
    with (tmp_path / "journal").open("w") as journal, (tmp_path / "other").open("w+") as out:
        monkeypatch.setenv("JOURNAL_STREAM", journal_stream(journal))
        emit(configure("json", stream=out), "domain.gone")
        out.seek(0)
        assert json.loads(out.read())["event"] == "domain.gone"


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as out:
        assert is_journal(out, {"JOURNAL_STREAM": journal_stream(out)})
        assert not is_journal(out, {"JOURNAL_STREAM": f"{journal_stream(out)}1"})
        assert not is_journal(out, {"JOURNAL_STREAM": ""})
        assert not is_journal(out, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


# -- the catalogue ------------------------------------------------------------------------------


def test_an_unknown_event_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"device\.lost"):
        emit(configure("json", stream=io.StringIO()), "device.lost")


@pytest.mark.parametrize("level", ["debug", "error"])
def test_an_unknown_field_is_an_error_at_any_level(level: str) -> None:
    log = configure("json", stream=io.StringIO(), level=level)
    with pytest.raises(TypeError, match=r"event qemu\.event has no field colour, size"):
        emit(log, "qemu.event", qmp_event="STOP", size=1, colour="red")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_event_can_be_written_with_its_fields(name: str) -> None:
    out = io.StringIO()
    event = CATALOGUE[name]
    emit(configure("json", stream=out, level="debug"), name, **dict.fromkeys(event.fields, "x"))
    line = json.loads(out.getvalue())
    assert (line["event"], line["level"]) == (name, event.level)
    assert {key: line[key] for key in event.fields} == dict.fromkeys(event.fields, "x")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_event_is_fit_for_monitoring(name: str) -> None:
    event = CATALOGUE[name]
    assert event.name == name
    assert name.count(".") == 1
    assert name.replace(".", "").replace("_", "").isalpha()
    assert name.islower()
    assert event.level in {"debug", "info", "warning", "error"}
    assert event.meaning.endswith(".")
    assert len(set(event.fields)) == len(event.fields)
    assert not set(event.fields) & (RESERVED | BOUND)


# -- the code -----------------------------------------------------------------------------------


class Emitted(NamedTuple):
    """A call of ``emit`` in the code: names of the event, fields, where."""

    names: list[str]
    fields: list[str]
    where: str


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, ast.parse(path.read_text(), str(path))


def literal_names(node: ast.expr) -> list[str]:
    """The events that a call may write: a literal, or one of two."""
    match node:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.IfExp(body=body, orelse=orelse):
            return literal_names(body) + literal_names(orelse)
        case _:
            return []


def emitted() -> list[Emitted]:
    return [
        Emitted(
            literal_names(call.args[1]) if len(call.args) == 2 else [],
            [keyword.arg or "**" for keyword in call.keywords],
            f"{path.relative_to(ROOT)}:{call.lineno}",
        )
        for path, tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name | ast.Attribute)
        and "emit" in {getattr(call.func, "id", None), getattr(call.func, "attr", None)}
    ]


CALLS = emitted()


@pytest.mark.parametrize("call", CALLS, ids=[call.where for call in CALLS])
def test_every_call_writes_an_event_of_the_catalogue_with_all_its_fields(call: Emitted) -> None:
    assert call.names, f"{call.where}: the event's name is no literal"
    for name in call.names:
        assert name in CATALOGUE, call.where
        assert set(call.fields) - BOUND == set(CATALOGUE[name].fields), call.where


def test_every_event_of_the_catalogue_is_written_somewhere() -> None:
    assert {name for call in CALLS for name in call.names} == CATALOGUE.keys()


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


_METHODS = {"debug", "info", "warning", "warn", "error", "critical", "exception", "log", "msg"}


def test_nothing_is_logged_around_the_catalogue() -> None:
    around = []
    for path, tree in sources():
        name = str(path.relative_to(ROOT))
        if name != "log.py":
            around += [
                f"{name} imports {m}" for m in imports(tree) if m in {"structlog", "logging"}
            ]
        around += [
            f"{name}:{call.lineno} calls {call.func.attr}"
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr.removeprefix("a") in _METHODS
        ]
    assert not around


def test_a_full_disk_loses_whole_lines_and_says_how_many(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as disk, (disk / "log").open("w") as stream:
        logger = configure("json", stream=stream)
        filler = fill(disk)
        for _ in range(100):
            emit(logger, "daemon.ready", domains=1, devices=1, seconds=0.1)
        filler.unlink()
        emit(logger, "daemon.ready", domains=1, devices=1, seconds=0.1)
        events = [json.loads(line) for line in (disk / "log").read_text().splitlines()]
    (full,) = [event for event in events if event["event"] == "log.full"]
    assert full["lines"] > 0
    assert full["lines"] + len(events) - 1 == 101


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logger = configure("json", stream=stream)
        emit(logger, "daemon.ready", domains=1, devices=1, seconds=0.1)
        assert b'"daemon.ready"' in os.read(reader, 4096)
        os.close(reader)
        emit(logger, "daemon.ready", domains=2, devices=1, seconds=0.1)


def test_a_reader_that_is_slow_is_told_how_many_lines_are_missing() -> None:
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        logger = configure("json", stream=stream)
        for number in range(2000):
            emit(logger, "daemon.ready", domains=number, devices=1, seconds=0.1)
        written = read.read()
        emit(logger, "daemon.ready", domains=2000, devices=1, seconds=0.1)
        *events, missing = map(json.loads, (written + read.read()).splitlines())
    assert [event["domains"] for event in events] == [*range(len(events) - 1), 2000]
    assert missing["lines"] + len(events) == 2001
