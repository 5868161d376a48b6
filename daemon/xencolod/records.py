"""The records of the replicated domains: one small file each, whole and on disk or not there at all."""

import errno
import os
from pathlib import Path

import trio

from xencolo.errors import RecordError
from xencolo.record import Record, check_uuid, parse, render

_REMEDIES = {
    errno.ENOSPC: "; make room there",
    errno.EDQUOT: "; make room there",
    errno.EROFS: "; remount it for writing",
}


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on disk.

    :raises OSError: it is not there, or the disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Records:
    """The records in one directory, made when the first one is saved.

    No call is broken off by cancellation: it ends, and then the task is cancelled.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        # One at a time: two that save the same record would write into one file.
        self._one = trio.CapacityLimiter(1)

    def path(self, uuid: str) -> Path:
        """Return where the record of a domain is.

        :raises RecordError: it is no uuid.
        """
        return self.directory / f"{check_uuid(uuid)}.json"

    async def load(self, uuid: str) -> Record | None:
        """Return the record of a domain, None if it has none.

        :raises RecordError: it can't be read, is damaged or is another domain's.
        """
        return await trio.to_thread.run_sync(self._load, uuid, limiter=self._one)

    async def save(self, record: Record) -> None:
        """Save the record in place of the one before; after it, a power failure does not lose it.

        :raises RecordError: it could not be saved. The one before is left, except that when the disk itself
            fails at the very end, either may be found later.
        """
        await trio.to_thread.run_sync(self._save, record, limiter=self._one)

    async def forget(self, uuid: str) -> None:
        """Remove the record of a domain, damaged or not; nothing happens if it has none.

        :raises RecordError: it could not be removed.
        """
        await trio.to_thread.run_sync(self._forget, uuid, limiter=self._one)

    def _load(self, uuid: str) -> Record | None:
        path = self.path(uuid)
        try:
            data = path.read_bytes()
            # A daemon that was killed after the rename left a record that a power failure could still undo.
            sync_directory(self.directory)
            record = parse(data)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, error) from error
        except RecordError as error:
            raise RecordError(error.reason, str(path)) from None
        if record.uuid != uuid:
            raise RecordError(f"it is the record of {record.uuid}: remove the copy", str(path))
        return record

    def _save(self, record: Record) -> None:
        data, path = render(record), self.path(record.uuid)
        new = path.with_suffix(".new")
        try:
            self._make_directory()
            try:
                _write(new, data)
                new.rename(path)
            finally:
                new.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError as error:
            raise _failed(path, error) from error

    def _make_directory(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.directory.parent)

    def _forget(self, uuid: str) -> None:
        path = self.path(uuid)
        try:
            path.unlink()
            sync_directory(self.directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(path, error) from error


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _failed(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{error.strerror}{_REMEDIES.get(error.errno or 0, '')}", str(path))
