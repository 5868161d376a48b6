import re
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = "xencolod.service"
DROP_INS = sorted(path.name for path in (SYSTEMD / f"{UNIT}.d").iterdir())


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, its program replaced by one that is there: verify looks for the file."""
    text = (SYSTEMD / UNIT).read_text()
    assert "ExecStart=/usr/local/bin/xencolod\n" in text
    path = tmp_path / UNIT
    path.write_text(text.replace("/usr/local/bin/xencolod", "/bin/true"))
    return path


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def exposure(unit: Path) -> float:
    found = re.search(
        r"Overall exposure level for \S+: (\d+\.\d)",
        analyze("security", "--offline=true", str(unit)),
    )
    assert found
    return float(found[1])


@pytest.mark.parametrize("drop_in", [None, *DROP_INS])
def test_verify_has_nothing_to_say(unit: Path, drop_in: str | None) -> None:
    if drop_in:
        directory = unit.parent / f"{UNIT}.d"
        directory.mkdir()
        (directory / drop_in).write_text((SYSTEMD / f"{UNIT}.d" / drop_in).read_text())
    assert UNIT not in analyze("verify", str(unit))


def test_verify_sees_what_is_wrong_in_unit_and_drop_in(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=process", "KillMode=processes"))
    drop_in = unit.parent / f"{UNIT}.d" / "x.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNoSuchKey=1\n")
    said = analyze("verify", str(unit))
    assert f"{unit}:" in said
    assert f"{drop_in}:2:" in said


@pytest.mark.parametrize("drop_in", [None, *DROP_INS])
def test_the_sandbox_is_tight_enough(unit: Path, drop_in: str | None) -> None:
    # --offline reads the one file: a drop-in counts when it stands at the end of it.
    added = (SYSTEMD / f"{UNIT}.d" / drop_in).read_text() if drop_in else ""
    unit.write_text(f"{unit.read_text()}\n{added}")
    assert exposure(unit) <= 4.5


def test_the_qemus_outlive_the_daemon() -> None:
    lines = (SYSTEMD / UNIT).read_text().splitlines()
    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes", "OOMPolicy=continue"} < set(lines)


def test_the_sandbox_leaves_what_tells_a_dom0() -> None:
    # Seen with systemd 252: ProtectKernelTunables= and ProtectControlGroups= mount a new /proc, and
    # the daemon would take the dom0 for a machine without Xen.
    lines = (SYSTEMD / UNIT).read_text().splitlines()
    assert "BindPaths=-/proc/xen" in lines
