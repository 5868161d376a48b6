"""The files of the records: whole, durable, and left alone when something fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
import trio
from msgspec.structs import replace

from tests.daemon.disk_rig import fill, names, small_disk
from xencolo.disk import Role
from xencolo.errors import RecordError
from xencolo.record import Record
from xencolod.records import Records

UUID = "6f1c2a3b-0d4e-4f56-8a9b-0c1d2e3f4a5b"
RECORD = Record(uuid=UUID, name="web", role=Role.SECONDARY, generation=3, in_sync=True)
NEXT = replace(RECORD, generation=4)


async def test_a_record_is_saved_replaced_and_forgotten(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "state"
    records = Records(directory)
    assert await records.load(UUID) is None
    await records.forget(UUID)
    for record in (RECORD, NEXT):
        await records.save(record)
        assert await Records(directory).load(UUID) == record
    assert names(directory) == [f"{UUID}.json"]
    assert records.path(UUID).stat().st_mode & 0o777 == 0o600
    await records.forget(UUID)
    assert await records.load(UUID) is None
    assert names(directory) == []


async def test_it_is_on_disk_before_it_has_the_name_and_the_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def spy_rename(old: str, new: str) -> None:
        rename(old, new)
        done.append(f"rename {Path(new).name}")

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    records = Records(tmp_path / "state")
    await records.save(RECORD)
    saved = [f"fsync {UUID}.new", f"rename {UUID}.json", "fsync state"]
    assert done == [f"fsync {tmp_path.name}", *saved]
    done.clear()
    await records.save(NEXT)
    assert done == saved
    # What a daemon found that was killed before the last of these is made durable by the next one.
    done.clear()
    await records.load(UUID)
    assert done == ["fsync state"]
    done.clear()
    await records.forget(UUID)
    assert done == ["fsync state"]


async def test_a_full_disk_leaves_the_record_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", "64k") as directory:
        records = Records(directory)
        await records.save(RECORD)
        filler = fill(directory)
        with pytest.raises(RecordError, match=r"\.json: No space left on device; make room there"):
            await records.save(NEXT)
        assert await records.load(UUID) == RECORD
        assert names(directory) == [f"{UUID}.json", "filler"]
        filler.unlink()
        await records.save(NEXT)
        assert await records.load(UUID) == NEXT


async def test_what_an_earlier_try_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.new").write_bytes(b"{" * 100_000)
    records = Records(tmp_path)
    assert await records.load(UUID) is None
    await records.save(RECORD)
    assert await records.load(UUID) == RECORD
    assert names(tmp_path) == [f"{UUID}.json"]


async def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / f"{UUID}.new").symlink_to(precious)
    records = Records(tmp_path)
    with pytest.raises(RecordError, match="Too many levels of symbolic links"):
        await records.save(RECORD)
    assert precious.read_text() == "data"


async def test_a_damaged_record_is_named_and_can_be_forgotten(tmp_path: Path) -> None:
    records = Records(tmp_path)
    await records.save(RECORD)
    path = records.path(UUID)
    path.write_bytes(path.read_bytes().replace(b'"generation": 3', b'"generation": 4'))
    with pytest.raises(RecordError) as caught:
        await records.load(UUID)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"{path}: damaged: the checksum does not fit; remove it,")
    await records.forget(UUID)
    assert await records.load(UUID) is None


async def test_a_copy_under_another_name_is_refused(tmp_path: Path) -> None:
    records, other = Records(tmp_path), UUID.replace("6", "7")
    await records.save(RECORD)
    records.path(UUID).rename(records.path(other))
    with pytest.raises(RecordError, match=f"{other}.json: it is the record of {UUID}"):
        await records.load(other)


@pytest.mark.parametrize("call", ["load", "forget"])
async def test_only_records_are_touched(call: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RecordError, match="is no uuid"):
        await getattr(Records(tmp_path / "state"), call)("../x")
    assert (tmp_path / "x.json").exists()


@pytest.mark.parametrize("call", ["load", "forget", "save"])
async def test_what_the_system_refuses_is_named(call: str, tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.path(UUID).mkdir()
    with pytest.raises(RecordError, match=rf"^{records.path(UUID)}: Is a directory"):
        await getattr(records, call)(RECORD if call == "save" else UUID)
    assert names(tmp_path) == [f"{UUID}.json"]


async def test_many_at_once_are_saved_one_by_one(tmp_path: Path) -> None:
    records = Records(tmp_path)
    versions = [replace(RECORD, generation=number) for number in range(1, 40)]
    async with trio.open_nursery() as nursery:
        for version in versions:
            nursery.start_soon(records.save, version)
    assert await records.load(UUID) in versions
    assert names(tmp_path) == [f"{UUID}.json"]


_SAVER = """
import sys, trio
from tests.daemon.test_records import NEXT, RECORD
from xencolod.records import Records
async def main():
    records = Records(sys.argv[1])
    print(flush=True)
    while True:
        await records.save(RECORD)
        await records.save(NEXT)
trio.run(main)
"""


@pytest.mark.parametrize("milliseconds", [5, 12, 23])
async def test_killed_at_any_moment_it_is_one_or_the_other(
    milliseconds: int, tmp_path: Path
) -> None:
    records = Records(tmp_path)
    await records.save(RECORD)
    argv = [sys.executable, "-c", _SAVER, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as saver:
        assert saver.stdout
        saver.stdout.readline()
        sleep(milliseconds / 1000)  # the moment: any will do
        saver.send_signal(signal.SIGKILL)
    assert await records.load(UUID) in {RECORD, NEXT}
    await records.save(NEXT)
    assert names(tmp_path) == [f"{UUID}.json"]
