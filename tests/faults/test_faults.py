"""The short form of ``make faults``: each fault a few times."""

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.e2e.host import Images
from tests.faults.table import FAULTS
from tests.faults.trial import Fault, Trial

SHORT = [fault for fault in FAULTS if fault.short]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("fault", SHORT, ids=[fault.name for fault in SHORT])
def test_survived(fault: Fault, images: Images, tmp_path: Path) -> None:
    seed = int(os.environ.get("XENCOLO_SEED") or secrets.randbits(32))
    print(f"XENCOLO_SEED={seed}")  # noqa: T201 - shown when the test fails
    trial = Trial(tmp_path, images, fault.short, random.Random(f"{seed} {fault.name}"))
    with trial.stack:
        fault.run(trial)
    assert trial.tried == trial.survived > 0
