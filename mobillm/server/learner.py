"""A session's network in memory, with how far it has come: what a worker owns, wherever it runs.

Weights and progress change together, in one thread, so that a checkpoint sees both or neither.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

from .batch import Batch
from .checkpoints import Checkpoints
from .engine import Status, Step
from .progress import Progress
from .reader import LogReader
from .together import Grid, step_together
from .trainer import Trainer

__all__ = ["Learner", "Piece"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a step trains on.

    Attributes:
        parts: samples of one batch; several where not all taps were packed alike.
        applied: last batch of the first epoch that is trained on then.
        epoch: from 1.
        index: batches of a later epoch that are trained on then; 0 in the first.

    """

    parts: Sequence[Batch]
    applied: int
    epoch: int
    index: int

    @functools.cached_property
    def grid(self) -> Grid:
        """What the batch takes."""
        return Grid.of(self.parts)


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

    def step(self, piece: Piece) -> Step:
        """Take one optimizer step."""
        start = time.monotonic_ns()
        loss = self.trainer.step(*piece.parts)
        return self._stepped(piece, loss, start, time.monotonic_ns() - start)

    @staticmethod
    def step_together(learners: Sequence[Learner], pieces: Sequence[Piece]) -> list[Step | Exception]:
        """Take one step of each of several sessions of one shape, see :mod:`mobillm.server.together`.

        Returns:
            for each what :meth:`step` returns or raises; each has taken a part of the time as its tokens are.

        """
        start = time.monotonic_ns()
        trainers = [learner.trainer for learner in learners]
        losses = step_together(trainers, [piece.parts for piece in pieces])
        each = (time.monotonic_ns() - start) / sum(piece.grid.tokens for piece in pieces)
        return [
            loss
            if isinstance(loss, Exception)
            else learner._stepped(piece, loss, start, int(each * piece.grid.tokens))
            for learner, piece, loss in zip(learners, pieces, losses, strict=True)
        ]

    def _stepped(self, piece: Piece, loss: float | None, start: int, duration: int) -> Step:
        self.progress = self.progress.after(piece.applied, piece.epoch, piece.index, loss)
        return Step(loss, start // 1000, duration // 1000)

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
