"""COLO replicated disks of Xen guests: their nodes, drives and states, without I/O.

``xencolo.diskspec`` reads xl's disk specification, ``xencolo.nodes`` writes and ``xencolo.device``
reads the nodes of a disk, ``xencolo.drives`` gives QEMU's arguments, ``xencolo.wire`` and
``xencolo.requests`` speak xenstore's protocol and ``xencolo.store`` serves it, ``xencolo.qmp`` speaks
QEMU's. Everything raised derives from :class:`xencolo.errors.XencoloError`.
"""
