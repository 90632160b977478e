"""How far the training of a session has come."""

from __future__ import annotations

import dataclasses

__all__ = ["Progress"]


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far training has come; stored with every checkpoint.

    Attributes:
        applied: last batch of the first epoch that was trained on or kept.
        epoch: epoch of the last step, from 1.
        index: batches of that epoch that were trained on; 0 in the first.
        total, count: sum and number of that epoch's losses.

    """

    applied: int = 0
    epoch: int = 1
    index: int = 0
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float | None:
        """Mean loss of the epoch; None before its first step."""
        return self.total / self.count if self.count else None

    def after(self, applied: int, epoch: int, index: int, loss: float | None) -> Progress:
        """Return the progress after one more step."""
        total, count = (self.total, self.count) if epoch == self.epoch else (0.0, 0)
        if loss is not None:
            total, count = total + loss, count + 1
        return Progress(applied, epoch, index, total, count)
