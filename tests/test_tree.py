"""The whole tree: types, lint and format, as tests like any other."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command", ["mypy", "ruff check --no-cache .", "ruff format --no-cache --check ."]
)
def test_is_clean(command: str) -> None:
    tool, *arguments = command.split()
    program = Path(sys.executable).with_name(tool)
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_failing_example_can_be_replayed_and_a_slow_one_does_not_fail() -> None:
    assert (settings().print_blob, settings().deadline, settings().derandomize) == (
        True,
        None,
        False,
    )
