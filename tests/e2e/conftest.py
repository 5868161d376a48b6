"""The host of a test: fresh, not started yet, and ended whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, Images
from tests.rigs import Server


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
