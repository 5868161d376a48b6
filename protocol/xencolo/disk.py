"""A disk as libxl describes it: one frozen value, its COLO part, its formats and backends.

Source: ``libxl_device_disk`` in Xen's ``libxl_types.idl`` and the defaults of
``libxl__device_disk_setdefault``. The names are libxl's, in JSON too.
"""

import ipaddress
import re
from enum import StrEnum
from typing import Any

import msgspec

from xencolo.errors import DiskError
from xencolo.paths import DOMID_MAX, vdev_to_devid


class Backend(StrEnum):
    """Who serves the disk; the value is libxl's name in JSON."""

    UNKNOWN = "unknown"
    PHY = "phy"
    TAP = "tap"
    QDISK = "qdisk"
    STANDALONE = "standalone"


class Format(StrEnum):
    """How the image is laid out; the value is libxl's name in JSON."""

    UNKNOWN = "unknown"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    RAW = "raw"
    EMPTY = "empty"
    QED = "qed"


class Specification(StrEnum):
    """What the guest sees."""

    XEN = "xen"
    VIRTIO = "virtio"


class Role(StrEnum):
    """The domain's part in COLO: ``none``, ``primary`` or ``secondary``."""

    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"


#: The five fields of a COLO disk, with the node and specification key of each.
COLO_FIELDS = {
    "colo_host": "colo-host",
    "colo_port": "colo-port",
    "colo_export": "colo-export",
    "active_disk": "active-disk",
    "hidden_disk": "hidden-disk",
}


def parse_port(text: str) -> int:
    """Return a TCP port: a whole number from 1 to 65535, where libxl's atoi took 99abc and 70000.

    :raises DiskError: it is none.
    """
    if not re.fullmatch(r"[1-9]\d{0,4}", text, re.ASCII) or int(text) > 65535:
        reason = f"colo-port {text[:20]!r} is not a whole number from 1 to 65535"
        raise DiskError(reason, "colo_port")
    return int(text)


# QEMU's id_wellformed() and its limit of 31 characters for a node name.
_NODE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9\-._]{0,30}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9\-._]{1,255}", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9\-._]{1,15})?", re.ASCII)


def check_export(name: str) -> str:
    """Return the name if QEMU takes it as export and as node name.

    :raises DiskError: it does not.
    """
    if not _NODE_NAME.fullmatch(name):
        raise DiskError(
            f"colo-export {name[:40]!r}: QEMU needs a letter, then up to 30 letters, digits, - . _",
            "colo_export",
        )
    return name


def is_host(text: str) -> bool:
    """Whether the text can be a host name or an address; one of IPv6 has no brackets."""
    return is_ipv6(text) if ":" in text else bool(_NAME.fullmatch(text))


def is_ipv6(text: str) -> bool:
    """Whether the text is an address of IPv6, its zone behind it or not (``fe80::1%eth0``)."""
    if not _IPV6.fullmatch(text):
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_host(host: str) -> str:
    """Return the text if it can be a host name or an address.

    :raises DiskError: it can't.
    """
    if is_host(host):
        return host
    reason = f"colo-host {host[:40]!r} is no host name and no address"
    remedy = "; the port goes into colo-port, and IPv6 has no brackets here" if ":" in host else ""
    raise DiskError(reason + remedy, "colo_host")


# A path for open(2): a NUL ends it early, a control character forges lines in logs, and a lone
# surrogate (what Python makes of bytes that are no UTF-8) can't go into xenstore or JSON.
_UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def check_image(path: str) -> str:
    """Return the path if it can name an image in a node, in a log and on a command line.

    :raises DiskError: it is empty, holds control characters or is not UTF-8.
    """
    if not path:
        raise DiskError("the path of the image is empty")
    if match := _UNUSABLE.search(path):
        raise DiskError(
            f"the path {path[:80]!r} holds the character {match[0]!r}: rename the image"
        )
    return path


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """libxl's ``libxl_device_disk``; compare, hash and ``msgspec.structs.replace`` it as a value.

    :ivar backend_domid: the domain that serves the disk.
    :ivar pdev_path: the image or block device (``target``); None or empty for an empty cdrom.
    :ivar vdev: the name in the guest, ``xvda``.
    :ivar discard_enable: None means libxl's default, on if and only if the disk is read-write.
    :ivar colo_restore_enable: the domain is being restored from a COLO stream: it is a secondary.
    :ivar colo_port: TCP port of the secondary's NBD server; 0 when the disk is not for COLO.
    """

    backend_domid: int = 0
    pdev_path: str | None = None
    vdev: str
    backend: Backend = Backend.UNKNOWN
    format: Format = Format.UNKNOWN
    script: str | None = None
    removable: bool = False
    readwrite: bool = True
    is_cdrom: bool = False
    direct_io_safe: bool = False
    discard_enable: bool | None = None
    specification: Specification = Specification.XEN
    trusted: bool = True
    colo_enable: bool = False
    colo_restore_enable: bool = False
    colo_host: str | None = None
    colo_port: int = 0
    colo_export: str | None = None
    active_disk: str | None = None
    hidden_disk: str | None = None

    @property
    def devid(self) -> int:
        """The number under which xenstore keeps the device."""
        return vdev_to_devid(self.vdev)

    @property
    def empty(self) -> bool:
        """Whether there is no medium in it."""
        return self.format is Format.EMPTY or not self.pdev_path

    @property
    def discard(self) -> bool:
        """``discard_enable`` with libxl's default filled in."""
        return self.readwrite if self.discard_enable is None else self.discard_enable

    def check(self) -> None:
        """Check what libxl checks before it adds a disk, and what it forgot for COLO.

        :raises DiskError: with the fields that don't go together and the remedy.
        :raises VdevError: the vdev can't be.
        """
        vdev_to_devid(self.vdev)
        if not 0 <= self.backend_domid <= DOMID_MAX:
            raise DiskError(
                f"{self.vdev} has backend {self.backend_domid}: a domid is from 0 to {DOMID_MAX}",
                "backend_domid",
            )
        if self.pdev_path:
            check_image(self.pdev_path)
        if self.format is Format.EMPTY and not self.is_cdrom:
            raise DiskError(
                f"{self.vdev} is empty but no cdrom: give it a target or devtype=cdrom", "format"
            )
        if self.format is Format.EMPTY and self.pdev_path:
            raise DiskError(
                f"{self.vdev} is empty but has the target {self.pdev_path}: leave one of them out",
                "format",
            )
        if self.colo_enable:
            self._check_colo()

    def _check_colo(self) -> None:
        for field, key in COLO_FIELDS.items():
            if not getattr(self, field):
                raise DiskError(f"COLO is enabled for {self.vdev} and {key} is missing", field)
        parse_port(str(self.colo_port))
        check_export(self.colo_export or "")
        check_host(self.colo_host or "")
        for field in ("pdev_path", "active_disk", "hidden_disk"):
            self._check_whole(field)
        if self.backend not in {Backend.QDISK, Backend.UNKNOWN}:
            raise DiskError(
                f"COLO needs backendtype=qdisk; {self.vdev} has {self.backend}", "backend"
            )
        if self.script:
            raise DiskError(
                f"COLO needs qdisk, which has no script; {self.vdev} has {self.script}", "script"
            )
        if self.specification is not Specification.XEN:
            raise DiskError(
                f"COLO needs qdisk, and qdisk specification=xen; {self.vdev} has "
                f"{self.specification}",
                "specification",
            )
        if len({self.pdev_path, self.active_disk, self.hidden_disk}) < 3:
            raise DiskError(
                f"target, active-disk and hidden-disk of {self.vdev} must be three files",
                "active_disk" if self.pdev_path == self.active_disk else "hidden_disk",
            )

    def _check_whole(self, field: str) -> None:
        """Check that a COLO disk's image is a path that QEMU can't take for a protocol (``json:``)."""
        path = getattr(self, field)
        if path and not check_image(path).startswith("/"):
            raise DiskError(
                f"COLO needs whole paths: {path[:80]!r} of {self.vdev} does not begin with '/'",
                field,
            )


def disk_to_json(disk: Disk) -> dict[str, Any]:
    """Return the disk as a JSON object under libxl's names."""
    result: dict[str, Any] = msgspec.to_builtins(disk)
    return result


def disk_from_json(value: object) -> Disk:
    """Return the disk that a JSON object describes; what is left out has libxl's default.

    :raises DiskError: an unknown name, a wrong type or an unknown word, with its place.
    :raises VdevError: the vdev can't be.
    """
    try:
        disk = msgspec.convert(value, Disk)
    except msgspec.ValidationError as error:
        raise DiskError(f"not a disk: {error}") from None
    disk.check()
    return disk
