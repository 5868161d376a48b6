from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xencolo.disk import Backend, Disk, Format, Specification
from xencolo.diskspec import format_spec, parse, select_backend
from xencolo.errors import DiskError, SpecError

VOLUME = Disk(vdev="hda", pdev_path="/dev/vg/guest-volume", format=Format.RAW)
ISO = Disk(
    vdev="hdc",
    pdev_path="/root/image.iso",
    format=Format.RAW,
    is_cdrom=True,
    removable=True,
    readwrite=False,
)
EMPTY = msgspec.structs.replace(ISO, pdev_path=None, format=Format.EMPTY)
X = Disk(vdev="xvda", pdev_path="/x", format=Format.RAW)
KEYS = "colo-host=h,colo-port=9000,colo-export=e,active-disk=/a,hidden-disk=/h"
COLO_FIELDS: dict[str, Any] = {
    "colo_host": "h",
    "colo_port": 9000,
    "colo_export": "e",
    "active_disk": "/a",
    "hidden_disk": "/h",
}


def x(**changes: Any) -> Disk:
    return msgspec.structs.replace(X, **changes)


@pytest.mark.parametrize(
    ("spec", "disk"),
    [
        # xl-disk-configuration(5)
        ("/dev/vg/guest-volume,,hda", VOLUME),
        ("/dev/vg/guest-volume,raw,hda,rw", VOLUME),
        ("format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume", VOLUME),
        ("raw:/dev/vg/guest-volume,hda,w", VOLUME),
        ("/root/image.iso,,hdc,cdrom", ISO),
        ("/root/image.iso,,hdc,,cdrom", ISO),
        ("/root/image.iso,raw,hdc,devtype=cdrom", ISO),
        ("format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso", ISO),
        ("raw:/root/image.iso,hdc:cdrom,ro", ISO),
        (",hdc:cdrom,r", EMPTY),
        # an empty cdrom, otherwise
        ("vdev=hdc,cdrom", EMPTY),
        (",empty,hdc,,cdrom", EMPTY),
        ("vdev=hdc,cdrom,target=", EMPTY),
        # positions, by name or not
        ("vdev=xvda,/x", X),
        ("/x,vdev=xvda,raw,rw", X),
        (",raw,xvda,w,target=/x", X),
        ("/x,format=,xvda", X),
        ("/x,raw,xvda,", X),
        ("/x,raw,xvda,r", x(readwrite=False)),
        ("/x,raw,xvda,ro", x(readwrite=False)),
        ("/x,raw,xvda,access=,discard", x(discard_enable=True)),
        ("/x,qcow2,xvda:disk", x(format=Format.QCOW2)),
        # whitespace
        (" \t\n/x,\t raw,\n xvda,  w, ", X),
        ("vdev=xvda, target= /x ", x(pdev_path=" /x ")),
        # target takes the rest
        ("vdev=xvda,target=/x,format=qcow2,", x(pdev_path="/x,format=qcow2,")),
        ("vdev=xvda,target=/x=1:2", x(pdev_path="/x=1:2")),
        # an empty value counts as not given
        ("vdev=,vdev=xvda,vdev=,script=,backendtype=,colo-port=,devtype=,target=/x", X),
        # values
        *(
            (f"format={f},vdev=xvda,target=/x", x(format=f))
            for f in ("qcow", "qcow2", "vhd", "qed")
        ),
        *((f"backendtype={b},vdev=xvda,/x", x(backend=b)) for b in ("phy", "tap", "qdisk")),
        (
            "backendtype=standalone,specification=virtio,vdev=xvda,/x",
            x(backend=Backend.STANDALONE, specification=Specification.VIRTIO),
        ),
        ("backend=3,vdev=xvda,/x", x(backend_domid=3)),
        ("backend=0,vdev=xvda,/x", X),
        ("backend=Domain-0,vdev=xvda,/x", X),
        ("vdev=xvda,/x,direct-io-safe", x(direct_io_safe=True)),
        ("vdev=xvda,/x,no-discard,untrusted", x(discard_enable=False, trusted=False)),
        ("vdev=xvda,/x,trusted,no-colo", X),
        ("vdev=xvda,/x,devtype=disk", X),
        # deprecated prefixes
        ("tap:aio:qcow:/x,xvda,w", x(format=Format.QCOW)),
        ("file:/x,xvda,w", X),
        ("phy:/x,xvda,w", X),
        ("tapdisk:ioemu:tap2:vhd:/x,xvda", x(format=Format.VHD)),
        *((f"{p}:/x,xvda,w", x(script=f"block-{p}")) for p in ("iscsi", "nbd", "enbd", "drbd")),
        # COLO
        (f"{KEYS},colo,vdev=xvda,/x", x(colo_enable=True, **COLO_FIELDS)),
        (
            f"/x,,xvda,colo,backendtype=qdisk,{KEYS}",
            x(colo_enable=True, backend=Backend.QDISK, **COLO_FIELDS),
        ),
        (f"no-colo,{KEYS},vdev=xvda,/x", x(**COLO_FIELDS)),
    ],
)
def test_what_a_specification_says(spec: str, disk: Disk) -> None:
    assert parse(spec) == disk


# A caret under each specification, where the error is.
WRONG = """
/x,raw,xvda,colour=red
            ^ unknown parameter 'colour'
/x,raw,xvda,colo-prot=1
            ^ did you mean colo-port?
/x,raw,xvda,cdrom=1
            ^ cdrom takes no value
/a=b,raw,xvda
^ must come last, as target=
vdev=xvda,vdev=xvdb,/x
          ^ vdev was given already
vdev=xvda,vdev=xvda,/x
          ^ vdev was given already
/x,raw,xvda,format=raw
            ^ format was given already
format=raw,raw:/x,xvda
           ^ format was given already
/x,vdev=xvda,target=/y
             ^ target was given already, by '/x'
vdev=xvda,untrust,target=/y
                  ^ target was given already, by 'untrust'
cdrom,/x,,hdc,devtype=cdrom
              ^ devtype was given already
vdev=xvda,discard,no-discard,/x
                  ^ no-discard contradicts
vdev=xvda,discard,discard,/x
                  ^ discard was given already
vdev=xvda,colo,no-colo,/x
               ^ no-colo contradicts
vdev=xvda,trusted,untrusted,/x
                  ^ untrusted contradicts
/x
  ^ no vdev
/x,raw,,w
         ^ no vdev

^ no vdev
vdev=xvda
         ^ no target
vdev=xvda,target=
                 ^ no target
/x,raw,sdq
       ^ last disk of its kind is sdp
/x,raw,xvda256
       ^ at most 255 partitions
/x,raw,0x300
       ^ vdev '0x300'
/x,raw,xvda ,w
       ^ vdev 'xvda '
/x,vmdk,xvda
   ^ one of qcow
/x,raw,xvda,x
            ^ one of ro, rw, r, w
/x,raw,xvda,w,z
              ^ too many positional
devtype=floppy,/x,,xvda
        ^ one of cdrom, disk
/x,raw,hdc:floppy
           ^ one of cdrom, disk
,hdc:disk,w
           ^ no target
,empty,hda
 ^ empty but no cdrom
backendtype=file,/x,,xvda
            ^ one of phy, tap, qdisk, standalone
specification=nvme,/x,,xvda
              ^ one of xen, virtio
backend=storage,/x,,xvda
        ^ a name can't be looked up
backend=99999,/x,,xvda
        ^ give the domid
vhdx:/x,xvda,w
^ unknown prefix vhdx
http://x,,xvda
^ unknown prefix http
format=empty,vdev=hdc,cdrom,target=/x
       ^ empty but has the target
/x,,xvda,colo-port=0
                   ^ from 1 to 65535
/x,,xvda,colo-port=70000
                   ^ from 1 to 65535
/x,,xvda,colo-port=99abc
                   ^ from 1 to 65535
/x,,xvda,colo-port= 9000
                   ^ from 1 to 65535
/x,,xvda,colo-export=a b
                     ^ QEMU needs a letter
/x,,xvda,colo-host=a b
                   ^ no host name
/x,,xvda,colo-host=h
                   ^ add colo, or no-colo
/x,,xvda,hidden-disk=/h,colo-host=h
                     ^ hidden-disk without colo
/x,,xvda,colo
         ^ colo-host is missing
"""


def rows() -> list[tuple[str, int, str]]:
    lines = WRONG.split("\n")[1:-1]
    return [
        (spec, marked.index("^"), marked.partition("^")[2].strip())
        for spec, marked in zip(lines[::2], lines[1::2], strict=True)
    ]


@pytest.mark.parametrize(("spec", "position", "reason"), rows())
def test_what_is_wrong_and_where(spec: str, position: int, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as raised:
        parse(spec)
    assert raised.value.position == position
    assert raised.value.spec == spec
    assert str(raised.value).endswith(f"\n  {spec}\n  {' ' * position}^")


COLO = f"vdev=xvda,colo,{KEYS},target=/x"


@pytest.mark.parametrize("word", KEYS.split(","))
def test_colo_with_a_key_missing_names_it(word: str) -> None:
    key = word.partition("=")[0]
    for spec in (COLO.replace(f"{word},", ""), COLO.replace(word, f"{key}=")):
        with pytest.raises(SpecError, match=f"{key} is missing"):
            parse(spec)


@pytest.mark.parametrize(
    "words", ["backendtype=phy", "backendtype=tap", "backendtype=standalone", "script=block-drbd"]
)
def test_what_does_not_go_with_colo(words: str) -> None:
    with pytest.raises(SpecError, match="COLO needs") as raised:
        parse(f"{words},{COLO}")
    assert raised.value.position == words.index("=") + 1


def test_colo_images_are_three() -> None:
    with pytest.raises(SpecError, match="three files") as raised:
        parse(COLO.replace("hidden-disk=/h", "hidden-disk=/x"))
    assert raised.value.position == COLO.index("/h")


@pytest.mark.parametrize(
    ("word", "value"),
    [("active-disk=/a", "a"), ("hidden-disk=/h", "nbd:h"), ("target=/x", "json:{}")],
)
def test_colo_images_are_whole_paths(word: str, value: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(SpecError, match="COLO needs whole paths") as raised:
        parse(COLO.replace(word, f"{key}={value}"))
    assert raised.value.position == COLO.index(word) + len(f"{key}=")


@pytest.mark.parametrize("value", ["\0", "\x1b[2J", "\udcff"])
def test_a_target_that_no_terminal_should_see(value: str) -> None:
    with pytest.raises(SpecError, match="holds the character") as raised:
        parse(f"vdev=xvda,target=/{value}")
    assert value not in str(raised.value)


PIECES = [*"adhrvwx019=,: \n/-", "raw:", "vdev=", "target=", "xvda", "cdrom", "/x", "colo"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@example("/x,raw,xvda,w")
def test_any_text_is_a_disk_or_an_error_within_it(spec: str) -> None:
    try:
        disk = parse(spec)
    except SpecError as error:
        place = error.position
    else:
        assert parse(format_spec(disk)) == disk
        place = 0
    assert 0 <= place <= len(spec)


def test_a_long_specification_is_shown_around_the_error() -> None:
    spec = f"vdev=xvda,{'x' * 4096}=1,target=/x"
    with pytest.raises(SpecError) as raised:
        parse(spec)
    _, shown, caret = str(raised.value).split("\n")
    assert shown[caret.index("^")] == spec[raised.value.position]
    assert len(shown) < 200


PATHS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
WORDS = PATHS.filter(lambda text: "," not in text)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,30}", fullmatch=True)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    fields: dict[str, Any] = {
        "vdev": draw(st.sampled_from(["xvda", "xvdaa3", "hdc", "sdp", "d3p0", "51712"])),
        "pdev_path": draw(PATHS),
        "format": draw(
            st.sampled_from([f for f in Format if f not in {Format.EMPTY, Format.UNKNOWN}])
        ),
        "backend_domid": draw(st.integers(0, 32751)),
        "readwrite": draw(st.booleans()),
        "direct_io_safe": draw(st.booleans()),
        "discard_enable": draw(st.none() | st.booleans()),
        "trusted": draw(st.booleans()),
    }
    if draw(st.booleans()):
        words = st.lists(WORDS.map("/".__add__), min_size=2, max_size=2, unique=True)
        active, hidden = draw(words)
        is_whole = fields["pdev_path"].startswith("/")
        fields |= {
            "colo_enable": draw(st.booleans())
            and is_whole
            and fields["pdev_path"] not in {active, hidden},
            "colo_host": draw(NAMES),
            "colo_port": draw(st.integers(1, 65535)),
            "colo_export": draw(NAMES),
            "active_disk": active,
            "hidden_disk": hidden,
            "backend": draw(st.sampled_from([Backend.UNKNOWN, Backend.QDISK])),
        }
    else:
        fields["backend"] = draw(st.sampled_from(Backend))
        fields["script"] = draw(st.none() | WORDS)
        fields["specification"] = draw(st.sampled_from(Specification))
    if draw(st.booleans()):
        fields |= {"is_cdrom": True, "removable": True, "readwrite": False}
        if draw(st.booleans()) and not fields.get("colo_enable"):
            fields |= {"pdev_path": None, "format": Format.EMPTY}
    return Disk(**fields)


@given(disks())
def test_the_canonical_specification_gives_the_disk_back(disk: Disk) -> None:
    assert parse(format_spec(disk)) == disk


@pytest.mark.parametrize(
    ("disk", "spec"),
    [
        (VOLUME, "vdev=hda,target=/dev/vg/guest-volume"),
        (ISO, "vdev=hdc,devtype=cdrom,target=/root/image.iso"),
        (EMPTY, "vdev=hdc,devtype=cdrom"),
        (x(readwrite=False, format=Format.UNKNOWN), "vdev=xvda,access=ro,target=/x"),
        (x(colo_enable=True, **COLO_FIELDS), f"vdev=xvda,{KEYS},colo,target=/x"),
        (x(**COLO_FIELDS), f"vdev=xvda,{KEYS},no-colo,target=/x"),
    ],
)
def test_the_canonical_specification(disk: Disk, spec: str) -> None:
    assert format_spec(disk) == spec


def test_what_a_specification_has_no_way_to_say() -> None:
    with pytest.raises(DiskError, match="active-disk '/a,b': only a target may have a comma"):
        format_spec(x(colo_enable=True, **COLO_FIELDS | {"active_disk": "/a,b"}))


QCOW2, VHD = {"format": Format.QCOW2}, {"format": Format.VHD}
VIRTIO = {"specification": Specification.VIRTIO}


@pytest.mark.parametrize(
    ("changes", "block_device", "backend"),
    [
        ({}, True, "phy"),
        ({}, False, "qdisk"),
        (QCOW2, True, "qdisk"),
        ({"script": "block-drbd"}, False, "phy"),
        ({"backend_domid": 3}, False, "phy"),
        ({"script": "s"} | VHD, False, "tap"),
        (VIRTIO, True, "standalone"),
        (VIRTIO | {"backend_domid": 3}, False, "standalone"),
        ({"colo_enable": True} | COLO_FIELDS, True, "qdisk"),
        ({"is_cdrom": True}, True, "qdisk"),
        ({"is_cdrom": True, "format": Format.EMPTY}, False, "qdisk"),
        # given
        ({"backend": Backend.PHY}, True, "phy"),
        ({"backend": Backend.PHY, "is_cdrom": True, "format": Format.EMPTY}, False, "phy"),
        ({"backend": Backend.QDISK}, True, "qdisk"),
        ({"backend": Backend.TAP}, False, "tap"),
        ({"backend": Backend.STANDALONE} | VIRTIO, True, "standalone"),
    ],
)
def test_the_backend_is_libxls(changes: dict[str, Any], block_device: bool, backend: str) -> None:
    selection = select_backend(x(**changes), block_device=block_device)
    assert selection.backend == backend
    assert selection.reasons[-1].startswith(f"xvda: backend {backend} ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": Backend.PHY}, "phy unsuitable as the target is not a block device"),
        ({"backend": Backend.PHY} | QCOW2, "phy unsuitable due to format qcow2"),
        ({"backend": Backend.PHY, "colo_enable": True}, "phy not compatible with colo"),
        ({"backend": Backend.TAP, "colo_enable": True}, "tap not compatible with colo"),
        ({"backend": Backend.TAP} | QCOW2, "tap unsuitable due to format qcow2"),
        ({"backend": Backend.QDISK, "script": "s"}, "qdisk not compatible with script=s"),
        ({"backend": Backend.QDISK} | VIRTIO, "qdisk not compatible with specification=virtio"),
        ({"backend": Backend.STANDALONE}, "standalone not compatible with specification=xen"),
        (
            {"colo_enable": True, "script": "s"},
            "phy not compatible with colo; .*qdisk not .*tap not",
        ),
        (VIRTIO, "phy .*qdisk .*tap .*standalone unsuitable as the target is not a block device"),
    ],
)
def test_no_backend_fits(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DiskError, match=reason):
        select_backend(x(**changes), block_device=False)


def test_the_reasons_are_told_in_libxls_order() -> None:
    assert select_backend(X, block_device=False).reasons == (
        "xvda: backend phy unsuitable as the target is not a block device",
        "xvda: backend qdisk fits",
    )
