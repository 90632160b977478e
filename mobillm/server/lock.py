"""One server for each data directory: two would write the same logs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

from ..errors import ConfigError, StorageError

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """The right to use a data directory; the system takes it back when the process ends, however it ends.

    Args:
        directory: must exist.

    Raises:
        ConfigError: another server uses the directory.
        StorageError: the lock's file cannot be opened.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        path = directory / "lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StorageError(f"{path} cannot be opened: {exc.strerror}") from exc
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.write(self._file, str(os.getpid()).encode())
        except BlockingIOError as exc:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace") or "unknown"
            self.release()
            text = f"a directory of its own; stop the server that uses this one (process {owner}) first"
            raise ConfigError("data_dir", str(directory), text) from exc
        except OSError as exc:
            self.release()
            raise StorageError(f"{path} cannot be locked: {exc.strerror}") from exc

    def release(self) -> None:
        """Give the directory free; can be called more than once."""
        # The file stays: were it deleted, one server could hold the old file and another one a new file.
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)
