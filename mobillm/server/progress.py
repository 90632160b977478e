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
        judged: last epoch after which the held-out batches were evaluated, for early stopping.
        best_epoch, best_loss: epoch with the lowest of these losses, and that loss; 0 and None before one.

    """

    applied: int = 0
    epoch: int = 1
    index: int = 0
    total: float = 0.0
    count: int = 0
    judged: int = 0
    best_epoch: int = 0
    best_loss: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean loss of the epoch; None before its first step."""
        return self.total / self.count if self.count else None

    def after(self, applied: int, epoch: int, index: int, loss: float | None) -> Progress:
        """Return the progress after one more step."""
        total, count = (self.total, self.count) if epoch == self.epoch else (0.0, 0)
        if loss is not None:
            total, count = total + loss, count + 1
        return dataclasses.replace(self, applied=applied, epoch=epoch, index=index, total=total, count=count)

    def judge(self, loss: float | None) -> Progress:
        """Return the progress after the epoch's end was evaluated.

        Args:
            loss: on the held-out batches; None when it is not finite.

        """
        better = loss is not None and (self.best_loss is None or loss < self.best_loss)
        if better:
            return dataclasses.replace(self, judged=self.epoch, best_epoch=self.epoch, best_loss=loss)
        return dataclasses.replace(self, judged=self.epoch)
