"""The files of one session: its description, its activation log, its checkpoints, its result."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
import re
from typing import Any

from ..errors import StorageError
from ..spec import SessionSpec
from .files import replace_file, sync_directory
from .log import ActivationLog

__all__ = ["SessionStore"]

logger = logging.getLogger("mobillm.server")

# The name holds the steps and the first half of the content's SHA-256, so that one rename is atomic and
# damage is seen at load.
CHECKPOINT = re.compile(r"checkpoint-(\d{12})-([0-9a-f]{32})\.safetensors")
KEPT = 2
LOG = "activations.log"


class SessionStore:
    """A session's directory.

    Args:
        directory: must exist.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    @classmethod
    def create(cls, parent: pathlib.Path, session: bytes, tenant: str, spec: SessionSpec) -> SessionStore:
        """Make the directory of a new session.

        Raises:
            StorageError: the disk is full or broken.

        """
        directory = parent / session.hex()
        try:
            directory.mkdir(mode=0o700, parents=True)
            sync_directory(parent)
        except OSError as exc:
            raise StorageError(f"{directory} cannot be made: {exc.strerror}") from exc
        store = cls(directory)
        store.describe({"tenant": tenant, "spec": spec.to_map(), "last": None, "epoch": 0, "finished": None})
        return store

    def describe(self, description: dict[str, Any]) -> None:
        """Replace the session's description."""
        replace_file(self.directory / "session.json", json.dumps(description, indent=1).encode())

    def description(self) -> dict[str, Any]:
        """Read the session's description.

        Raises:
            StorageError: it is missing or damaged.

        """
        path = self.directory / "session.json"
        try:
            description: dict[str, Any] = json.loads(path.read_bytes())
            description["spec"] = SessionSpec.from_map(description["spec"])
            _check(description)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise StorageError(f"{path} cannot be read: {exc}") from exc
        return description

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


def _check(description: dict[str, Any]) -> None:
    """Check the parts of a description that are not the spec; raise what reading them would."""
    last, finished = description["last"], description["finished"]
    if not isinstance(description["tenant"], str) or not isinstance(last, int | None):
        raise TypeError("tenant or last is of another type")
    if type(description["epoch"]) is not int or description["epoch"] < 0:
        raise ValueError("epoch is not a count")
    if finished is not None and set(finished) != {"steps", "loss"}:
        raise KeyError("finished")
