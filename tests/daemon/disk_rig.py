"""File systems that can be filled, and images with something in them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rigs.servers import DEADLINE


def run(*argv: str) -> str:
    """Return what a program prints; it must succeed."""
    done = subprocess.run(argv, check=True, timeout=DEADLINE, stdout=subprocess.PIPE, text=True)
    return done.stdout


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own, so that it can be filled."""
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield path
    finally:
        run("umount", "-l", str(path))


def fill(path: Path) -> Path:
    """Use up the space; return the file to remove when it is needed."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def names(directory: Path) -> list[str]:
    """Return what is in a directory, hidden files too."""
    return sorted(path.name for path in directory.iterdir())


def qemu_io(path: str | Path, image_format: str, *commands: str) -> str:
    """Read and write an image as a guest would, ``write -P 1 0 1M`` for example."""
    words = [word for command in commands for word in ("-c", command)]
    return run("qemu-io", "-f", image_format, *words, str(path))
