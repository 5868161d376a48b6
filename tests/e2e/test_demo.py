"""``xencolo demo``: to its end, and interrupted; what it starts is gone after both."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.cli_rig import PROGRAM
from tests.e2e.host import until
from xencolod.demo.guest import MIB, Content, Run
from xencolod.demo.telling import DemoError, check, columns

#: More than the copying at the demo's speed and all the rest take.
_LONG = 120.0


@contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Play it on stores of its own, its temporary folder in here, its output in ``out``."""
    environment = {k: v for k, v in os.environ.items() if k != "XENSTORED_PATHS"}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [PROGRAM, "demo"],
            env=environment | {"TMPDIR": str(folder)},
            stdout=out,
            stderr=out,
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def said(folder: Path) -> str:
    return (folder / "out").read_text()


def of(folder: Path) -> list[int]:
    """The processes whose files are in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(process.name))
    return found


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A short name: the sockets are in here.
    return tmp_path_factory.mktemp("d")


def test_it_plays_to_the_end(folder: Path) -> None:
    with demo(folder) as process:
        assert process.wait(_LONG) == 0, said(folder)
    output = said(folder)
    assert output.endswith("== All of it was so: every read matched.\n")
    assert "\x1b" not in output
    for way in ("a to b", "b to c"):
        assert len(re.findall(rf"{way}: +[0-9]+ %", output)) > 2
    for host in "bc":
        assert f"== Proof: {host} holds exactly the last checkpoint" in output
    assert len(re.findall("it does not read what came after", output)) == 4
    assert of(folder) == []
    assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)], ids=["int", "term"]
)
def test_interrupted_it_ends_what_it_started(
    folder: Path, number: signal.Signals, status: int
) -> None:
    with demo(folder) as process:
        until(lambda: "a to b: " in said(folder), "a resync", _LONG)
        assert len(of(folder)) == 4  # two xencolods and their QEMUs
        process.send_signal(number)
        assert process.wait(_LONG) == status
    until(lambda: of(folder) == [], "nothing is left")
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert "Traceback" not in said(folder)


def test_each_host_needs_a_store() -> None:
    done = subprocess.run(
        [PROGRAM, "demo", "--store", "/x"], capture_output=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"each of the 3 hosts has a store of its own: --store" in done.stderr


def test_content_is_compared_byte_by_byte(tmp_path: Path) -> None:
    content, image = Content.various(3), tmp_path / "image"
    before = content.copy()
    content.write(Run(7, 1, 2))
    assert list(content.runs()) == [Run(0x80, 0, 1), Run(7, 1, 2)]
    content.make(image)
    assert content.is_in(image)
    assert not before.is_in(image)
    data = image.read_bytes()
    for wrong in (data[:-1], data + b"\7", data[: 2 * MIB] + b"\0" + data[2 * MIB + 1 :]):
        image.write_bytes(wrong)
        assert not content.is_in(image)


def test_what_is_not_so_ends_it() -> None:
    with pytest.raises(DemoError, match="not so: it holds"):
        check(False, "it holds")


def test_columns_stand_below_each_other() -> None:
    lines = ["A\tBB\tC", "1\t2\t-", "all else"]
    assert list(columns(lines)) == ["A  BB  C", "1  2   -", "all else"]
