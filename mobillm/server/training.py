"""The training of a session while its network is in memory: steps, epochs from the log, checkpoints, figures.

Weights and progress change together, in the training thread, so that a checkpoint sees both or neither.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from ..errors import ConfigError, StorageError
from ..protocol import Metrics
from .batch import Batch
from .log import ActivationLog
from .meter import Meter
from .progress import Progress
from .replay import Replay
from .store import SessionStore
from .trainer import Trainer
from .workers import Workers

__all__ = ["MAX_SKIPPED", "SPAN_LOG", "SPAN_RECEIVE", "SPAN_TRAIN", "Span", "Training", "restore"]

logger = logging.getLogger("mobillm.server")

# Batches in a row with a loss that is not finite, after which going on makes no sense.
MAX_SKIPPED = 10
METRICS_INTERVAL = 0.1  # seconds
CHECKPOINT_INTERVAL = 60.0  # seconds; at most this much training is repeated after a crash
MAX_SPANS = 64

SPAN_RECEIVE, SPAN_TRAIN, SPAN_LOG = 0, 1, 2
Span = tuple[int, int, int, int]  # kind, batch number, start and duration in microseconds


async def _at_once() -> None:
    """Wait for nothing."""


class Training:
    """A session's trainer with its progress; made by :meth:`restore`.

    Args:
        trainer: as the newest checkpoint left it, or new.
        progress: what belongs to it.
        store: where checkpoints go.
        log: the session's log, opened when it is needed.
        workers: the server's threads.
        meter: counts steps and checkpoints.
        name: the session's name, for the log.

    Attributes:
        trainer: the network and its optimizer.
        progress: how far it has come.
        report: called with METRICS, not more often than ten times a second.
        turn: awaited before each step.

    """

    def __init__(
        self,
        trainer: Trainer,
        progress: Progress,
        store: SessionStore,
        log: Callable[[], ActivationLog],
        workers: Workers,
        meter: Meter,
        name: str,
    ) -> None:
        self.trainer = trainer
        self.progress = progress
        self.report: Callable[[Metrics], None] = lambda metrics: None
        self.turn: Callable[[], Awaitable[None]] = _at_once
        self._spec = trainer.spec
        self._store = store
        self._log = log
        self._workers = workers
        self._meter = meter
        self._name = name
        self._losses: list[float] = []
        self._busy = 0.0
        self._spans: list[Span] = []
        self._reported = 0.0
        self._saved = time.monotonic()

    def add_span(self, span: Span) -> None:
        """Keep a timing for the next METRICS, if the spec asks for timings."""
        if self._spec.trace and len(self._spans) < MAX_SPANS:
            self._spans.append(span)

    async def first_epoch(self, batch: Batch, queue: int) -> None:
        """Train on the next batch of the device, or keep it if it is held out.

        Args:
            batch: the batch after ``progress.applied``.
            queue: batches that wait behind it, for METRICS.

        Raises:
            ConfigError: the loss was not finite too often.
            StorageError: a checkpoint that was due could not be written.

        """
        if batch.heldout:
            self.progress = self.progress.after(batch.seq, 1, 0, None)
        else:
            await self._step([batch], batch.seq, 1, 0, queue)

    async def later_epochs(self) -> None:
        """Train what is left of the epochs from the log, until early stopping ends it.

        Raises:
            ConfigError: the loss was not finite too often.
            StorageError: the log is damaged, or a checkpoint could not be written.

        """
        replay = Replay(self._spec, self._log())
        applied = self.progress.applied
        index = self.progress.index  # 0 unless a later epoch was under way
        for epoch in range(self.progress.epoch, self._spec.epochs + 1):
            # The first epoch has been trained as its batches came.
            for number in range(index, len(replay) if epoch > 1 else 0):
                parts = await self._workers.write(replay.batch, epoch, number)
                await self._step(parts, applied, epoch, number + 1, 0)
            index = 0
            if await self._should_stop(epoch):
                return

    async def _should_stop(self, epoch: int) -> bool:
        """Judge an epoch that is over by the held-out batches; tell whether training ends with it."""
        if not self._spec.early_stopping or not any(entry.heldout for entry in self._log().entries):
            return False

        def work() -> dict[str, float]:
            values = self._evaluate()
            self.progress = self.progress.judge(values.get("loss"))
            if self.progress.best_epoch == epoch:
                self.trainer.keep_best()
            return values

        if self.progress.judged < epoch:
            values = await self._workers.train(self._name, work)
            if self._meter.curves is not None:
                curves, steps = self._meter.curves, self.trainer.steps
                await self._workers.write(curves.add_heldout, self._name, steps, values)
        return epoch - self.progress.best_epoch >= self._spec.early_stopping

    async def complete(self) -> dict[str, float]:
        """Settle for the final weights, and write a checkpoint of them.

        Returns:
            figures of the held-out batches, as from :meth:`evaluate`.

        Raises:
            StorageError: the disk is full or broken.

        """
        await self._report(0, last=True)

        def work() -> dict[str, float]:
            self.trainer.use_best()
            return self._evaluate()

        evaluation = await self._workers.train(self._name, work)
        if self._meter.curves is not None:
            curves = self._meter.curves
            await self._workers.write(curves.add_heldout, self._name, self.trainer.steps, evaluation)
            await self._workers.write(curves.close, self._name)
        await self.checkpoint()
        return evaluation

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        """Evaluate on the held-out batches that are durable.

        Returns:
            the steps behind the weights; and ``count`` (samples) with the values that are finite.

        Raises:
            StorageError: the log is damaged.

        """
        return await self._workers.train(self._name, lambda: (self.trainer.steps, self._evaluate()))

    def _evaluate(self) -> dict[str, float]:
        log = self._log()
        entries = [entry for entry in log.entries if entry.heldout]
        values = self.trainer.evaluate(log.read(entry) for entry in entries)
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        return finite | {"count": float(sum(entry.samples for entry in entries))}

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights as a safetensors file."""
        return await self._workers.train(self._name, lambda: (self.trainer.steps, self.trainer.weights()))

    async def checkpoint(self) -> None:
        """Write a checkpoint of the state after the last whole step.

        Raises:
            StorageError: the disk is full or broken; older checkpoints are untouched.

        """

        def work() -> tuple[int, bytes]:
            return self.trainer.steps, self.trainer.save(dataclasses.asdict(self.progress))

        start = time.monotonic()
        steps, data = await self._workers.train(self._name, work)
        try:
            await self._workers.write(self._store.save_checkpoint, steps, data)
        except StorageError:
            self._meter.checkpoint_failed()
            raise
        self._saved = time.monotonic()
        self._meter.checkpoint(len(data), self._saved - start)

    async def _step(self, parts: Sequence[Batch], applied: int, epoch: int, index: int, queue: int) -> None:
        def work() -> tuple[float | None, int, int]:
            start = time.monotonic_ns()
            loss = self.trainer.step(*parts)
            self.progress = self.progress.after(applied, epoch, index, loss)
            return loss, start // 1000, (time.monotonic_ns() - start) // 1000

        await self.turn()
        loss, start, duration = await self._workers.train(self._name, work)
        self._busy += duration / 1e6
        self._meter.applied(duration / 1e6)
        self.add_span((SPAN_TRAIN, applied, start, duration))
        if loss is not None:
            self._losses.append(loss)
        elif self.trainer.skipped >= MAX_SKIPPED:
            raise ConfigError("loss", f"not finite {MAX_SKIPPED} times in a row", "a smaller optimizer.lr")
        else:
            logger.warning("! session %s: the loss of a batch is not finite; skipped", self._name)
        await self._report(queue)
        if time.monotonic() - self._saved > CHECKPOINT_INTERVAL:
            await self.checkpoint()

    async def _report(self, queue: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._reported < METRICS_INTERVAL:
            return
        self._reported = now
        losses, self._losses = self._losses, []
        spans, self._spans = self._spans, []
        metrics = Metrics(
            step=self.trainer.steps,
            epoch=self.progress.epoch,
            loss=sum(losses) / len(losses) if losses else None,
            lr=self.trainer.lr,
            queue=queue,
            busy=self._busy,
            spans=tuple(spans),
        )
        self.report(metrics)
        if self._meter.curves is not None:
            await self._workers.write(self._meter.curves.add, self._name, metrics)


def restore(store: SessionStore, trainer: Trainer) -> Progress | None:
    """Bring a new trainer to its session's newest checkpoint.

    Returns:
        the progress that belongs to it; None when there never was a checkpoint.

    Raises:
        StorageError: all checkpoints are damaged.

    """
    checkpoint = store.load_checkpoint()
    return None if checkpoint is None else Progress(**trainer.load(checkpoint))
