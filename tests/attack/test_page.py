"""daemon/SECURITY.md: every test that it names is there, and it names every test of the attacks."""

import re
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "daemon" / "SECURITY.md"


def names_in(files: Iterable[Path]) -> set[str]:
    """Return the names of the tests in these files."""
    found: set[str] = set()
    for path in files:
        found |= set(re.findall(r"def (test_\w+)\(", path.read_text()))
    return found


def test_the_page_and_the_tests_go_together() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    suite = names_in([*TESTS.glob("attack/*.py"), *TESTS.glob("fuzz/*.py")])
    assert named - names_in(TESTS.rglob("test_*.py")) == set()
    assert suite - named - names_in([Path(__file__)]) == set()


def test_it_is_one_page() -> None:
    assert len(PAGE.read_text().splitlines()) < 90
