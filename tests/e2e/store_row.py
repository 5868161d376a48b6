"""What a row of the table in ``store_rows`` is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xencolo.wire import Op

OK = "OK|"
#: The C xenstored is the model for the in-memory store: they never differ.
OXENSTORED = "oxenstored"

Events = Mapping[str, tuple[str, ...]]


class Differs(NamedTuple):
    """How oxenstored differs; what is None is as in the row."""

    why: str
    answer: str | None = None
    events: Events | None = None


@dataclass(frozen=True)
class Row:
    """One request and what comes of it.

    :ivar who: the connection: ``dom0`` and ``tool`` are dom0's, ``dom5`` is a guest's ring page.
    :ivar answer: the reply's payload, or an error's name.
    :ivar tx: the transaction, by the name under which TRANSACTION_START opened it, or its number.
    :ivar events: what each connection is sent because of the request; nothing if it is not here.
    """

    who: str
    op: Op | int
    payload: str
    answer: str
    tx: str | int = 0
    events: Events = field(default_factory=dict)
    oxenstored: Differs | None = None


class Scenario(NamedTuple):
    """Rows that run one after the other on a fresh store."""

    name: str
    rows: tuple[Row, ...]

    @property
    def guests(self) -> bool:
        """Whether a guest takes part: then it can't run over a unix socket."""
        return any(row.who.startswith("dom") and row.who != "dom0" for row in self.rows)


NO_TX = Differs("it says EIO of a transaction that it does not have", "EIO")


def start(who: str, tx: str) -> Row:
    """Open a transaction under a name."""
    return Row(who, Op.TRANSACTION_START, "|", "#|", tx)


def guest(domid: int) -> tuple[Row, ...]:
    """Make a guest's home and introduce it."""
    home = f"/local/domain/{domid}"
    return (
        Row("dom0", Op.MKDIR, f"{home}|", OK),
        Row("dom0", Op.SET_PERMS, f"{home}|n{domid}|", OK),
        Row("dom0", Op.INTRODUCE, f"{domid}|1|{domid}|", OK),
    )
