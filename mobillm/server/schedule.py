"""What training does next, worked out from how far it has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..spec import SessionSpec
from .progress import Progress
from .reader import Entry

__all__ = ["Piece", "Schedule"]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the training from the log.

    Attributes:
        epoch: from 1.
        index: of the batch in the epoch, from 0; None: the epoch's end is judged by the held-out batches.

    """

    epoch: int
    index: int | None


class Schedule:
    """The pieces of all epochs after the device's last batch.

    Args:
        spec: the session.
        entries: all batches of its log.

    """

    def __init__(self, spec: SessionSpec, entries: Sequence[Entry]) -> None:
        self._epochs = spec.epochs
        self._patience = spec.early_stopping if any(entry.heldout for entry in entries) else 0
        self._batches = sum(not entry.heldout for entry in entries)

    def after(self, progress: Progress) -> Piece | None:
        """Return what comes next; None: training is over."""
        epoch = progress.epoch
        # The first epoch has been trained as its batches came.
        if epoch > 1 and progress.index < self._batches:
            return Piece(epoch, progress.index)
        if self._patience:
            if progress.judged < epoch:
                return Piece(epoch, None)
            if epoch - progress.best_epoch >= self._patience:
                return None
        return Piece(epoch + 1, 0) if epoch < self._epochs and self._batches else None
