"""A session's network in memory, with how far it has come: what a worker owns, wherever it runs.

Weights and progress change together, in one thread, so that a checkpoint sees both or neither.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

from .batch import Batch
from .checkpoints import Checkpoints
from .engine import Status, Step
from .progress import Progress
from .reader import LogReader
from .trainer import Trainer

__all__ = ["Learner"]


class Learner:
    """A trainer with its progress.

    Args:
        trainer: new.
        checkpoints: of the session; the newest is loaded.

    Attributes:
        trainer: the network and its optimizer.
        progress: how far it has come.
        restored: whether there was a checkpoint.

    Raises:
        StorageError: all checkpoints are damaged.

    """

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        self.trainer = trainer
        data = checkpoints.load()
        self.restored = data is not None
        self.progress = Progress() if data is None else Progress(**trainer.load(data))

    @property
    def status(self) -> Status:
        """How far it has come."""
        return Status(self.trainer.steps, self.trainer.skipped, self.trainer.lr, self.progress)

    def hold_out(self, seq: int) -> None:
        """Note that the next batch of the first epoch is kept for evaluation."""
        self.progress = self.progress.after(seq, 1, 0, None)

    def step(self, parts: Sequence[Batch], applied: int, epoch: int, index: int) -> Step:
        """Take one optimizer step.

        Args:
            parts: samples of one batch; several where not all taps were packed alike.
            applied: last batch of the first epoch that is trained on then.
            epoch: from 1.
            index: batches of a later epoch that are trained on then; 0 in the first.

        """
        start = time.monotonic_ns()
        loss = self.trainer.step(*parts)
        self.progress = self.progress.after(applied, epoch, index, loss)
        return Step(loss, start // 1000, (time.monotonic_ns() - start) // 1000)

    def judge(self, log: LogReader) -> dict[str, float]:
        """Judge an epoch that is over by the held-out batches, and keep its weights if they are the best."""
        values = self.evaluate(log)
        self.progress = self.progress.judge(values.get("loss"))
        if self.progress.best_epoch == self.progress.epoch:
            self.trainer.keep_best()
        return values

    def settle(self, log: LogReader) -> dict[str, float]:
        """Go back to the best weights, if any were kept, and evaluate them; a second time changes nothing."""
        self.trainer.use_best()
        return self.evaluate(log)

    def evaluate(self, log: LogReader) -> dict[str, float]:
        """Evaluate on the held-out batches of a log.

        Returns:
            ``count`` (samples) with the values that are finite.

        """
        entries = [entry for entry in log.entries if entry.heldout]
        values = self.trainer.evaluate(log.read(entry) for entry in entries)
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        return finite | {"count": float(sum(entry.samples for entry in entries))}

    def save(self) -> bytes:
        """Return the whole state as a checkpoint."""
        return self.trainer.save(dataclasses.asdict(self.progress))
