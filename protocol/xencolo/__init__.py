"""COLO replicated disks of Xen guests: their nodes, drives and states, without I/O.

``xencolo.diskspec`` reads xl's disk specification, ``xencolo.nodes`` writes and ``xencolo.device``
reads the nodes of a disk, ``xencolo.drives`` gives QEMU's arguments, ``xencolo.wire`` and
``xencolo.requests`` speak xenstore's protocol and ``xencolo.store`` serves it, ``xencolo.qmp`` speaks
QEMU's. Everything raised derives from :class:`xencolo.errors.XencoloError`.

A specification becomes a disk, and a disk QEMU's arguments:

>>> from xencolo.disk import Role
>>> from xencolo.diskspec import parse
>>> from xencolo.drives import domain_drives
>>> disk = parse("vdev=xvda,backendtype=qdisk,target=/images/web.raw")
>>> domain_drives([disk], Role.NONE).arguments[-1]
'ide-hd,drive=plain-51712,bus=ide.0,unit=0,id=disk-51712'

What xenstored is asked and what it answers are values. To bring them there is the caller's: this one
asks a store in memory.

>>> from xencolo.errors import StoreError
>>> from xencolo.store import Store
>>> from xencolo.wire import ERRNOS, Op, Packet
>>> store = Store()
>>> dom0 = store.connect()
>>> def ask(request):
...     *_, (_, answer) = store.handle(dom0, Packet(request.op, 0, 0, request.payload))
...     wrong = answer.op == Op.ERROR
...     return StoreError(ERRNOS[answer.payload[:-1]]) if wrong else answer.payload

So the nodes of a disk of domain 5 are written and read back; dom0 alone is trusted to have written them:

>>> from xencolo.device import device_from_answers, read_requests
>>> from xencolo.nodes import add_requests
>>> from xencolo.paths import DevicePaths
>>> paths = DevicePaths(5, disk.devid)
>>> for request in add_requests(disk, paths):
...     _ = ask(request)
>>> device = device_from_answers(paths, [ask(r) for r in read_requests(paths)], frozenset({0}))
>>> device.disk.pdev_path, device.errors
('/images/web.raw', ())
"""
