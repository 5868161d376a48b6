"""The configuration: TOML in, frozen values out.

One table per section: the fields of the Structs below, each with its type, range, default and
meaning. Reading, the errors and the commented ``systemd/xencolod.toml`` all come from them. What
depends on the machine being a Xen dom0 stands in `PLATFORM`, a column for each case.

A time is in seconds and may have a fraction.
"""

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xencolo.errors import ConfigError
from xencolo.paths import DOMID_MAX

DEFAULT_PATH = Path("/etc/xencolo/xencolod.toml")
CAPABILITIES = Path("/proc/xen/capabilities")

_TEXT = r"\A[^\0]+\Z"
_ABSOLUTE = r"\A/[^\0]+\Z"
_PROGRAM = r"\A(?:/[^\0]+|[^/\0]+)\Z"
_WORDS = {
    _TEXT: "text, not empty and without NUL",
    _ABSOLUTE: "an absolute path",
    _PROGRAM: "an absolute path or a bare name",
    "object": "a table",
}

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1, le=16)]
Mebibytes = Annotated[int, Meta(ge=1, le=1 << 24)]
Domid = Annotated[int, Meta(ge=0, le=DOMID_MAX)]
Text = Annotated[str, Meta(pattern=_TEXT)]
Absolute = Annotated[str, Meta(pattern=_ABSOLUTE)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Program = Annotated[str, Meta(pattern=_PROGRAM)]
# sun_path holds 108 bytes: a socket's name must fit in behind its directory.
Directory = Annotated[str, Meta(pattern=_ABSOLUTE, max_length=80)]


class Xenstore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The way to xenstored."""

    socket: Annotated[
        Directory | None,
        "Xenstored's socket, an absolute path. By default $XENSTORED_PATH, then "
        "$XENSTORED_RUNDIR/socket, then the one shown.",
    ] = None
    timeout: Annotated[Seconds, "How long one request may take, in seconds."] = 10.0
    connections: Annotated[Count, "Connections kept open for requests, 1 to 16."] = 8
    reconnect_max: Annotated[Seconds, "Longest pause before connecting again, in seconds."] = 5.0


class Daemon(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The daemon itself."""

    domid: Annotated[Domid, "The domain this daemon runs in, whose backends it keeps."] = 0
    rescan: Annotated[Seconds, "Seconds between full passes, which find what no watch told."] = (
        300.0
    )
    settle: Annotated[
        Annotated[float, Meta(ge=0, le=60)],
        "Seconds without a change of a domain's devices before a QEMU is started for it, so that "
        "it starts once, with all of its disks.",
    ] = 0.2
    runtime_directory: Annotated[
        Directory, "Where the QMP sockets and pid files of living QEMUs are, at most 80 characters."
    ] = "/run/xencolo"
    log_directory: Annotated[Directory, "Where each QEMU's own output goes."] = "/var/log/xencolo"
    state_directory: Annotated[
        Directory,
        "Where the record of each replicated domain is, one small file; it must outlive a reboot.",
    ] = "/var/lib/xencolo"


class Qemu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The QEMU of each managed domain; the fields without a default here have it in `PLATFORM`."""

    binary: Annotated[Program, "QEMU: an absolute path, or a bare name to be found in $PATH."]
    machine: Annotated[Text, "The value of -machine."]
    memory: Annotated[Mebibytes | None, "The guest's memory in MiB; on Xen the domain's own."]
    arguments: Annotated[
        tuple[Text, ...],
        "What follows the machine and comes before the drives, each word an item; replaces the "
        "default as a whole. On Xen the daemon adds -xen-domid.",
    ]
    extra_arguments: Annotated[tuple[Text, ...], "What comes last, each word an item."] = ()
    form: Annotated[
        Literal["blockdev", "2016"],
        'How drives are written: "blockdev" for QEMU 6 and later, or "2016" for the -drive text '
        "of the first COLO change to libxl.",
    ] = "blockdev"
    restart: Annotated[
        bool,
        "Start a QEMU again that died under its running guest, or whose drives changed, and a "
        "secondary's for each new session. No guest on Xen outlives its device model.",
    ]
    start_attempts: Annotated[Count, "Failed starts after which a domain is failed, 1 to 16."] = 5
    backoff: Annotated[Seconds, "Seconds before the second start; doubled for each next."] = 0.5
    backoff_max: Annotated[Seconds, "Longest pause between two starts, in seconds."] = 30.0
    start_timeout: Annotated[Seconds, "Seconds from the start to the QMP greeting."] = 10.0
    quit_timeout: Annotated[Seconds, "Seconds from QMP's quit to SIGTERM."] = 10.0
    term_timeout: Annotated[Seconds, "Seconds from SIGTERM to SIGKILL."] = 5.0


class Images(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The images of the disks."""

    directories: Annotated[
        tuple[Absolute, ...],
        "Where images may be, symbolic links resolved: disk, active-disk and hidden-disk alike; "
        'empty allows every place. Block devices too: "/dev/vg0" allows the volumes of that group.',
    ] = ()


class Replication(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The replication of COLO disks."""

    make_images: Annotated[
        bool,
        "Make the active and hidden images of a secondary, and make them anew for each session; "
        "otherwise they must be there, empty, and as long as the disk.",
    ] = True
    assume_equal: Annotated[
        bool,
        "Do not copy the disks before a domain replicates for the first time: whoever sets this knows "
        "that both hosts' are the same then. They are copied all the same once its guest has written, its "
        "QEMU was started again, or it has replicated.",
    ] = False
    resync_speed: Annotated[
        Annotated[int, Meta(ge=0, le=1 << 20)],
        "Most MiB per second that a resync copies of each disk; 0 is no limit.",
    ] = 0
    checkpoint_interval: Annotated[
        Annotated[float, Meta(ge=0, le=86400)],
        "Seconds between two checkpoints; 0 takes them by command only.",
    ] = 0.0
    grace: Annotated[
        Seconds,
        "Seconds that one side of a session waits for the other one's daemon to come back. Then a primary "
        "detaches the disks, and a secondary puts its last checkpoint where it outlives its QEMU; the "
        "next session begins with a copy.",
    ] = 30.0
    poll: Annotated[
        Seconds, "Seconds between two looks at QEMU's replication status and at a resync."
    ] = 1.0
    retry_max: Annotated[
        Seconds, "Longest pause before the peer, or what failed, is tried again, in seconds."
    ] = 30.0
    qmp_timeout: Annotated[Seconds, "Seconds that QEMU has to answer one command."] = 10.0


class Failover(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a secondary does when it has lost its primary."""

    policy: Annotated[
        Literal["report", "command"],
        '"report" only says so; "command" runs the fencing command and takes over if, and only if, '
        "that ends with status 0.",
    ] = "report"
    command: Annotated[
        tuple[Text, ...],
        "The fencing command, each word an item; XENCOLO_DOMID, XENCOLO_NAME, XENCOLO_UUID, "
        "XENCOLO_GENERATION and XENCOLO_PEER are in its environment: the address that the primary's daemon "
        "spoke from last, empty if it has not since this one started.",
    ] = ()
    after: Annotated[
        Seconds,
        "Seconds that the primary's daemon has to be away before the fencing command is run: it may "
        "only be starting again.",
    ] = 30.0
    timeout: Annotated[
        Seconds,
        "Seconds that the fencing command may take; then it is ended with all that it has started.",
    ] = 60.0


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The way to the daemons of the other hosts."""

    listen: Annotated[
        Text, 'The address to listen on, for other daemons; "::" for all of IPv6.'
    ] = "0.0.0.0"  # noqa: S104 - nobody gets in without the keys
    port: Annotated[
        Port, "The TCP port to listen on, and to reach the other hosts on: the same on all."
    ] = 9990
    keys: Annotated[
        Absolute,
        "The key file, made once with `xencolo keys` and copied to each host. Nothing is "
        "replicated without it.",
    ] = "/etc/xencolo/keys.pem"
    ping_interval: Annotated[
        Seconds, "Seconds between two signs of life, at most half of every host's timeout."
    ] = 2.0
    timeout: Annotated[
        Seconds, "Seconds without a sign of life after which the other host counts as gone."
    ] = 10.0
    unencrypted_and_unauthenticated: Annotated[
        bool,
        "Do without keys: whoever reaches the ports can read and write the disks of the guests. "
        "The same on all hosts.",
    ] = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    xenstore: Xenstore = Xenstore()
    daemon: Daemon = Daemon()
    link: Link = Link()
    qemu: Qemu
    images: Images = Images()
    replication: Replication = Replication()
    failover: Failover = Failover()


# The default on a Xen dom0, and elsewhere. Memory None: the domain's own, from xenstore.
PLATFORM: dict[str, tuple[Any, Any]] = {
    "qemu.binary": ("/usr/libexec/xen-qemu-system-i386", "qemu-system-x86_64"),
    "qemu.machine": ("xenfv,suppress-vmdesc=on", "pc,accel=tcg"),
    "qemu.memory": (None, 64),
    "qemu.arguments": (
        ["-nodefaults", "-no-user-config", "-no-shutdown", "-display", "none"],
        ["-nodefaults", "-no-user-config", "-display", "none", "-S"],
    ),
    "qemu.restart": (False, True),
}
# What the example shows where the default is found out at run time.
_SHOWN = {"xenstore.socket": "/run/xenstored/socket"}

OWN_ID_PREFIX = "xencolo"
"""Ids in QEMU that begin so are the daemon's; the configuration may not use them."""

_OWN_OPTIONS = {
    **dict.fromkeys(
        ("-blockdev", "-drive", "-hda", "-hdb", "-hdc", "-hdd", "-cdrom"),
        "drives come from xenstore alone (xencolo disk add)",
    ),
    **dict.fromkeys(
        ("-qmp", "-qmp-pretty"), "QMP is the daemon's; give another monitor by -chardev and -mon"
    ),
    **dict.fromkeys(("-pidfile", "-daemonize"), "the daemon supervises the process itself"),
    **dict.fromkeys(
        ("-xen-domid", "-xen-attach", "-name", "-uuid"), "they come from the domain in xenstore"
    ),
    **dict.fromkeys(("-machine", "-M"), "set qemu.machine"),
    "-m": "set qemu.memory",
}
_OWN_ID = re.compile(
    rf"""(?:^|,)(?:id|node-name)={OWN_ID_PREFIX}|"(?:id|node-name)"\s*:\s*"{OWN_ID_PREFIX}"""
)


def on_xen(capabilities: Path = CAPABILITIES) -> bool:
    """Tell whether this is a Xen dom0: ``control_d`` is among the hypervisor's capabilities."""
    try:
        return "control_d" in capabilities.read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def load(path: Path | None = None, *, xen: bool | None = None) -> Config:
    """Read the configuration.

    :param path: the file, which must exist; None takes `DEFAULT_PATH` if that exists.
    :param xen: which column of `PLATFORM` holds; None asks `on_xen`.
    :raises ConfigError: it can't be read or used; the message names file and line or key.
    """
    where = path or DEFAULT_PATH
    try:
        data = where.read_bytes()
    except FileNotFoundError as error:
        if path is not None:
            raise ConfigError(
                f"{where}: there is no such file; create it or leave it out"
            ) from error
        data = b""
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    return parse(data, name=str(where), xen=on_xen() if xen is None else xen)


def parse(data: bytes, *, name: str, xen: bool) -> Config:
    """Read the configuration from the bytes of a file called ``name``.

    :raises ConfigError: as `load`.
    """
    document = _toml(data, name)
    qemu = document.setdefault("qemu", {})
    for key, (dom0, elsewhere) in PLATFORM.items():
        if isinstance(qemu, dict):
            qemu.setdefault(key.removeprefix("qemu."), dom0 if xen else elsewhere)
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(str(error))}") from error
    for complaint in _complaints(config):
        raise ConfigError(f"{name}: {complaint}")
    return config


def _toml(data: bytes, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8; TOML has to be") from error
    except tomllib.TOMLDecodeError as error:
        text, _, place = str(error).rpartition(" (at ")
        number = re.match(r"line (\d+), column (\d+)", place)
        # The only other place tomllib names is the end of the document.
        line = int(number[1]) if number else data.count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: {text}") from error


def _keys() -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    """Every ``section.key`` with its field, in the order of the file."""
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            yield f"{section.name}.{field.name}", field


def _meaning(field: msgspec.structs.FieldInfo) -> str:
    return str(field.type.__metadata__[-1])


def _explain(complaint: str) -> str:
    """Turn msgspec's complaint into one that begins with the key and ends with the remedy."""
    what, _, place = complaint.replace("`", "").partition(" - at $.")
    meanings = {key: _meaning(field) for key, field in _keys()}
    if unknown := re.search(r"unknown field (\S+)$", what):
        key = f"{place}.{unknown[1]}".lstrip(".")
        every = (*meanings, *Config.__struct_fields__)
        siblings = [one for one in every if one.rpartition(".")[0] == place]
        # Of two keys with one name it is the one in this table.
        known = {one.rpartition(".")[2]: one for one in (*every, *siblings)}
        near = difflib.get_close_matches(unknown[1], known, n=1)
        remedy = f"did you mean {known[near[0]]}?" if near else f"known: {', '.join(siblings)}"
        return f"{key}: unknown key; {remedy}"
    for formal, words in _WORDS.items():
        what = what.replace(f"str matching regex {formal!r}", words).replace(formal, words)
    meaning = meanings.get(place.partition("[")[0])
    return f"{place}: {what}" + (f" ({meaning})" if meaning else "")


def _complaints(config: Config) -> Iterator[str]:
    """What types and ranges do not say."""
    if config.qemu.backoff_max < config.qemu.backoff:
        yield f"qemu.backoff_max: less than qemu.backoff, {config.qemu.backoff}"
    if config.failover.policy == "command" and not config.failover.command:
        yield 'failover.command: needed by failover.policy = "command"'
    if config.link.timeout < 2 * config.link.ping_interval:
        yield f"link.timeout: less than twice link.ping_interval, {config.link.ping_interval}"
    for key in ("arguments", "extra_arguments"):
        for index, item in enumerate(getattr(config.qemu, key)):
            if remedy := _own(item):
                yield f"qemu.{key}[{index}]: {item} is the daemon's own; {remedy}"


def _own(item: str) -> str | None:
    """Why an argument of QEMU is not the operator's to give; None if it is."""
    if _OWN_ID.search(item):
        return f"choose an id that does not begin with {OWN_ID_PREFIX}"
    # QEMU takes an option with two dashes for the one with one.
    return _OWN_OPTIONS.get(f"-{item.removeprefix('--')}" if item.startswith("--") else item)


def example() -> str:
    """Render ``systemd/xencolod.toml``: every key, commented out, with its default and meaning."""
    lines = _comment(
        "xencolod's configuration, read at the start and on SIGHUP (systemctl reload xencolod). "
        "Each key stands at its default, or at an example where its text tells of another."
    )
    headed = ""
    for key, field in _keys():
        section, _, name = key.partition(".")
        if section != headed:
            lines += ["", f"[{section}]"]
            headed = section
        text, value = _meaning(field), _SHOWN.get(key, field.default)
        if key in PLATFORM:
            dom0, elsewhere = PLATFORM[key]
            text += f" Without Xen: {json.dumps(elsewhere)}."
            value = elsewhere if dom0 is None else dom0
        # What JSON writes of strings, numbers, booleans and lists, TOML reads.
        lines += ["", *_comment(text), f"#{name} = {json.dumps(value)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, 92, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
