"""The files of one session: its activation log and its checkpoints; and its record in the registry."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pathlib
import re
import shutil

from ..errors import StorageError
from .files import replace_file, sync_directory
from .log import ActivationLog
from .registry import Registry, SessionRecord

__all__ = ["SessionStore"]

logger = logging.getLogger("mobillm.server")

# The name holds the steps and the first half of the content's SHA-256, so that one rename is atomic and
# damage is seen at load.
CHECKPOINT = re.compile(r"checkpoint-(\d{12})-([0-9a-f]{32})\.safetensors")
KEPT = 2
LOG = "activations.log"


class SessionStore:
    """A session's directory and its record.

    Args:
        directory: must exist.
        registry: holds the record.
        session: the session's 16 bytes.

    """

    def __init__(self, directory: pathlib.Path, registry: Registry, session: bytes) -> None:
        self.directory = directory
        self._registry = registry
        self._session = session

    @classmethod
    def create(cls, parent: pathlib.Path, registry: Registry, record: SessionRecord) -> SessionStore:
        """Make the directory and the record of a new session.

        Raises:
            StorageError: the disk is full or broken.

        """
        directory = parent / record.id.hex()
        try:
            directory.mkdir(mode=0o700, parents=True)
            sync_directory(parent)
        except OSError as exc:
            raise StorageError(f"{directory} cannot be made: {exc.strerror}") from exc
        store = cls(directory, registry, record.id)
        try:
            store.save(record)
        except StorageError:
            with contextlib.suppress(OSError):
                directory.rmdir()
            raise
        return store

    def save(self, record: SessionRecord) -> None:
        """Replace the session's record.

        Raises:
            StorageError: the disk is full or broken.

        """
        self._registry.save_session(record)

    def record(self) -> SessionRecord:
        """Read the session's record.

        Raises:
            StorageError: it is missing or damaged.

        """
        return self._registry.load_session(self._session)

    def delete(self) -> None:
        """Delete the record and the files; a log that is still mapped stays readable.

        Raises:
            StorageError: the disk is broken; what was not deleted is named.

        """
        self._registry.delete_session(self._session)
        try:
            shutil.rmtree(self.directory)
        except OSError as exc:
            raise StorageError(f"{self.directory} cannot be deleted: {exc.strerror}; do it by hand") from exc

    def open_log(self) -> ActivationLog:
        """Open the activation log.

        Raises:
            StorageError: it is damaged before its last record.

        """
        return ActivationLog(self.directory / LOG)

    def log_size(self) -> int:
        """Return the bytes of the activation log without opening it; 0 when there is none."""
        try:
            return (self.directory / LOG).stat().st_size
        except OSError:
            return 0

    def delete_log(self) -> None:
        """Delete the activation log; what was read from it stays valid.

        Raises:
            StorageError: the disk is broken.

        """
        try:
            (self.directory / LOG).unlink(missing_ok=True)
        except OSError as exc:
            raise StorageError(f"{self.directory / LOG} cannot be deleted: {exc.strerror}") from exc

    def save_checkpoint(self, steps: int, data: bytes) -> None:
        """Store a checkpoint and delete all but the newest ones.

        Raises:
            StorageError: the disk is full or broken; older checkpoints are untouched.

        """
        digest = hashlib.sha256(data).hexdigest()[:32]
        replace_file(self.directory / f"checkpoint-{steps:012d}-{digest}.safetensors", data)
        for path in self._checkpoints()[KEPT:]:
            path.unlink(missing_ok=True)

    def load_checkpoint(self) -> bytes | None:
        """Return the newest checkpoint that is not damaged; None when there never was one.

        Raises:
            StorageError: there are checkpoints, and all are damaged.

        """
        paths = self._checkpoints()
        for path in paths:
            match = CHECKPOINT.fullmatch(path.name)
            try:
                data = path.read_bytes()
            except OSError as exc:
                logger.error("! %s cannot be read: %s; an older checkpoint is tried", path, exc.strerror)
                continue
            if match is not None and hashlib.sha256(data).hexdigest()[:32] == match[2]:
                return data
            logger.error("! %s is damaged; an older checkpoint is tried", path)
        if paths:
            raise StorageError(f"no checkpoint in {self.directory} is intact; restore one from a backup")
        return None

    def _checkpoints(self) -> list[pathlib.Path]:
        """Return the checkpoints' paths, newest first."""
        found = [path for path in self.directory.iterdir() if CHECKPOINT.fullmatch(path.name)]
        return sorted(found, reverse=True)
