"""Everything xencolo raises, in one tree.

::

    XencoloError
    ├── PathError              also pyxs.InvalidPath: a xenstore path that can't be
    │   └── VdevError          a virtual device name that can't be
    ├── WireError              also pyxs.UnexpectedPacket: bytes that are no xenstore message
    ├── XenstoreError          also pyxs.PyXSError
    │   ├── StoreError         xenstored answered with an errno: ENOENT, EACCES, EAGAIN, ...
    │   ├── ConnectionLost     also pyxs.ConnectionError: absent, refused, or gone meanwhile
    │   └── DeadlineExceeded   xenstored is there and does not answer
    ├── SpecError              a disk specification, with the place
    ├── DiskError              fields of a disk that don't go together
    ├── NodeError              a xenstore node, with directory and name
    │   ├── MissingNode
    │   ├── WrongNode
    │   ├── UntrustedNode      another domain could have written it
    │   └── ForbiddenImage     it names an image where the configuration allows none
    ├── DriveError             a disk that QEMU can't be given in this role
    ├── DeviceError            adding or removing a device
    ├── DomainError            a domain that isn't there, or is already
    ├── ReplicationError       what a replicated disk needs is not so, with the remedy
    │   └── CommitError        QEMU could not end a failover
    ├── UnexpectedEvent        an event that a state of replication does not expect
    ├── CommandError           a command by node that can't be read, or can't be given
    ├── ConfigError            the configuration file, with line or key
    ├── RecordError            the record that a domain leaves on disk, with its path
    ├── ImageError             an image of a replicated disk, with its path
    ├── QmpError
    │   ├── QmpProtocolError   bytes that are no QMP
    │   ├── QmpCommandError    QEMU refused a command
    │   └── QmpClosed          QEMU went away, or did not answer in time
    ├── KeysError              the key file of the link is absent, open to others, or no keys
    └── LinkError              the link to the other host's daemon
        ├── LinkUnreachable    nobody answers there
        │   └── LinkUntrusted  somebody does, and can't show that he has our keys
        ├── LinkRefused        the other daemon said no, and why
        ├── LinkClosed         it went away
        ├── LinkSilent         it keeps the connection and does not answer in time
        └── LinkProtocolError  it says what is no message
"""

import os

from xencolo import _pyxs


class XencoloError(Exception):
    """Base class of everything xencolo raises."""


class PathError(XencoloError, _pyxs.InvalidPath):
    """A xenstore path that can't be; the message says why."""


class VdevError(PathError):
    """A virtual device that can't be; the message says why."""


class WireError(XencoloError, _pyxs.UnexpectedPacket):
    """Bytes that are no xenstore message, or a message over a limit of the protocol."""


class XenstoreError(XencoloError, _pyxs.PyXSError):
    """A call to xenstored failed."""


class StoreError(XenstoreError):
    """Xenstored answered with an error.

    :ivar errno: the number on this machine (``errno.ENOENT``); ``args`` are pyxs's (errno, text).
    :ivar operation: what was asked, ``READ`` for example.
    :ivar path: the path it was asked of, empty where there is none.
    """

    def __init__(self, errno: int, operation: str = "", path: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.errno = errno
        self.operation = operation
        self.path = path

    def __str__(self) -> str:
        asked = " ".join(word for word in (self.operation, self.path) if word)
        return f"{asked}: {os.strerror(self.errno)}" if asked else os.strerror(self.errno)


class ConnectionLost(XenstoreError, _pyxs.ConnectionError):
    """Xenstored is absent, refused the connection, or closed it before the answer."""


class DeadlineExceeded(XenstoreError):
    """Xenstored keeps the connection and does not answer in time."""


class SpecError(XencoloError):
    """A disk specification that can't be read.

    :ivar spec: the whole text.
    :ivar position: index of the first wrong character in it.
    :ivar reason: what is wrong there, and the remedy.
    """

    def __init__(self, reason: str, spec: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.spec = spec
        self.position = position

    def __str__(self) -> str:
        start = max(0, self.position - 80)
        shown = "".join(c if c.isprintable() else "?" for c in self.spec[start : start + 160])
        return f"{self.reason}\n  {shown}\n  {' ' * (self.position - start)}^"


class DiskError(XencoloError):
    """Fields of a disk that don't go together.

    :ivar field: the field of :class:`~xencolo.disk.Disk` to change, empty where it is not known.
    """

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.field = field


class NodeError(XencoloError):
    """A node of a disk is not as it must be.

    :ivar directory: the xenstore directory of the device.
    :ivar node: the node's name in it.
    :ivar kind: ``missing``, ``wrong``, ``untrusted`` or ``image``, for the log.
    """

    kind = "wrong"

    def __init__(self, directory: str, node: str, message: str) -> None:
        super().__init__(message)
        self.directory = directory
        self.node = node

    @property
    def path(self) -> str:
        """The node's whole path."""
        return f"{self.directory}/{self.node}" if self.node else self.directory


class MissingNode(NodeError):
    """A mandatory node is absent; the words are libxl's."""

    kind = "missing"

    def __init__(self, directory: str, node: str) -> None:
        super().__init__(directory, node, f"Missing xenstore node {directory}/{node}")


class WrongNode(NodeError):
    """A node holds what it can't hold."""

    def __init__(self, directory: str, node: str, reason: str) -> None:
        super().__init__(directory, node, f"Wrong xenstore node {directory}/{node}: {reason}")


class UntrustedNode(NodeError):
    """A domain that is not trusted could have written this node (XSA-175, XSA-178)."""

    kind = "untrusted"

    def __init__(self, path: str, permissions: str) -> None:
        directory, _, node = path.rpartition("/")
        remedy = "remove it, and set it again"
        if "/colo/" not in path:
            remedy = "detach the device and attach it again"
        elif node == "role":
            remedy = "set it with xencolo role"
        super().__init__(
            directory,
            node,
            f"Untrusted xenstore node {path}: its permissions {permissions} let another domain "
            f"write it; {remedy}",
        )


class ForbiddenImage(NodeError):
    """A node names an image outside of the directories that the configuration allows."""

    kind = "image"

    def __init__(self, directory: str, node: str, reason: str) -> None:
        super().__init__(directory, node, f"Forbidden image in {directory}/{node}: {reason}")


class DriveError(XencoloError):
    """QEMU can't be given this disk in this role.

    :ivar node: the name of the node that says what can't be.
    """

    def __init__(self, reason: str, node: str = "params") -> None:
        super().__init__(reason)
        self.node = node


class DeviceError(XencoloError):
    """A device could not be added or removed."""


class DomainError(XencoloError):
    """A domain is absent, is there already, or is Xen's to make and unmake."""


class ReplicationError(XencoloError):
    """What a replicated disk needs is not so; the message has the thing and the remedy."""


class CommitError(ReplicationError):
    """QEMU could not commit what a secondary's guest wrote; nothing is lost, and this QEMU won't."""


class UnexpectedEvent(XencoloError):
    """An event that a state of replication does not expect; nothing was done.

    :ivar role: the domain's role in force.
    :ivar state: its state.
    :ivar event: the event.
    """

    def __init__(self, role: str, state: str, event: str) -> None:
        super().__init__(f"{event} is nothing for a {role} that is {state}")
        self.role = role
        self.state = state
        self.event = event


class CommandError(XencoloError):
    """A command by node that can't be read, or that can't be given now.

    :ivar word: the command's word, ``unknown`` where it has none.
    :ivar id: by which its answer would be known, None where it has none.
    """

    UNKNOWN = "unknown"

    def __init__(self, reason: str, word: str = UNKNOWN, id: str | None = None) -> None:  # noqa: A002
        super().__init__(reason)
        self.word = word
        self.id = id


class ConfigError(XencoloError):
    """The configuration can't be used; the message names file and line or key."""


class RecordError(XencoloError):
    """A domain's record can't be read, written or used.

    :ivar reason: what is wrong, and the remedy.
    :ivar path: the file, empty where only its bytes are known.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason
        self.path = path


class ImageError(XencoloError):
    """An image of a replicated disk is not as it must be, or could not be made so.

    :ivar path: the image.
    :ivar reason: what is wrong, and the remedy where there is one.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class QmpError(XencoloError):
    """The dialogue with QEMU failed."""


class QmpProtocolError(QmpError):
    """What came is no QMP: not JSON, no object, no greeting, an id that was never sent."""


class QmpCommandError(QmpError):
    """QEMU refused a command.

    :ivar command: the command's name.
    :ivar error_class: QEMU's class, mostly ``GenericError``.
    :ivar description: QEMU's words.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


class QmpClosed(QmpError):
    """QEMU closed the connection or did not answer before the deadline."""


class KeysError(XencoloError):
    """The key file of the link can't be used or made.

    :ivar path: the file.
    :ivar reason: what is wrong with it, and the remedy.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LinkError(XencoloError):
    """Nothing was agreed with the daemon of the other host; the message says why."""


class LinkUnreachable(LinkError):
    """No connection: nobody listens there, no way leads there, or nobody answered in time."""


class LinkUntrusted(LinkUnreachable):
    """Somebody listens there, and he is not who holds the same keys."""


class LinkRefused(LinkError):
    """The other daemon understood and said no.

    :ivar kind: of :data:`xencolo.link.RefusalKind`, for programs.
    :ivar reason: its words, for people.
    :ivar generation: its generation, where that is why; else None.
    """

    def __init__(self, kind: str, reason: str, generation: int | None = None) -> None:
        super().__init__(f"refused ({kind}): {reason}")
        self.kind = kind
        self.reason = reason
        self.generation = generation


class LinkClosed(LinkError):
    """The other daemon went away; what it was asked last may or may not be done."""


class LinkSilent(LinkError):
    """No answer in time; what it was asked may or may not be done, or may be done yet."""


class LinkProtocolError(LinkError):
    """What came, or what should be sent, is no message of the link."""
