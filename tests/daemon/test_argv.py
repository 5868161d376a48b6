"""QEMU's command line, written and read back."""

import pytest

from xencolo.disk import Role
from xencolo.diskspec import parse
from xencolo.drives import Form, domain_drives
from xencolo.errors import DriveError
from xencolo.plan import Launch
from xencolod import config
from xencolod.argv import command_line, launch_in, nonce_in

SPEC = (
    "vdev=xvda,colo,colo-host=192.0.2.2,colo-port=9000,colo-export=web,active-disk=/i/a,"
    "hidden-disk=/i/h,target=/i/web.raw"
)
UUID = "6b0e5f0a-0000-4000-8000-000000000001"
# The operator's words may look like the daemon's own.
QEMU = """[qemu]
arguments = ["-nodefaults", "-chardev", "null,id=c", "-mon", "chardev=c"]
extra_arguments = ["-chardev", "null,id=d", "-mon", "chardev=d"]
"""


def launched(role: Role, form: Form, name: str, uuid: str | None, memory: int | None) -> Launch:
    drives = domain_drives([parse(SPEC)], role, form).arguments
    return Launch(5, name, uuid, memory, role, drives)


@pytest.mark.parametrize("xen", [True, False])
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("name", "uuid", "memory"), [("web", UUID, 1016), ("a,b=c", None, None), ("-m", UUID, 1)]
)
def test_what_is_written_is_read_back(
    xen: bool, role: Role, form: Form, name: str, uuid: str | None, memory: int | None
) -> None:
    for text in ("", QEMU):
        launch = launched(role, form, name, uuid, memory)
        settings = config.parse(text.encode(), name="x.toml", xen=xen)
        argv = command_line(settings, launch, "/run/5.pid", "00ff", xen=xen)
        assert launch_in(5, argv) == launch
        # As a wrapper's argv shows it.
        assert launch_in(5, ["/bin/sh", *argv]) == launch
        assert nonce_in(argv) == "00ff"
        assert ("-xen-domid" in argv) == xen
        assert argv.count("-m") == (memory is not None)


def test_memory_is_the_launchs_alone() -> None:
    settings = config.parse(b"[qemu]\nmemory = 300\n", name="x.toml", xen=False)
    launch = launched(Role.NONE, Form.BLOCKDEV, "web", UUID, 1016)
    argv = command_line(settings, launch, "/run/5.pid", "00ff", xen=False)
    assert argv[argv.index("-m") + 1] == "1016"


@pytest.mark.parametrize("argv", [[], ["qemu-system-x86_64", "-m", "64", "-mon", "chardev=c"]])
def test_what_xencolod_did_not_start(argv: list[str]) -> None:
    with pytest.raises(DriveError, match="was not started by xencolod"):
        launch_in(5, argv)
