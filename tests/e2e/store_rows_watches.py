"""Rows about watches, and domains as dom0 sees them."""

from tests.e2e.store_row import OK, Differs, Row, Scenario, guest, start
from xencolo.wire import Op

WATCHES = (
    Scenario(
        "the life of a watch",
        (
            Row("dom0", Op.WATCH, "/w|t|", OK, events={"dom0": ("/w|t|",)}),
            Row("dom0", Op.WATCH, "/w|t|", "EEXIST"),
            Row("dom0", Op.WATCH, "/w|u|", OK, events={"dom0": ("/w|u|",)}),
            Row("dom0", Op.UNWATCH, "/w|u|", OK),
            Row("tool", Op.WRITE, "/w|1", OK, events={"dom0": ("/w|t|",)}),
            Row("tool", Op.WRITE, "/w/a/b|1", OK, events={"dom0": ("/w/a/b|t|",)}),
            Row("tool", Op.WRITE, "/ww|1", OK),
            Row("tool", Op.MKDIR, "/w/m|", OK, events={"dom0": ("/w/m|t|",)}),
            Row("tool", Op.MKDIR, "/w/m|", OK),
            Row("tool", Op.SET_PERMS, "/w/m|n0|r5|", OK, events={"dom0": ("/w/m|t|",)}),
            Row("tool", Op.RM, "/w/m|", OK, events={"dom0": ("/w/m|t|",)}),
            Row("tool", Op.RM, "/w/m|", OK),
            Row("dom0", Op.WRITE, "/w|2", OK, events={"dom0": ("/w|t|",)}),
            Row("dom0", Op.UNWATCH, "/w|t|", OK),
            Row("dom0", Op.UNWATCH, "/w|t|", "ENOENT"),
            Row("tool", Op.WRITE, "/w|3", OK),
        ),
    ),
    Scenario(
        "a parent is removed",
        (
            Row("dom0", Op.WRITE, "/a/b/c|1", OK),
            Row("dom0", Op.WATCH, "/a/b/c|deep|", OK, events={"dom0": ("/a/b/c|deep|",)}),
            Row("dom0", Op.WATCH, "/a|top|", OK, events={"dom0": ("/a|top|",)}),
            Row("dom0", Op.WATCH, "/a/b/none|none|", OK, events={"dom0": ("/a/b/none|none|",)}),
            Row(
                "tool",
                Op.RM,
                "/a|",
                OK,
                events={"dom0": ("/a/b/c|deep|", "/a|top|")},
                oxenstored=Differs(
                    "the removed node's own event comes first, and those below need not exist",
                    events={"dom0": ("/a|top|", "/a/b/c|deep|", "/a/b/none|none|")},
                ),
            ),
        ),
    ),
    Scenario(
        "two watches hear the same",
        (
            Row("dom0", Op.WATCH, "/w|t|", OK, events={"dom0": ("/w|t|",)}),
            Row("dom0", Op.WATCH, "/w/a|t|", OK, events={"dom0": ("/w/a|t|",)}),
            Row(
                "tool",
                Op.WRITE,
                "/w/a|1",
                OK,
                events={"dom0": ("/w/a|t|",)},
                oxenstored=Differs(
                    "equal events are not folded", events={"dom0": ("/w/a|t|", "/w/a|t|")}
                ),
            ),
        ),
    ),
    Scenario(
        "events of a transaction come with its commit",
        (
            Row("dom0", Op.WRITE, "/w/old|1", OK),
            Row("dom0", Op.WATCH, "/w|t|", OK, events={"dom0": ("/w|t|",)}),
            start("tool", "A"),
            Row("tool", Op.WRITE, "/w/x|1", OK, "A"),
            Row("tool", Op.WRITE, "/w/y|1", OK, "A"),
            Row("tool", Op.RM, "/w/old|", OK, "A"),
            Row(
                "tool",
                Op.TRANSACTION_END,
                "T|",
                OK,
                "A",
                events={"dom0": ("/w/x|t|", "/w/y|t|", "/w/old|t|")},
            ),
            start("tool", "B"),
            Row("tool", Op.WRITE, "/w/z|1", OK, "B"),
            Row("tool", Op.TRANSACTION_END, "F|", OK, "B"),
            start("tool", "C"),
            Row("tool", Op.READ, "/w/x|", "1", "C"),
            Row("tool", Op.WRITE, "/w/z|1", OK, "C"),
            Row("dom0", Op.WRITE, "/w/x|2", OK, events={"dom0": ("/w/x|t|",)}),
            Row("tool", Op.TRANSACTION_END, "T|", "EAGAIN", "C"),
        ),
    ),
    Scenario(
        "a node comes and goes within a transaction",
        (
            Row("dom0", Op.MKDIR, "/w|", OK),
            Row("dom0", Op.WATCH, "/w|t|", OK, events={"dom0": ("/w|t|",)}),
            start("tool", "A"),
            Row("tool", Op.WRITE, "/w/x|1", OK, "A"),
            Row("tool", Op.RM, "/w/x|", OK, "A"),
            Row(
                "tool",
                Op.TRANSACTION_END,
                "T|",
                OK,
                "A",
                oxenstored=Differs("it fires per request", events={"dom0": ("/w/x|t|", "/w/x|t|")}),
            ),
        ),
    ),
    Scenario(
        "relative watches",
        (
            Row("dom0", Op.WATCH, "r|t|", OK, events={"dom0": ("r|t|",)}),
            Row("tool", Op.WRITE, "/local/domain/0/r/x|1", OK, events={"dom0": ("r/x|t|",)}),
            Row("tool", Op.RM, "/local/domain/0/r|", OK, events={"dom0": ("r|t|",)}),
            Row("dom0", Op.UNWATCH, "r|t|", OK),
        ),
    ),
    Scenario(
        "watches that can't be",
        (
            Row("dom0", Op.WATCH, "/a//b|t|", "EINVAL"),
            Row("dom0", Op.WATCH, "/a/|t|", "EINVAL"),
            Row("dom0", Op.WATCH, "/a b|t|", "EINVAL"),
            Row("dom0", Op.UNWATCH, "/a|t|", "ENOENT"),
        ),
    ),
    Scenario(
        "a watch of everything",
        (
            Row("dom0", Op.WATCH, "/|t|", OK, events={"dom0": ("/|t|",)}),
            Row("tool", Op.WRITE, "/x/y|1", OK, events={"dom0": ("/x/y|t|",)}),
            Row("tool", Op.RM, "/x|", OK, events={"dom0": ("/x|t|",)}),
        ),
    ),
)

DOMAINS = (
    Scenario(
        "domains come and go",
        (
            Row(
                "dom0",
                Op.WATCH,
                "@introduceDomain|i|",
                OK,
                events={"dom0": ("@introduceDomain|i|",)},
            ),
            Row("dom0", Op.WATCH, "@releaseDomain|r|", OK, events={"dom0": ("@releaseDomain|r|",)}),
            Row("tool", Op.IS_DOMAIN_INTRODUCED, "5|", "F|"),
            Row("tool", Op.IS_DOMAIN_INTRODUCED, "0|", "T|"),
            Row(
                "tool",
                Op.INTRODUCE,
                "5|1|5|",
                OK,
                events={"dom0": ("@introduceDomain|i|",)},
            ),
            Row("tool", Op.IS_DOMAIN_INTRODUCED, "5|", "T|"),
            Row("tool", Op.INTRODUCE, "5|1|5|", OK),
            Row("tool", Op.RESUME, "5|", OK),
            Row("tool", Op.RELEASE, "5|", OK, events={"dom0": ("@releaseDomain|r|",)}),
            Row("tool", Op.IS_DOMAIN_INTRODUCED, "5|", "F|"),
            Row("tool", Op.RELEASE, "5|", "ENOENT", oxenstored=Differs("it says EINVAL", "EINVAL")),
            Row("tool", Op.RESUME, "5|", "ENOENT", oxenstored=Differs("it says EINVAL", "EINVAL")),
            Row("tool", Op.INTRODUCE, "5|1|", "EINVAL"),
            Row(
                "tool",
                Op.INTRODUCE,
                "5|1|0|",
                "EINVAL",
                oxenstored=Differs("it takes port 0", OK, {"dom0": ("@introduceDomain|i|",)}),
            ),
        ),
    ),
    Scenario(
        "the home of a domain",
        (
            Row("dom0", Op.GET_DOMAIN_PATH, "5|", "/local/domain/5|"),
            Row("dom0", Op.GET_DOMAIN_PATH, "0|", "/local/domain/0|"),
        ),
    ),
    Scenario(
        "a released domain's nodes and permissions (XSA-322)",
        (
            *guest(5),
            Row("dom0", Op.WRITE, "/q|1", OK),
            Row("dom0", Op.SET_PERMS, "/q|n0|r5|", OK),
            Row("dom0", Op.WRITE, "/local/domain/5/data|1", OK),
            Row("dom0", Op.RELEASE, "5|", OK),
            Row("dom0", Op.READ, "/local/domain/5/data|", "ENOENT"),
            Row("dom0", Op.READ, "/q|", "1"),
        ),
    ),
)
