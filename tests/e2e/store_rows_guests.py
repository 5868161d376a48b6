"""Rows in which a guest takes part, through its ring page."""

from tests.e2e.store_row import OK, Differs, Row, Scenario, guest, start
from xencolo.wire import Op

_INHERITED = "a guest's new node inherits its owner too"
_QUOTA_NAME = "it calls a quota reached EQUOTA, a name that xs_wire.h does not have"

GUESTS = (
    Scenario(
        "what a guest may read and write",
        (
            *guest(5),
            Row("dom0", Op.WRITE, "/secret|s", OK),
            Row("dom0", Op.WRITE, "/shown|s", OK),
            Row("dom0", Op.SET_PERMS, "/shown|n0|r5|", OK),
            Row("dom0", Op.WRITE, "/public|s", OK),
            Row("dom0", Op.SET_PERMS, "/public|r0|", OK),
            Row("dom0", Op.WRITE, "/drop|s", OK),
            Row("dom0", Op.SET_PERMS, "/drop|n0|w5|", OK),
            Row("dom5", Op.READ, "/secret|", "EACCES"),
            Row("dom5", Op.GET_PERMS, "/secret|", "EACCES"),
            Row("dom5", Op.DIRECTORY, "/|", "EACCES"),
            Row(
                "dom5",
                Op.READ,
                "/none|",
                "EACCES",
                oxenstored=Differs("it lets a guest know what is not there", "ENOENT"),
            ),
            Row("dom5", Op.WRITE, "/none|1", "EACCES"),
            Row("dom5", Op.READ, "/shown|", "s"),
            Row("dom5", Op.GET_PERMS, "/shown|", "n0|r5|"),
            Row("dom5", Op.WRITE, "/shown|x", "EACCES"),
            Row("dom5", Op.RM, "/shown|", "EACCES"),
            Row("dom5", Op.MKDIR, "/shown/x|", "EACCES"),
            Row("dom5", Op.READ, "/public|", "s"),
            Row("dom5", Op.WRITE, "/drop|x", OK),
            Row("dom5", Op.READ, "/drop|", "EACCES"),
            Row("dom0", Op.READ, "/drop|", "x"),
        ),
    ),
    Scenario(
        "a guest at home",
        (
            *guest(5),
            Row("dom5", Op.WRITE, "data/x|1", OK),
            Row("dom5", Op.READ, "data/x|", "1"),
            Row("dom5", Op.READ, "/local/domain/5/data/x|", "1"),
            Row("dom5", Op.GET_PERMS, "data/x|", "n5|"),
            Row("dom0", Op.READ, "/local/domain/5/data/x|", "1"),
            Row("dom5", Op.DIRECTORY, "data|", "x|"),
            Row("dom5", Op.READ, "none|", "ENOENT"),
            Row("dom5", Op.SET_PERMS, "data/x|n5|r6|", OK),
            Row("dom5", Op.GET_PERMS, "data/x|", "n5|r6|"),
            Row(
                "dom5",
                Op.SET_PERMS,
                "data/x|n6|",
                "EPERM",
                oxenstored=Differs("it says EACCES", "EACCES"),
            ),
            Row("dom5", Op.RM, "data|", OK),
            Row("dom5", Op.READ, "data/x|", "ENOENT"),
            Row("dom5", Op.GET_DOMAIN_PATH, "5|", "/local/domain/5|"),
        ),
    ),
    Scenario(
        "what a guest makes in another's directory",
        (
            *guest(5),
            Row("dom0", Op.MKDIR, "/shared|", OK),
            Row("dom0", Op.SET_PERMS, "/shared|n0|b5|r6|", OK),
            Row("dom5", Op.WRITE, "/shared/mine|1", OK),
            Row(
                "dom0",
                Op.GET_PERMS,
                "/shared/mine|",
                "n5|b5|r6|",
                oxenstored=Differs(_INHERITED, "n0|b5|r6|"),
            ),
            Row("dom0", Op.WRITE, "/shared/his|1", OK),
            Row("dom0", Op.GET_PERMS, "/shared/his|", "n0|b5|r6|"),
        ),
    ),
    Scenario(
        "what only dom0 may do",
        (
            *guest(5),
            Row("dom5", Op.INTRODUCE, "6|1|6|", "EACCES"),
            Row("dom5", Op.RELEASE, "5|", "EACCES"),
            Row("dom5", Op.RESUME, "5|", "EACCES"),
            Row("dom5", Op.IS_DOMAIN_INTRODUCED, "5|", "EACCES"),
            Row("dom5", Op.SET_TARGET, "5|0|", "EACCES"),
            Row(
                "dom5",
                Op.CONTROL,
                "check|",
                "EACCES",
                oxenstored=Differs("it ignores a guest's CONTROL", OK),
            ),
        ),
    ),
    Scenario(
        "a guest's watches",
        (
            *guest(5),
            Row("dom0", Op.WRITE, "/secret/x|1", OK),
            Row("dom5", Op.WATCH, "data|t|", OK, events={"dom5": ("data|t|",)}),
            Row("dom5", Op.WATCH, "/secret|s|", OK, events={"dom5": ("/secret|s|",)}),
            Row("dom5", Op.WATCH, "@releaseDomain|r|", OK, events={"dom5": ("@releaseDomain|r|",)}),
            Row(
                "dom0",
                Op.WRITE,
                "/local/domain/5/data/a|1",
                OK,
                events={"dom5": ("data/a|t|",)},
            ),
            Row("dom5", Op.WRITE, "data/b|1", OK, events={"dom5": ("data/b|t|",)}),
            Row("dom0", Op.WRITE, "/secret/x|2", OK),
            Row("dom0", Op.INTRODUCE, "6|1|6|", OK),
            Row("dom0", Op.RELEASE, "6|", OK),
            Row("dom0", Op.SET_PERMS, "@releaseDomain|n0|r5|", OK),
            Row("dom0", Op.INTRODUCE, "6|1|6|", OK),
            Row("dom0", Op.RELEASE, "6|", OK, events={"dom5": ("@releaseDomain|r|",)}),
            Row(
                "dom0",
                Op.SET_PERMS,
                "/secret/x|n0|r5|",
                OK,
                events={"dom5": ("/secret/x|s|",)},
            ),
            Row("dom0", Op.SET_PERMS, "/secret/x|n0|", OK, events={"dom5": ("/secret/x|s|",)}),
            Row("dom0", Op.RM, "/secret/x|", OK),
        ),
    ),
    Scenario(
        "a guest's transactions",
        (
            *guest(5),
            start("dom5", "A"),
            Row("dom5", Op.WRITE, "x|1", OK, "A"),
            Row("dom0", Op.READ, "/local/domain/5/x|", "ENOENT"),
            Row("dom5", Op.TRANSACTION_END, "T|", OK, "A"),
            Row("dom0", Op.READ, "/local/domain/5/x|", "1"),
            *(start("dom5", f"T{i}") for i in range(11)),
            Row(
                "dom5",
                Op.TRANSACTION_START,
                "|",
                "ENOSPC",
                oxenstored=Differs(_QUOTA_NAME, "EQUOTA"),
            ),
        ),
    ),
    Scenario(
        "a guest's quota of bytes",
        (
            *guest(5),
            Row("dom5", Op.WRITE, f"x|{'v' * 2015}", OK),
            Row(
                "dom5",
                Op.WRITE,
                f"x|{'v' * 2016}",
                "ENOSPC",
                oxenstored=Differs("it counts the value alone", OK),
            ),
            Row(
                "dom5",
                Op.WRITE,
                f"x|{'v' * 2049}",
                "ENOSPC",
                oxenstored=Differs("too long a value is E2BIG", "E2BIG"),
            ),
            Row(
                "dom5",
                Op.SET_PERMS,
                "x|n5|r1|r2|r3|r4|r6|",
                "ENOSPC",
                oxenstored=Differs("it counts no permissions", OK),
            ),
        ),
    ),
    Scenario(
        "a guest's quota of watches",
        (
            *guest(5),
            *(
                Row("dom5", Op.WATCH, f"x|{i}|", OK, events={"dom5": (f"x|{i}|",)})
                for i in range(101)
            ),
            *(
                Row(
                    "dom5",
                    Op.WATCH,
                    f"x|{i}|",
                    OK,
                    events={"dom5": (f"x|{i}|",)},
                    oxenstored=Differs("its quota is 100 watches", "EQUOTA", {}),
                )
                for i in range(101, 129)
            ),
            Row(
                "dom5",
                Op.WATCH,
                "x|129|",
                "E2BIG",
                oxenstored=Differs(_QUOTA_NAME, "EQUOTA"),
            ),
        ),
    ),
    Scenario(
        "a device model acts for its target",
        (
            *guest(5),
            *guest(6),
            Row("dom6", Op.WRITE, "/local/domain/5/x|1", "EACCES"),
            Row("dom0", Op.SET_TARGET, "6|5|", OK),
            Row("dom6", Op.WRITE, "/local/domain/5/x|1", OK),
            Row("dom6", Op.READ, "/local/domain/5/x|", "1"),
            Row(
                "dom0",
                Op.GET_PERMS,
                "/local/domain/5/x|",
                "n6|",
                oxenstored=Differs(_INHERITED, "n5|"),
            ),
            Row("dom0", Op.SET_TARGET, "7|5|", "ENOENT"),
        ),
    ),
    Scenario(
        "a domid comes back with another guest (XSA-322)",
        (
            *guest(5),
            Row("dom0", Op.WRITE, "/shown|s", OK),
            Row("dom0", Op.SET_PERMS, "/shown|n0|r5|", OK),
            Row("dom5", Op.READ, "/shown|", "s"),
            Row("dom0", Op.RELEASE, "5|", OK),
            *guest(5),
            Row("dom5", Op.READ, "/shown|", "EACCES"),
        ),
    ),
)
