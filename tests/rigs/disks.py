"""Disks of which more than one test speaks, as values."""

from xencolo.disk import Backend, Disk, Format

PLAIN = Disk(vdev="xvda", pdev_path="/i/a.raw", backend=Backend.QDISK, format=Format.RAW)
COLO = Disk(
    vdev="xvda",
    pdev_path="/srv/a.img",
    backend=Backend.QDISK,
    format=Format.RAW,
    colo_enable=True,
    colo_host="192.0.2.7",
    colo_port=9000,
    colo_export="disk-a",
    active_disk="/srv/a-active.qcow2",
    hidden_disk="/srv/a-hidden.qcow2",
)
