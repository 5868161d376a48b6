"""Stores with a guest, for the tests of the daemon's rooms."""

import pytest

from tests.daemon.cli_rig import spec, xencolo
from tests.rigs import Server


@pytest.fixture
def guest(xenstored: Server) -> Server:
    """A store with domain 5, web."""
    xencolo(xenstored, "domain", "create", "5", "--name", "web")
    return xenstored


@pytest.fixture
def colo_guest(guest: Server) -> Server:
    """The same with a COLO disk, xvda."""
    xencolo(guest, "disk", "add", "5", spec())
    return guest
