"""The fixtures of the end-to-end tests, and stores with a guest: what is attacked here."""

from tests.daemon.conftest import colo_guest, guest
from tests.e2e.conftest import host, images

__all__ = ["colo_guest", "guest", "host", "images"]
