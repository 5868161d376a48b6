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
    # No argument can hold a NUL, and no table or log should get a new line.
    name = "".join(filter(str.isprintable, launch.name)).replace(",", ",,")
    chardev = f"{OWN_ID_PREFIX}-{nonce}"
    return [
        qemu.binary,
        *["-machine", qemu.machine],
        *(["-m", str(launch.memory)] if launch.memory else []),
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
    return _own_chardev(argv)[1]


def _own_chardev(argv: Sequence[str]) -> tuple[int, str]:
    """Return the index of the daemon's own chardev, and its nonce."""
    for index, argument in enumerate(argv):
        if match := _CHARDEV.match(argument):
            return index, match[1]
    raise DriveError(f"{' '.join(argv[:1]) or 'a dying process'} was not started by xencolod")


def launch_in(domid: int, argv: Sequence[str]) -> Launch:
    """Return what a QEMU that an earlier xencolod started runs with.

    The configuration may have a ``-name`` or ``-mon`` too: what counts is what stands by the daemon's own
    chardev.

    :raises DriveError: xencolod did not start it.
    """
    chardev, _ = _own_chardev(argv)
    head = argv[:chardev]
    own = head[len(head) - 1 - head[::-1].index("-name") :]
    drives = tuple(argv[chardev + 3 : argv.index("-pidfile", chardev)])
    name = own[1].removeprefix("guest=").replace(",,", ",")
    uuid = own[own.index("-uuid") + 1] if "-uuid" in own else None
    # Here the configuration can have no -m of its own.
    memory = int(head[head.index("-m") + 1]) if "-m" in head else None
    return Launch(domid, name, uuid, memory, role_of(drives), drives)


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
