"""The record of a domain: what is written is read back, and nothing else is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from xencolo.disk import Disk, Format, Role
from xencolo.diskspec import parse as parse_disk
from xencolo.errors import RecordError
from xencolo.record import Chain, Record, chain_of, check_uuid, latest_generation, parse, render

UUID = "6f1c2a3b-0d4e-4f56-8a9b-0c1d2e3f4a5b"
CHAIN = Chain(
    devid=51712,
    secondary="/dev/vg/web",
    format=Format.RAW,
    hidden="/srv/web.hidden",
    active="/srv/web.active",
)
RECORD = Record(uuid=UUID, name="web", role=Role.SECONDARY, generation=3, in_sync=True)
FULL = replace(
    RECORD,
    role=Role.PRIMARY,
    promoted=True,
    unfinished=(CHAIN, replace(CHAIN, devid=768, format=Format.QCOW2)),
    superseded_by=4,
    peer="192.0.2.2:9990",
    detached=True,
)
#: As version 0.1 wrote it: every later version reads it, or raises FORMAT.
WRITTEN = b"""\
{
  "format": 1,
  "uuid": "6f1c2a3b-0d4e-4f56-8a9b-0c1d2e3f4a5b",
  "name": "web",
  "role": "secondary",
  "generation": 3,
  "in_sync": true,
  "promoted": false,
  "unfinished": [
    {
      "devid": 51712,
      "secondary": "/dev/vg/web",
      "format": "raw",
      "hidden": "/srv/web.hidden",
      "active": "/srv/web.active"
    }
  ],
  "superseded_by": null,
  "peer": null,
  "detached": false,
  "diverged": false,
  "relaunched": false,
  "settled": null,
  "own": false,
  "spoiled": false,
  "untold": false,
  "checksum": "sha256:2a95a7ad0147949965e6a591cddef3e3c31071b7d613cadf028b0d4056a2d6d9"
}
"""


def test_the_layout_is_the_one_of_every_version() -> None:
    assert render(replace(RECORD, unfinished=(CHAIN,))) == WRITTEN
    assert parse(WRITTEN) == replace(RECORD, unfinished=(CHAIN,))


@given(
    name=st.text(st.characters(), max_size=20),
    generation=st.integers(1, 1 << 60),
    flags=st.tuples(st.booleans(), st.booleans()),
    paths=st.lists(st.text(st.characters(exclude_characters="\0")), min_size=3, max_size=3),
    peer=st.none() | st.text(max_size=20),
)
def test_what_is_rendered_is_read_back(
    name: str, generation: int, flags: tuple[bool, bool], paths: list[str], peer: str | None
) -> None:
    secondary, hidden, active = (f"/{path}" for path in paths)
    chain = replace(CHAIN, secondary=secondary, hidden=hidden, active=active)
    record = replace(
        RECORD, name=name, generation=generation, in_sync=flags[0], detached=flags[1], peer=peer
    )
    for one in (record, replace(record, unfinished=(chain,), superseded_by=generation)):
        assert parse(render(one)) == one


def test_the_layout_for_people_may_change() -> None:
    document = json.loads(render(FULL))
    assert parse(json.dumps(document, sort_keys=True, indent="\t").encode()) == FULL


def test_any_flipped_bit_is_found() -> None:
    data = render(FULL)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(RecordError):
                parse(bytes(damaged))


def test_any_missing_end_is_found() -> None:
    data = render(FULL)
    assert parse(data[:-1]) == FULL  # nothing but the end of the last line
    for end in range(len(data) - 1):
        with pytest.raises(RecordError, match="damaged: no JSON"):
            parse(data[:end])


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 4096, b"[]", b"null", b"1", b"[" * 100_000, b"\xff\xfe{}", b"{}"]
)
def test_rubbish_is_damage(data: bytes) -> None:
    with pytest.raises(RecordError, match=r"damaged: .*; remove it, and the domain begins anew"):
        parse(data)


@pytest.mark.parametrize("number", [0, 2, "1", 1.5, [1]])
def test_another_layout_is_refused_before_anything_else(number: Any) -> None:
    document = json.loads(render(RECORD)) | {"format": number, "generation": "three"}
    with pytest.raises(RecordError, match=r"not known to this xencolo, .* install the version"):
        parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("generation", 0),
        ("generation", True),
        ("superseded_by", -1),
        ("uuid", "../../etc/passwd"),
        ("uuid", UUID.upper()),
        ("uuid", f"{UUID}\n"),
        ("role", "backup"),
        ("in_sync", 1),
    ],
)
def test_what_could_not_be_read_back_is_not_written(field: str, value: Any) -> None:
    with pytest.raises(RecordError, match=field):
        render(replace(RECORD, **{field: value}))


@pytest.mark.parametrize(
    ("of", "fields", "reason"),
    [
        (RECORD, {"role": Role.NONE}, "is primary or secondary"),
        (RECORD, {"promoted": True}, "a promoted domain is a primary"),
        (CHAIN, {"format": Format.EMPTY}, "can't have the format empty"),
        (CHAIN, {"format": Format.UNKNOWN}, "can't have the format unknown"),
        (CHAIN, {"active": "active"}, "'active' is not an absolute path"),
        (CHAIN, {"hidden": ""}, "'' is not an absolute path"),
        (CHAIN, {"secondary": "/a\0b"}, "is not an absolute path"),
    ],
)
def test_what_does_not_go_together_is_no_record(
    of: Record | Chain, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(of, **fields)


@pytest.mark.parametrize("uuid", ["", "web", "..", f"{UUID}/", f"../{UUID}", UUID.upper(), "*"])
def test_only_a_uuid_names_a_record(uuid: str) -> None:
    assert check_uuid(UUID) == UUID
    with pytest.raises(RecordError, match="is no uuid of a domain"):
        check_uuid(uuid)


SPEC = (
    "vdev=xvda,format={},colo,colo-host=h,colo-port=1,colo-export=e,"
    "active-disk={},hidden-disk=/h,target=/s"
)


def test_the_chain_of_a_disk() -> None:
    assert chain_of(parse_disk(SPEC.format("qcow2", "/a"))) == Chain(
        devid=51712, secondary="/s", format=Format.QCOW2, hidden="/h", active="/a"
    )


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (
            Disk(vdev="xvda", pdev_path="/s", hidden_disk="/h", active_disk="a"),
            "'a' is not an absolute path",
        ),
        (parse_disk("vdev=xvda,target=/s"), "Expected `str`, got `null`"),
        (parse_disk("vdev=hdc,cdrom"), "Expected `str`, got `null`"),
    ],
)
def test_a_disk_without_a_chain(disk: Disk, reason: str) -> None:
    with pytest.raises(RecordError, match=f"^no chain of images for .*{reason}"):
        chain_of(disk)


@pytest.mark.parametrize(
    ("superseded_by", "heard", "latest"), [(None, None, 2), (5, None, 5), (None, 4, 4), (3, 7, 7)]
)
def test_the_latest_generation_that_is_known(
    superseded_by: int | None, heard: int | None, latest: int
) -> None:
    record = replace(RECORD, generation=2, superseded_by=superseded_by)
    assert latest_generation(record, heard) == latest
