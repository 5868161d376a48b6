"""The host of a test: fresh, not started yet, and ended whatever happens."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.host import Host, Images
from tests.e2e.machines import VDEVS, Machine, Start, disks_in
from tests.rigs import Server
from xencolo.disk import Role
from xencolo.graph import Form


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def host(tmp_path: Path, images: Images, xenstored: Server) -> Iterator[Host]:
    made = Host(tmp_path, images, xenstored.socket)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start QEMUs that end with the test."""
    with ExitStack() as stack:

        def begin(
            name: str, role: Role, form: Form = Form.BLOCKDEV, vdevs: tuple[str, ...] = VDEVS
        ) -> Machine:
            directory = tmp_path / name
            machine = Machine(directory, disks_in(directory, vdevs), form)
            stack.callback(machine.kill)
            machine.start(role)
            return machine

        yield begin


@pytest.fixture
def pair(start: Start) -> tuple[Machine, Machine]:
    return start("primary", Role.PRIMARY), start("secondary", Role.SECONDARY)
