"""The fixtures of the end-to-end tests: a host that a guest or a peer attacks."""

from tests.e2e.conftest import host, images

__all__ = ["host", "images"]
