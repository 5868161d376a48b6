import pytest
from hypothesis import given
from hypothesis import strategies as st

from xencolo.errors import PathError, VdevError
from xencolo.paths import (
    DEVID_MAX,
    DOMID_MAX,
    KINDS,
    DevicePaths,
    Hint,
    VirtualDisk,
    backend_root,
    colo_path,
    device_model_path,
    devid_to_disk,
    devid_to_vdev,
    domain_path,
    hint,
    libxl_domain_path,
    numbers,
    parse_backend,
    parse_devid,
    parse_domid,
    parse_vdev,
    vdev_to_devid,
)

VDEVS = {
    "xvda": 51712,
    "xvda1": 51713,
    "xvdb": 51728,
    "xvdp15": 51967,
    "xvda16": 1 << 28 | 16,
    "xvdq": 268439552,
    "xvdp16": 1 << 28 | 15 << 8 | 16,
    "xvdz": 1 << 28 | 25 << 8,
    "xvdaa": 1 << 28 | 26 << 8,
    "xvdaz": 1 << 28 | 51 << 8,
    "xvdba": 1 << 28 | 52 << 8,
    "xvda255": 1 << 28 | 255,
    "xvdbgqcv": 1 << 28 | ((1 << 20) - 1) << 8,
    "hda": 768,
    "hda63": 831,
    "hdb": 832,
    "hdc": 5632,
    "hdd1": 5697,
    "sda": 2048,
    "sda15": 2063,
    "sdp": 2288,
}


@pytest.mark.parametrize(("vdev", "devid"), VDEVS.items())
def test_a_name_is_its_number_and_back(vdev: str, devid: int) -> None:
    assert vdev_to_devid(vdev) == devid
    assert devid_to_vdev(devid) == vdev
    assert parse_vdev(str(devid)) == parse_vdev(vdev)


@pytest.mark.parametrize(
    ("vdev", "devid"),
    [
        ("d0p0", 51712),
        ("d15p15", 51967),
        ("d16p0", 268439552),
        ("0", 0),
        (str(DEVID_MAX), DEVID_MAX),
    ],
)
def test_other_ways_to_say_a_number(vdev: str, devid: int) -> None:
    assert vdev_to_devid(vdev) == devid


@pytest.mark.parametrize(
    ("vdev", "reason"),
    [
        ("", "is needed"),
        ("xvd", "is needed"),
        ("xvdA", "is needed"),
        ("xvda01", "is needed"),
        ("xvda0", "is needed"),
        ("sda 1", "is needed"),
        ("vda", "is needed"),
        ("../xvda", "is needed"),
        ("xvda\n", "is needed"),
        ("xvd\N{LATIN SMALL LETTER E WITH ACUTE}", "is needed"),
        ("x" * 4096, "is needed"),
        ("hde", "last disk of its kind is hdd"),
        ("hda64", "at most 63 partitions"),
        ("sdq", "last disk of its kind is sdp"),
        ("sda16", "at most 15 partitions"),
        ("xvda256", "at most 255 partitions"),
        ("xvdbgqcw", "last disk of its kind is xvdbgqcv"),
        ("d1048576p0", "last disk of its kind is xvdbgqcv"),
        ("d0p256", "at most 255 partitions"),
        (str(DEVID_MAX + 1), f"at most {DEVID_MAX}"),
        ("9" * 4096, f"at most {DEVID_MAX}"),
        ("-1", "is needed"),
        ("0768", "is needed"),
    ],
)
def test_what_is_no_vdev(vdev: str, reason: str) -> None:
    with pytest.raises(VdevError, match=reason) as raised:
        vdev_to_devid(vdev)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "devid", [0, 767, 3 << 8 | 128, 22 << 8 | 200, 1 << 28, 1 << 28 | 15, 1 << 29]
)
def test_a_number_without_a_name(devid: int) -> None:
    with pytest.raises(VdevError, match=f"device number {devid} belongs to no"):
        devid_to_disk(devid)


DISKS = st.one_of(
    st.builds(VirtualDisk, st.just("xvd"), st.integers(0, (1 << 20) - 1), st.integers(0, 255)),
    st.builds(VirtualDisk, st.just("hd"), st.integers(0, 3), st.integers(0, 63)),
    st.builds(VirtualDisk, st.just("sd"), st.integers(0, 15), st.integers(0, 15)),
)


@given(DISKS)
def test_every_disk_has_one_number(disk: VirtualDisk) -> None:
    letters = ""
    number = disk.number
    while number >= 0:  # the way back, written otherwise than in paths
        number, letter = number // 26 - 1, number % 26
        letters = "abcdefghijklmnopqrstuvwxyz"[letter] + letters
    name = f"{disk.bus}{letters}{disk.partition or ''}"
    devid = vdev_to_devid(name)
    assert devid_to_disk(devid) == disk
    assert devid_to_vdev(devid) == name


@given(st.integers(0, DEVID_MAX))
def test_every_number_with_a_name_is_that_names(devid: int) -> None:
    try:
        vdev = devid_to_vdev(devid)
    except VdevError:
        return
    assert vdev_to_devid(vdev) == devid


def test_paths_are_xens() -> None:
    paths = DevicePaths(7, 51712)
    assert paths.backend == "/local/domain/0/backend/qdisk/7/51712"
    assert paths.frontend == "/local/domain/7/device/vbd/51712"
    assert paths.libxl == "/libxl/7/device/vbd/51712"
    assert paths.error == "/local/domain/0/error/backend/qdisk/7/51712/error"
    assert paths.status == "/libxl/7/colo/device/51712"
    assert domain_path(7) == "/local/domain/7"
    assert libxl_domain_path(7) == "/libxl/7"
    assert colo_path(7) == "/libxl/7/colo"
    assert backend_root(3) == "/local/domain/3/backend"
    assert device_model_path(7) == "/local/domain/0/device-model/7"


@given(
    st.builds(
        DevicePaths,
        st.integers(0, DOMID_MAX),
        st.integers(0, DEVID_MAX),
        st.integers(0, DOMID_MAX),
        st.sampled_from(KINDS),
    )
)
def test_a_backend_path_comes_back(paths: DevicePaths) -> None:
    assert parse_backend(paths.backend) == paths
    assert hint(paths.backend) == Hint(paths.domid, paths.devid)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/local/domain/0/backend/qdisk/7",
        "/local/domain/0/backend/qdisk/7/51712/",
        "/local/domain/0/backend/qdisk/7/51712\n",
        "/local/domain/0/backend/vif/7/0",
        "/local/domain/0/backend/qdisk/07/51712",
        "/local/domain/0/backend/qdisk/7/051712",
        "/local/domain/0/backend/qdisk/99999/51712",
        "/local/domain/0/backend/qdisk/7/9999999999",
        "local/domain/0/backend/qdisk/7/51712",
    ],
)
def test_what_is_no_backend_path(path: str) -> None:
    with pytest.raises(PathError):
        parse_backend(path)


@pytest.mark.parametrize(
    "text", ["", "-1", "01", "32752", "1e3", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 99]
)
def test_what_is_no_domid(text: str) -> None:
    with pytest.raises(PathError, match="domid"):
        parse_domid(text)


def test_numbers_among_names() -> None:
    names = ["7", "10", "00", "7", "\u00b2", "\ufffd", "", "x", "-1", "9" * 30, "32752"]
    assert numbers(names, parse_domid) == [7, 10]
    assert numbers(names, parse_devid) == [7, 10, 32752]


def test_domids() -> None:
    assert [parse_domid("0"), parse_domid("32751")] == [0, DOMID_MAX]


@pytest.mark.parametrize(
    ("path", "about"),
    [
        ("/local/domain/0/backend", Hint()),
        ("/local/domain/0/backend/qdisk", Hint()),
        ("/local/domain/0/backend/qdisk/7", Hint(7)),
        ("/local/domain/0/backend/qdisk/7/51712", Hint(7, 51712)),
        ("/local/domain/0/backend/qdisk/7/51712/state", Hint(7, 51712)),
        ("/local/domain/0/backend/qdisk/x/51712", None),
        ("/local/domain/0/backend/vif/7/0", None),
        ("/libxl", Hint()),
        ("/libxl/7", Hint(7)),
        ("/libxl/7/type", Hint(7)),
        ("/libxl/7/colo/generation", Hint(7)),
        ("/libxl/7/device", Hint(7)),
        ("/libxl/7/device/vbd", Hint(7)),
        ("/libxl/7/device/vbd/768/params", Hint(7, 768)),
        ("/libxl/7/device/vif/0", None),
        ("/libxl/7/colo/role", Hint(7)),
        ("/libxl/7/colo/command", Hint(7)),
        ("/libxl/7/colo/answer", None),
        ("/libxl/7/colo/state", None),
        ("/local/domain/7", Hint(7)),
        ("/local/domain/7/memory", None),
        ("@releaseDomain", None),
    ],
)
def test_what_an_event_may_be_about(path: str, about: Hint | None) -> None:
    assert hint(path) == about
