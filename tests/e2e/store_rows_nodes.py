"""Rows about nodes: values, permissions, paths, listings."""

from tests.e2e.store_row import OK, Differs, Row, Scenario
from xencolo.wire import Op

_ROOT = "it removes everything"
_UNORDERED = "it lists children by name, not by age"
_NO_PART = "4.17 does not know DIRECTORY_PART"
_DOM0_TOO = "its quota of bytes, 2048 for a value, holds for dom0 too"
_BYTES = "|" + "".join(chr(byte) for byte in range(1, 256) if chr(byte) != "|")

NODES = (
    Scenario(
        "values and parents",
        (
            Row("dom0", Op.READ, "/a/b|", "ENOENT"),
            Row("dom0", Op.WRITE, "/a/b|value", OK),
            Row("dom0", Op.READ, "/a/b|", "value"),
            Row("dom0", Op.READ, "/a|", ""),
            Row("dom0", Op.WRITE, "/a/b|", OK),
            Row("dom0", Op.READ, "/a/b|", ""),
            Row("dom0", Op.WRITE, "/a/b|x|y|", OK),
            Row("dom0", Op.READ, "/a/b|", "x|y|"),
            Row("dom0", Op.MKDIR, "/a/b|", OK),
            Row("dom0", Op.READ, "/a/b|", "x|y|"),
            Row("dom0", Op.MKDIR, "/m/n/o|", OK),
            Row("dom0", Op.DIRECTORY, "/m|", "n|"),
            Row("dom0", Op.DIRECTORY, "/m/n/o|", ""),
            Row("dom0", Op.DIRECTORY, "/none|", "ENOENT"),
            Row("dom0", Op.READ, "/a/b/c/d|", "ENOENT"),
            Row("dom0", Op.GET_PERMS, "/none|", "ENOENT"),
        ),
    ),
    Scenario(
        "removing",
        (
            Row("dom0", Op.WRITE, "/a/b/c|1", OK),
            Row("dom0", Op.WRITE, "/a/d|2", OK),
            Row("dom0", Op.RM, "/a/b|", OK),
            Row("dom0", Op.READ, "/a/b/c|", "ENOENT"),
            Row("dom0", Op.DIRECTORY, "/a|", "d|"),
            Row("dom0", Op.RM, "/a/b|", OK),
            Row("dom0", Op.RM, "/a/b/c|", "ENOENT"),
            Row("dom0", Op.RM, "/a|", OK),
            Row("dom0", Op.READ, "/a/d|", "ENOENT"),
            Row(
                "dom0",
                Op.RM,
                "/|",
                "EINVAL",
                oxenstored=Differs(_ROOT, OK),
            ),
            Row(
                "dom0",
                Op.READ,
                "/local/domain/0/name|",
                "Domain-0",
                oxenstored=Differs(_ROOT, "ENOENT"),
            ),
        ),
    ),
    Scenario(
        "the order of a listing",
        (
            Row("dom0", Op.MKDIR, "/l/b|", OK),
            Row("dom0", Op.MKDIR, "/l/a|", OK),
            Row("dom0", Op.DIRECTORY, "/l|", "b|a|", oxenstored=Differs(_UNORDERED, "a|b|")),
            Row(
                "dom0",
                Op.DIRECTORY,
                "/|",
                "tool|local|l|",
                oxenstored=Differs(
                    "it keeps the special watches as nodes of the root",
                    "@introduceDomain|@releaseDomain|l|local|tool|",
                ),
            ),
        ),
    ),
    Scenario(
        "relative paths are under the caller's home",
        (
            Row("dom0", Op.WRITE, "r/x|1", OK),
            Row("dom0", Op.READ, "/local/domain/0/r/x|", "1"),
            Row("dom0", Op.READ, "r/x|", "1"),
            Row("dom0", Op.READ, "name|", "Domain-0"),
        ),
    ),
    Scenario(
        "paths that can't be",
        tuple(
            Row(
                "dom0",
                Op.WRITE,
                f"{path}|v",
                "EINVAL",
                oxenstored=Differs(why, OK) if why else None,
            )
            for path, why in (
                ("", ""),
                ("//", ""),
                ("/a//b", ""),
                ("/a/", ""),
                ("/a b", ""),
                ("/a.b", ""),
                ("/a\xe9", ""),
                ("@a", "it checks what follows the @ only"),
                ("/" + "a" * 2048, ""),
            )
        ),
    ),
    Scenario(
        "the length of paths",
        (
            Row("dom0", Op.MKDIR, f"/{'a' * 1023}|", OK),
            Row(
                "dom0",
                Op.MKDIR,
                f"/{'a' * 1024}|",
                OK,
                oxenstored=Differs("Debian's oxenstored.conf says quota-path-max = 1024", "EINVAL"),
            ),
            Row(
                "dom0",
                Op.MKDIR,
                f"/{'a' * 2047}|",
                OK,
                oxenstored=Differs("Debian's oxenstored.conf says quota-path-max = 1024", "EINVAL"),
            ),
            Row("dom0", Op.MKDIR, f"/{'a' * 2048}|", "EINVAL"),
            Row("dom0", Op.MKDIR, f"/local/domain/7/{'b' * 1000}|", OK),
            Row("dom0", Op.MKDIR, f"/local/domain/7/{'b' * 2049}|", "EINVAL"),
        ),
    ),
    Scenario(
        "payloads that can't be",
        (
            Row("dom0", Op.WRITE, "/a", "EINVAL"),
            Row("dom0", Op.SET_PERMS, "/local|", "EINVAL"),
            Row("dom0", Op.SET_PERMS, "/local|x0|", "EINVAL"),
            Row("dom0", Op.WATCH, "/a|", "EINVAL"),
            Row("dom0", Op.TRANSACTION_END, "x|", "EINVAL"),
            Row("dom0", Op.DIRECTORY_PART, "/a|", "EINVAL", oxenstored=Differs(_NO_PART, "ENOSYS")),
            Row("dom0", Op.WATCH_EVENT, "/a|t|", "ENOSYS"),
            Row("dom0", Op.ERROR, "EINVAL|", "ENOSYS"),
            Row("dom0", 20, "|", "ENOSYS"),
            Row("dom0", Op.GET_QUOTA, "|", "ENOSYS"),
            Row(
                "dom0",
                Op.CONTROL,
                "no-such-command|",
                "EINVAL",
                oxenstored=Differs("it ignores what it does not know", OK),
            ),
        ),
    ),
    Scenario(
        "values at the limits",
        (
            Row("dom0", Op.WRITE, "/v|" + "x" * 2048, OK),
            Row("dom0", Op.READ, "/v|", "x" * 2048),
            Row("dom0", Op.WRITE, "/v|" + "x" * 4093, OK, oxenstored=Differs(_DOM0_TOO, "E2BIG")),
            Row("dom0", Op.READ, "/v|", "x" * 4093, oxenstored=Differs(_DOM0_TOO, "x" * 2048)),
            Row("dom0", Op.WRITE, f"/bytes|{_BYTES}", OK),
            Row("dom0", Op.READ, "/bytes|", _BYTES),
        ),
    ),
    Scenario(
        "permissions",
        (
            Row("dom0", Op.WRITE, "/p|", OK),
            Row("dom0", Op.GET_PERMS, "/p|", "n0|"),
            Row("dom0", Op.SET_PERMS, "/p|n5|r6|b7|w8|", OK),
            Row("dom0", Op.GET_PERMS, "/p|", "n5|r6|b7|w8|"),
            Row("dom0", Op.WRITE, "/p/q/r|", OK),
            Row("dom0", Op.GET_PERMS, "/p/q|", "n5|r6|b7|w8|"),
            Row("dom0", Op.GET_PERMS, "/p/q/r|", "n5|r6|b7|w8|"),
            Row("dom0", Op.SET_PERMS, "/p|n0|", OK),
            Row("dom0", Op.GET_PERMS, "/p/q|", "n5|r6|b7|w8|"),
            Row("dom0", Op.SET_PERMS, "/none|n0|", "ENOENT"),
        ),
    ),
)

_CHILDREN = [f"{i:02}-{'c' * 197}" for i in range(25)]
_LISTING = "".join(f"{name}|" for name in _CHILDREN)

LISTINGS = (
    Scenario(
        "a listing of more than 4096 bytes",
        (
            *(Row("dom0", Op.MKDIR, f"/l/{name}|", OK) for name in _CHILDREN),
            Row(
                "dom0",
                Op.DIRECTORY,
                "/l|",
                "E2BIG",
                oxenstored=Differs("on a socket it sends more than the protocol allows", _LISTING),
            ),
            *(
                Row("dom0", Op.DIRECTORY_PART, request, answer, oxenstored=differs)
                for differs in [Differs(_NO_PART, "ENOSYS")]
                for request, answer in (
                    ("/l|0|", "#|" + _LISTING[: 20 * 201]),
                    (f"/l|{20 * 201}|", "#|" + _LISTING[20 * 201 :] + "|"),
                    (f"/l|{25 * 201}|", "#||"),
                    ("/l|99999|", "#||"),
                    ("/none|0|", "ENOENT"),
                )
            ),
        ),
    ),
    Scenario(
        "a short listing in parts",
        (
            Row("dom0", Op.MKDIR, "/l/a|", OK),
            Row(
                "dom0", Op.DIRECTORY_PART, "/l|0|", "#|a||", oxenstored=Differs(_NO_PART, "ENOSYS")
            ),
            Row(
                "dom0", Op.DIRECTORY_PART, "/l/a|0|", "#||", oxenstored=Differs(_NO_PART, "ENOSYS")
            ),
        ),
    ),
)
