"""Files that are whole or not there: written beside, synced, renamed, and the directory synced."""

from __future__ import annotations

import os
import pathlib

from ..errors import StorageError

__all__ = ["private", "replace_file", "sync_directory"]


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Write a file so that after a crash there is either the old or the new content.

    Raises:
        StorageError: the disk is full or broken; the old file is untouched.

    """
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb", opener=private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_directory(path.parent)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def sync_directory(path: pathlib.Path) -> None:
    """Make a rename in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, as an ``opener`` of :func:`open`."""
    return os.open(path, flags, 0o600)
