"""The files of one session: its activation log and its checkpoints; and its record in the registry."""

from __future__ import annotations

import contextlib
import pathlib
import shutil

from ..errors import StorageError
from .checkpoints import Checkpoints
from .files import sync_directory
from .log import ActivationLog
from .registry import Registry, SessionRecord
from .trainer import applied_in

__all__ = ["SessionStore"]

LOG = "activations.log"


class SessionStore:
    """A session's directory and its record.

    Args:
        directory: must exist.
        registry: holds the record.
        session: the session's 16 bytes.

    Attributes:
        checkpoints: of the session.

    """

    def __init__(self, directory: pathlib.Path, registry: Registry, session: bytes) -> None:
        self.directory = directory
        self.checkpoints = Checkpoints(directory)
        self._registry = registry
        self._session = session

    @property
    def log_path(self) -> pathlib.Path:
        """The activation log."""
        return self.directory / LOG

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
            DamageError: it has lost batches that were durable, or all checkpoints are damaged.
            StorageError: it cannot be opened.

        """
        checkpoint = self.checkpoints.load()
        return ActivationLog(self.log_path, 0 if checkpoint is None else applied_in(checkpoint))

    def log_size(self) -> int:
        """Return the bytes of the activation log without opening it; 0 when there is none."""
        try:
            return (self.log_path).stat().st_size
        except OSError:
            return 0

    def delete_log(self) -> None:
        """Delete the activation log; what was read from it stays valid.

        Raises:
            StorageError: the disk is broken.

        """
        try:
            (self.log_path).unlink(missing_ok=True)
        except OSError as exc:
            raise StorageError(f"{self.log_path} cannot be deleted: {exc.strerror}") from exc
