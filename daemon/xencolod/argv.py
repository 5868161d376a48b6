"""QEMU's command line: written for a launch, and read back from a QEMU that is found running."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from xencolo.disk import Role
from xencolo.errors import DriveError
from xencolo.plan import Launch
from xencolod.config import OWN_ID_PREFIX, Config

#: The descriptor under which QEMU gets its listening QMP socket.
SOCKET_FD = 3

_CHARDEV = re.compile(rf"socket,id={OWN_ID_PREFIX}-([0-9a-f]+),")


def command_line(
    config: Config, launch: Launch, pidfile: str, nonce: str, *, xen: bool
) -> list[str]:
    """Return QEMU's argv; the drives stand between ``-mon`` and ``-pidfile``.

    :param nonce: names this start's QMP socket.
    :param xen: whether QEMU is the device model of a domain of Xen's.
    """
    qemu = config.qemu
    name = launch.name.replace(",", ",,")
    chardev = f"{OWN_ID_PREFIX}-{nonce}"
    return [
        qemu.binary,
        *["-machine", qemu.machine],
        *(["-m", str(qemu.memory)] if qemu.memory else []),
        *qemu.arguments,
        *["-name", f"guest={name}"],
        *(["-uuid", launch.uuid] if launch.uuid else []),
        *(["-xen-domid", str(launch.domid)] if xen else []),
        *["-chardev", f"socket,id={chardev},fd={SOCKET_FD},server=on,wait=off"],
        *["-mon", f"chardev={chardev},mode=control"],
        *launch.drives,
        *["-pidfile", pidfile],
        *qemu.extra_arguments,
    ]


def nonce_in(argv: Sequence[str]) -> str:
    """Return the nonce of a QEMU that an earlier xencolod started.

    :raises DriveError: xencolod did not start it.
    """
    for argument in argv:
        if match := _CHARDEV.match(argument):
            return match[1]
    raise DriveError(f"{argv[0]} was not started by xencolod")


def launch_in(domid: int, argv: Sequence[str]) -> Launch:
    """Return what a QEMU that an earlier xencolod started runs with."""
    drives = tuple(argv[argv.index("-mon") + 2 : argv.index("-pidfile")])
    name = argv[argv.index("-name") + 1].removeprefix("guest=").replace(",,", ",")
    uuid = argv[argv.index("-uuid") + 1] if "-uuid" in argv else None
    return Launch(domid, name, uuid, role_of(drives), drives)


def role_of(drives: Iterable[str]) -> Role:
    """Return the role whose drives these are, in either form."""
    drivers = {driver for argument in drives for driver in _top_drivers(argument)}
    if "replication" in drivers:
        return Role.SECONDARY
    return Role.PRIMARY if "quorum" in drivers else Role.NONE


def _top_drivers(argument: str) -> Iterator[str]:
    if argument.startswith("{"):
        yield str(json.loads(argument).get("driver"))
        return
    for option in argument.replace(",,", "").split(","):
        key, _, value = option.partition("=")
        if key == "driver":
            yield value
