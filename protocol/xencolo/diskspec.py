"""xl's disk specification: text → disk, disk → text, and the choice of the backend.

Sources: xl-disk-configuration(5), libxlu's scanner (``libxlu_disk_l.l``) and libxl's
``libxl__device_disk_set_backend``. Stricter than libxlu where it loses something without a word: a
parameter given twice, ``colo-port=99abc``, COLO parameters without ``colo``.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from xencolo.disk import (
    COLO_FIELDS,
    Backend,
    Disk,
    Format,
    Specification,
    check_export,
    check_host,
    check_image,
    parse_port,
)
from xencolo.errors import DiskError, PathError, SpecError
from xencolo.paths import parse_domid, vdev_to_devid

# -- the table -----------------------------------------------------------------------------------


def _vdev(text: str) -> str:
    vdev_to_devid(text)
    return text


def _backend_domid(text: str) -> int:
    if text == "Domain-0":
        return 0
    try:
        return parse_domid(text)
    except PathError:
        raise DiskError(
            f"backend {text[:40]!r}: a name can't be looked up here, give the domid of the domain"
        ) from None


class _Key(NamedTuple):
    """A parameter with a value.

    :ivar field: of :class:`~xencolo.disk.Disk`.
    :ivar check: text to value; raises DiskError or VdevError with the reason.
    :ivar words: the texts it can be and what they mean, where there is no ``check``; of two with
        one meaning the first is written.
    """

    field: str
    check: Callable[[str], Any] | None = None
    words: Mapping[str, Any] = {}

    def value(self, text: str) -> Any:  # noqa: ANN401 - the field's own type
        if self.check:
            return self.check(text)
        if text not in self.words:
            words = ", ".join(self.words)
            raise DiskError(f"unknown value {text[:40]!r}: one of {words} is needed")
        return self.words[text]

    def text(self, value: object) -> str:
        return next((word for word, meaning in self.words.items() if meaning == value), str(value))


_KEYS = {
    "format": _Key("format", words={f.value: f for f in Format if f is not Format.UNKNOWN}),
    "vdev": _Key("vdev", _vdev),
    "access": _Key("readwrite", words={"ro": False, "rw": True, "r": False, "w": True}),
    "devtype": _Key("is_cdrom", words={"cdrom": True, "disk": False}),
    "backend": _Key("backend_domid", _backend_domid),
    "backendtype": _Key("backend", words={b.value: b for b in Backend if b is not Backend.UNKNOWN}),
    "script": _Key("script", check_image),
    "specification": _Key("specification", words={s.value: s for s in Specification}),
    "colo-host": _Key("colo_host", check_host),
    "colo-port": _Key("colo_port", parse_port),
    "colo-export": _Key("colo_export", check_export),
    "active-disk": _Key("active_disk", check_image),
    "hidden-disk": _Key("hidden_disk", check_image),
    "target": _Key("pdev_path", check_image),
}

_FLAGS: Mapping[str, tuple[str, bool]] = {
    "cdrom": ("is_cdrom", True),
    "direct-io-safe": ("direct_io_safe", True),
    "discard": ("discard_enable", True),
    "no-discard": ("discard_enable", False),
    "colo": ("colo_enable", True),
    "no-colo": ("colo_enable", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
}

_POSITIONAL = ("target", "format", "vdev", "access")

# xend's prefixes: what each still means.
_PREFIXES: Mapping[str, tuple[str, str] | None] = {
    **{name: ("format", name) for name in ("raw", "qcow", "qcow2", "vhd")},
    **{name: ("script", f"block-{name}") for name in ("iscsi", "nbd", "enbd", "drbd")},
    **dict.fromkeys(("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")),
}

_DEFAULTS = Disk(vdev="", format=Format.RAW)

# -- parsing -------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\n]*")
_PREFIX = re.compile(r"([a-z][a-z0-9]*):", re.ASCII)


class _Parser:
    """One pass over a specification."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.values: dict[str, Any] = {}
        #: Where each field was mentioned, with an empty value too: that fills a positional place.
        self.places: dict[str, int] = {}

    def fail(self, reason: str, position: int) -> NoReturn:
        raise SpecError(reason, self.spec, position)

    def run(self) -> None:
        at = 0
        while (at := self.skip_space(at)) < len(self.spec):
            at = self.parameter(at)

    def skip_space(self, at: int) -> int:
        match = _SPACE.match(self.spec, at)
        return match.end() if match else at

    def parameter(self, at: int) -> int:
        """Take the parameter at a position and return where the next one begins."""
        if self.spec.startswith("target=", at):
            self.set_text("target", at + len("target="), self.spec[at + len("target=") :], at)
            return len(self.spec)
        if end := self.prefix(at):
            return end
        end = self.spec.find(",", at)
        end = len(self.spec) if end < 0 else end
        token = self.spec[at:end]
        key, equals, text = token.partition("=")
        if token in _FLAGS:
            self.set(*_FLAGS[token], token, at)
        elif key in _KEYS and equals:
            self.set_text(key, at + len(key) + 1, text, at)
        elif equals:
            self.unknown(key, at)
        else:
            self.positional(token, at)
        return end + 1

    def prefix(self, at: int) -> int | None:
        """Take a deprecated prefix if there is one."""
        match = _PREFIX.match(self.spec, at)
        if not match:
            return None
        name, end = match[1], match.end()
        if name not in _PREFIXES:
            # hdc:cdrom is no prefix: what follows one is a path or another prefix's colon
            if re.match(r"[a-z0-9]", self.spec[end : end + 1], re.ASCII):
                return None
            self.fail(f"unknown prefix {name}: leave it out, or write target={name}:...", at)
        if meaning := _PREFIXES[name]:
            self.set_text(meaning[0], at, meaning[1], at)
        # <prefix>:<target>,<vdev>,<access> has no place for a format
        self.places.setdefault("format", at)
        return end

    def positional(self, text: str, at: int) -> None:
        free = [key for key in _POSITIONAL if _KEYS[key].field not in self.places]
        if not free:
            self.fail("too many positional parameters: target, format, vdev, access are there", at)
        empty_target = "pdev_path" not in self.values
        vdev, colon, devtype = text.rpartition(":")
        if colon and (free[0] == "vdev" or (free[0] == "format" and empty_target)):
            if free[0] == "format":
                self.places["format"] = at  # ,<vdev>:<devtype>: xend's empty cdrom
            self.set_text("vdev", at, vdev, at)
            self.set_text("devtype", at + len(vdev) + 1, devtype, at)
        else:
            self.set_text(free[0], at, text, at)

    def set_text(self, key: str, value_at: int, text: str, at: int) -> None:
        """Convert a value; an empty one counts as not given."""
        field = _KEYS[key].field
        if not text:
            self.places.setdefault(field, at)
            return
        try:
            value = _KEYS[key].value(text)
        except (DiskError, PathError) as error:
            self.fail(str(error), value_at)
        self.set(field, value, key, at)
        self.places[field] = value_at

    def set(self, field: str, value: object, name: str, at: int) -> None:
        if field in self.values:
            if self.values[field] != value and name in _FLAGS:
                self.fail(f"{name} contradicts what was said before: leave one of them out", at)
            first = self.spec[self.places[field] :].partition(",")[0]
            self.fail(f"{name} was given already, by {first[:40]!r}: leave one of them out", at)
        self.values[field] = value
        self.places[field] = at

    def unknown(self, key: str, at: int) -> NoReturn:
        if "/" in key:
            self.fail("a target with a '=' or a ',' in it must come last, as target=...", at)
        known = [*_KEYS, *_FLAGS]
        if key in _FLAGS:
            self.fail(f"{key} takes no value", at)
        near = difflib.get_close_matches(key, known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        self.fail(f"unknown parameter {key[:40]!r}: {remedy}", at)


def parse(spec: str) -> Disk:
    """Return the disk that an xl disk specification describes, checked.

    ``backend=`` takes a domid or ``Domain-0``. COLO parameters need ``colo``, or ``no-colo`` to be
    kept unused.

    :raises SpecError: with the place of the first thing that is wrong.
    """
    parser = _Parser(spec)
    parser.run()
    values, places, end = parser.values, parser.places, len(spec)
    values.setdefault("format", Format.RAW)
    if values.get("is_cdrom"):
        values.update(removable=True, readwrite=False)
        if "pdev_path" not in values:
            values["format"] = Format.EMPTY
    if "vdev" not in values:
        parser.fail("no vdev: add vdev=xvda or another name for the guest", end)
    if "pdev_path" not in values and values["format"] is not Format.EMPTY:
        parser.fail("no target: add target=<path>, or devtype=cdrom for an empty drive", end)
    unused = [(f, key) for f, key in COLO_FIELDS.items() if f in values]
    if unused and "colo_enable" not in values:
        field, key = min(unused, key=lambda item: places[item[0]])
        parser.fail(f"{key} without colo: add colo, or no-colo to keep it unused", places[field])
    disk = Disk(**values)
    try:
        disk.check()
    except DiskError as error:
        parser.fail(str(error), places.get(error.field, places.get("colo_enable", end)))
    return disk


# -- writing ------------------------------------------------------------------------------------


def format_spec(disk: Disk) -> str:
    """Return the disk's specification, defaults left out and ``target=`` last: the canonical one.

    ``removable`` of a cdrom is implied, of another disk it can't be said, and neither can
    ``colo_restore_enable``, which is the domain's. :func:`parse` gives every other field back.

    :raises DiskError: a value other than the target has a comma.
    """
    words = []
    implied = {"target"}
    implied |= {"access"} if disk.is_cdrom else set()
    implied |= {"format"} if disk.empty or disk.format is Format.UNKNOWN else set()
    for name, key in _KEYS.items():
        value = getattr(disk, key.field)
        if name in implied or value in {getattr(_DEFAULTS, key.field), None}:
            continue
        text = key.text(value)
        if "," in text:
            raise DiskError(f"{name} {text!r}: only a target may have a comma", key.field)
        words.append(f"{name}={text}")
    for flag, (field, value) in _FLAGS.items():
        if flag != "cdrom" and getattr(disk, field) is value is not getattr(_DEFAULTS, field):
            words.append(flag)
    if not disk.colo_enable and any(getattr(disk, field) for field in COLO_FIELDS):
        words.append("no-colo")
    if disk.pdev_path:
        words.append(f"target={disk.pdev_path}")
    return ",".join(words)


# -- the backend --------------------------------------------------------------------------------


class Selection(NamedTuple):
    """The backend that serves a disk, and why: the reasons are for the log, at debug."""

    backend: Backend
    reasons: tuple[str, ...]


class _Rule(NamedTuple):
    """A line of a backend's table: the first whose ``when`` holds decides."""

    when: Callable[[Disk, bool], bool]
    fits: bool
    reason: str


_COLO = _Rule(lambda d, _: d.colo_enable, False, "not compatible with colo")
_SCRIPT = _Rule(lambda d, _: bool(d.script), False, "not compatible with script={disk.script}")
_NOT_RAW = _Rule(
    lambda d, _: d.format is not Format.RAW, False, "unsuitable due to format {disk.format}"
)
_DRIVER_DOMAIN = _Rule(
    lambda d, _: d.backend_domid != 0, True, "in a driver domain, its device is not looked at"
)
_DEVICE = _Rule(lambda _, block: block, True, "fits, the target is a block device")
_NO_DEVICE = _Rule(lambda *_: True, False, "unsuitable as the target is not a block device")
_FITS = _Rule(lambda *_: True, True, "fits")
_NOT_VIRTIO = _Rule(
    lambda d, _: d.specification is Specification.VIRTIO,
    False,
    "not compatible with specification=virtio",
)

#: In the order in which libxl tries them.
_RULES: Mapping[Backend, tuple[_Rule, ...]] = {
    Backend.PHY: (
        _NOT_VIRTIO,
        _COLO,
        _Rule(lambda d, _: d.is_cdrom and d.format is Format.EMPTY, True, "fits an empty cdrom"),
        _NOT_RAW,
        _DRIVER_DOMAIN,
        _Rule(lambda d, _: bool(d.script), True, "fits, script={disk.script} makes the device"),
        _DEVICE,
        _NO_DEVICE,
    ),
    Backend.QDISK: (_NOT_VIRTIO, _SCRIPT, _FITS),
    Backend.TAP: (
        _NOT_VIRTIO,
        _Rule(
            lambda d, _: d.format not in {Format.RAW, Format.VHD},
            False,
            "unsuitable due to format {disk.format}",
        ),
        _COLO,
        _FITS,
    ),
    Backend.STANDALONE: (
        _Rule(
            lambda d, _: d.specification is not Specification.VIRTIO,
            False,
            "not compatible with specification={disk.specification}",
        ),
        _NOT_RAW,
        _SCRIPT,
        _COLO,
        _DRIVER_DOMAIN,
        _DEVICE,
        _NO_DEVICE,
    ),
}


def _candidates(disk: Disk) -> tuple[Backend, ...]:
    if disk.backend is not Backend.UNKNOWN:
        return (disk.backend,)
    # libxl gives an HVM guest's cdrom to qdisk unless told otherwise, and the guests here are HVM.
    return (Backend.QDISK,) if disk.is_cdrom else tuple(_RULES)


def select_backend(disk: Disk, *, block_device: bool) -> Selection:
    """Return the backend that libxl chooses, or the disk's own if it fits.

    :param block_device: whether the target is one; the caller has looked.
    :raises DiskError: none fits, with the reason for each.
    """
    reasons = []
    for backend in _candidates(disk):
        rule = next(rule for rule in _RULES[backend] if rule.when(disk, block_device))
        reasons.append(f"{disk.vdev}: backend {backend} {rule.reason.format(disk=disk)}")
        if rule.fits:
            return Selection(backend, tuple(reasons))
    raise DiskError(f"no suitable backend for disk {disk.vdev}: {'; '.join(reasons)}", "backend")
