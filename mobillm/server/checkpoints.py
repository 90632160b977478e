"""The checkpoints of a session: the last two, each one file whose name tells whether it is whole."""

from __future__ import annotations

import hashlib
import logging
import pathlib
import re

from ..errors import DamageError
from .files import replace_file

__all__ = ["Checkpoints"]

logger = logging.getLogger("mobillm.server")

# The name holds the steps, which of the checkpoints after so many it is, and the first half of the content's
# SHA-256, so that one rename is atomic and damage is seen at load.
NAME = re.compile(r"checkpoint-(\d{12})-(\d{6})-([0-9a-f]{32})\.safetensors")
KEPT = 2


class Checkpoints:
    """Those of one session.

    Args:
        directory: the session's; must exist.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def save(self, steps: int, data: bytes) -> None:
        """Store a checkpoint and delete all but the newest ones.

        Raises:
            StorageError: the disk is full or broken; older checkpoints are untouched.

        """
        digest = hashlib.sha256(data).hexdigest()[:32]
        matches = [NAME.fullmatch(path.name) for path in self._paths()]
        number = 1
        for match in reversed(matches):
            # The weights may change without a step: at the end of training those of the best epoch are kept.
            if match is not None and int(match[1]) == steps:
                number = int(match[2]) + (match[3] != digest)
        replace_file(self.directory / f"checkpoint-{steps:012d}-{number:06d}-{digest}.safetensors", data)
        for path in self._paths()[KEPT:]:
            path.unlink(missing_ok=True)

    def load(self) -> bytes | None:
        """Return the newest checkpoint that is not damaged; None when there never was one.

        Raises:
            DamageError: there are checkpoints, and all are damaged.

        """
        paths = self._paths()
        for path in paths:
            match = NAME.fullmatch(path.name)
            try:
                data = path.read_bytes()
            except OSError as exc:
                logger.error("! %s cannot be read: %s; an older checkpoint is tried", path, exc.strerror)
                continue
            if match is not None and hashlib.sha256(data).hexdigest()[:32] == match[3]:
                return data
            logger.error("! %s is damaged; an older checkpoint is tried", path)
        if paths:
            raise DamageError(
                f"no checkpoint in {self.directory} is intact; restore one from a backup or delete the "
                "session"
            )
        return None

    def _paths(self) -> list[pathlib.Path]:
        """Return the checkpoints' paths, newest first."""
        try:
            found = [path for path in self.directory.iterdir() if NAME.fullmatch(path.name)]
        except FileNotFoundError as exc:
            raise DamageError(
                f"{self.directory} is gone; restore it from a backup or delete the session"
            ) from exc
        return sorted(found, reverse=True)
