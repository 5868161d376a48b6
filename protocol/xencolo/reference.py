"""The reference page ``protocol/NODES.md``, made from the tables that the code uses."""

from collections.abc import Iterable, Iterator

from xencolo.command import COMMANDS
from xencolo.diagram import life
from xencolo.nodes import BACKEND_NODES, FRONTEND_NODE, FRONTEND_NODES, LIBXL_NODES, Need, Node
from xencolo.status import STATE_MEANINGS, STATUS_NODES, DeviceState, DomainState

_HEAD = """\
# Nodes of a COLO disk

Made from `nodes.py`, `status.py`, `command.py`, `replication.py` and `diagram.py` in `protocol/xencolo`
by `make pages`; a test fails when it is stale.
The notation is that of Xen's `docs/misc/xenstore-paths.pandoc`: `PATH = VALUES [TAGS]`, `~` a domain's
home `/local/domain/$DOMID`, `[w]` writable by the domain below whose home the path is, `[n]` not readable
for guests, `[BACKEND]` in the home of a backend's domain. *Mandatory* is what must be there for the disk
to be read; a missing one is reported as `Missing xenstore node <directory>/<node>`.
"""

_FRONTEND = """
## The guest's directory

`~/device/vbd/$DEVID`, owned by the guest (permissions `n$DOMID,r<backend's domid>`). Written when the
device is added; what the guest makes of it is never believed (XSA-175).
"""

_BACKEND = """
## The backend's directory

`~/backend/qdisk/$DOMID/$DEVID`, owned by the backend's domain (`n<backend's domid>,r$DOMID`). The nodes are
written in this order and then again under `/libxl/$DOMID/device/vbd/$DEVID`, owned by dom0 alone (`n0`):
that copy is the one to believe (XSA-178), and both must say the same but for `state` and `online`.
"""

_LIBXL = """
## The toolstack's copy

`/libxl/$DOMID/device/vbd/$DEVID`, owned by dom0 alone (`n0`): the nodes of the backend's directory, and
"""

_STATUS = """
## Role and state

Below `/libxl/$DOMID/colo`, which libxl removes with the domain, and where Xen's tools look. xencolod writes
them when they change, in one transaction for a domain.
"""

_COMMANDS = """
## Commands

What is written to `/libxl/$DOMID/colo/command`, by the commands of `xencolo` with the same names: a word, its
options and `id=HEX` behind it, by which the answer is known (1 to 32 of the digits 0-9 a-f; it may be left
out), with spaces between them. Only an empty or absent node is to be written, in a transaction: what stands
there waits to be taken.

| command | asked of | meaning | state when done |
| --- | --- | --- | --- |
"""

_LIFE = """
## The life of a replicated disk

All COLO disks of a domain live it together. The states are those of a domain, above. An event that a state
does not expect is logged (`replication.unexpected`), and nothing is done.
"""


def _entry(path: str, values: str, tags: str, *paragraphs: str) -> Iterator[str]:
    yield f"\n#### {path} = {values} [{tags}]\n"
    for paragraph in paragraphs:
        yield f"\n{paragraph}\n"


def _needed(node: Node) -> str:
    need = node.need.value
    return "" if node.need is Need.NEVER else f" *{need[0].upper()}{need[1:]}.*"


def _nodes(directory: str, tags: str, nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        yield from _entry(
            f"{directory}/{node.name}", node.values, tags, f"{node.meaning}{_needed(node)}"
        )


def _states(words: type[DomainState] | type[DeviceState]) -> Iterator[str]:
    yield "\n| state | meaning |\n| --- | --- |\n"
    for word in words:
        yield f"| `{word}` | {STATE_MEANINGS[word]} |\n"


def _commands() -> Iterator[str]:
    for rule in COMMANDS.values():
        options = "".join(f" `{option.name}`: {option.meaning}" for option in rule.options)
        effect = f"`{rule.effect}`" if rule.effect else "as it was"
        yield f"| `{rule.usage}` | {', '.join(rule.roles)} | {rule.meaning}{options} | {effect} |\n"


def page() -> str:
    """Return the whole page, Markdown."""
    parts = [
        _HEAD,
        _FRONTEND,
        *_nodes("~/device/vbd/$DEVID", "w", FRONTEND_NODES),
        _BACKEND,
        *_nodes("~/backend/qdisk/$DOMID/$DEVID", "BACKEND", (FRONTEND_NODE, *BACKEND_NODES)),
        _LIBXL,
        *_nodes("/libxl/$DOMID/device/vbd/$DEVID", "n", LIBXL_NODES),
        _STATUS,
    ]
    for node in STATUS_NODES:
        tags = "n" if node.path.startswith("/libxl") else ""
        parts += _entry(node.path, node.values, tags, f"{node.meaning} Written by {node.writer}.")
    parts += ["\n### States of a domain\n", *_states(DomainState)]
    parts += ["\n### States of a disk\n", *_states(DeviceState)]
    parts += [_COMMANDS, *_commands(), _LIFE, *life()]
    return "".join(parts)
