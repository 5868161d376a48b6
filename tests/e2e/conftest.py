"""The host of a test: fresh, not started yet, and ended whatever happens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Images
from tests.e2e.machines import VDEVS, Machine, Start, disks_in
from tests.e2e.network import Network, apart
from tests.e2e.site import Member, site
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


@contextmanager
def _checked(members: list[Member], test: Any) -> Iterator[None]:
    """After the test, see that it walked the rows it names and met nothing unexpected."""
    failed = test.session.testsfailed
    yield
    if test.session.testsfailed > failed:
        return
    walked = {row for member in members for row in member.walked()}
    named = {row for mark in test.iter_markers("walks") for row in mark.args}
    assert named <= walked, f"not walked: {sorted(named - walked)}"
    met = [e for member in members for e in member.events("replication.unexpected")]
    allowed = {row for mark in test.iter_markers("unexpected") for row in mark.args}
    found = {f"{e['role']} {e['state']} {e['cause']}" for e in met}
    assert found == allowed, f"unexpected: {met}"


@pytest.fixture
def two(tmp_path: Path, images: Images, request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    with site(tmp_path, images, 2) as members, _checked(members, request.node):
        yield members


@pytest.fixture
def three(tmp_path: Path, images: Images, request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    with site(tmp_path, images, 3) as members, _checked(members, request.node):
        yield members


@pytest.fixture
def network(
    tmp_path: Path, images: Images, request: pytest.FixtureRequest
) -> Iterator[tuple[Network, list[Member]]]:
    with apart(tmp_path, images) as (cable, members), _checked(members, request.node):
        yield cable, members


@pytest.fixture
def pair(start: Start) -> tuple[Machine, Machine]:
    return start("primary", Role.PRIMARY), start("secondary", Role.SECONDARY)
