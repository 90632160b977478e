"""The training of a session: first epoch as batches come, later ones from the log; checkpoints, figures.

What computes is the session's worker (:mod:`mobillm.server.engine`); here it is told what comes next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from ..errors import ConfigError, StorageError
from ..protocol import Metrics
from ..spec import SessionSpec
from .batch import Batch
from .engine import Saved, Status, Step, Worker
from .log import ActivationLog
from .meter import Meter
from .reader import Entry
from .schedule import Schedule
from .workers import Workers

__all__ = ["MAX_SKIPPED", "SPAN_LOG", "SPAN_RECEIVE", "SPAN_TRAIN", "Span", "Training"]

logger = logging.getLogger("mobillm.server")

# Batches in a row with a loss that is not finite, after which going on makes no sense.
MAX_SKIPPED = 10
METRICS_INTERVAL = 0.1  # seconds
# A checkpoint is due after so many seconds or steps: no more training than that is repeated after a crash.
CHECKPOINT_INTERVAL = 60.0
CHECKPOINT_STEPS = 1000
MAX_SPANS = 64

SPAN_RECEIVE, SPAN_TRAIN, SPAN_LOG = 0, 1, 2
Span = tuple[int, int, int, int]  # kind, batch number, start and duration in microseconds


async def _at_once() -> None:
    """Wait for nothing."""


class Training:
    """A session's worker and what it is to do.

    Args:
        worker: trains the session.
        spec: the session.
        log: the session's log, opened when it is needed.
        workers: the server's threads.
        meter: counts steps and checkpoints.
        name: the session's name, for the log.

    Attributes:
        report: called with METRICS, not more often than ten times a second.
        turn: awaited before each step.

    """

    def __init__(
        self,
        worker: Worker,
        spec: SessionSpec,
        log: Callable[[], ActivationLog],
        workers: Workers,
        meter: Meter,
        name: str,
    ) -> None:
        self.report: Callable[[Metrics], None] = lambda metrics: None
        self.turn: Callable[[], Awaitable[None]] = _at_once
        self._worker = worker
        self._spec = spec
        self._log = log
        self._workers = workers
        self._meter = meter
        self._name = name
        self._losses: list[float] = []
        self._busy = 0.0
        self._spans: list[Span] = []
        self._reported = 0.0
        self._saved = time.monotonic()
        self._saved_steps = worker.status.steps

    @property
    def status(self) -> Status:
        """How far the worker has come."""
        return self._worker.status

    def add_span(self, span: Span) -> None:
        """Keep a timing for the next METRICS, if the spec asks for timings."""
        if self._spec.trace and len(self._spans) < MAX_SPANS:
            self._spans.append(span)

    async def first_epoch(self, item: Batch | Entry, queue: int) -> None:
        """Train on the next batch of the device, or keep it if it is held out.

        Args:
            item: the batch after ``progress.applied``, or where it is in the log.
            queue: batches that wait behind it, for METRICS.

        Raises:
            ConfigError: the loss was not finite too often.
            StorageError: a checkpoint that was due could not be written.
            EngineError: there is nowhere to train now.

        """
        if not item.heldout:
            await self.turn()
        step = await self._worker.train(item)
        if step is not None:
            await self._stepped(step, queue)

    async def later_epochs(self) -> None:
        """Train what is left of the epochs from the log, until early stopping ends it.

        Raises:
            ConfigError: the loss was not finite too often.
            StorageError: the log is damaged, or a checkpoint could not be written.
            EngineError: there is nowhere to train now.

        """
        schedule = Schedule(self._spec, self._log().entries)
        while (piece := schedule.after(self.status.progress)) is not None:
            if piece.index is None:
                await self._draw_heldout(await self._worker.judge())
            else:
                await self.turn()
                await self._stepped(await self._worker.train_again(piece.epoch, piece.index), 0)

    async def complete(self) -> dict[str, float]:
        """Settle for the final weights, and write a checkpoint of them.

        Returns:
            figures of the held-out batches, as from :meth:`evaluate`.

        Raises:
            StorageError: the disk is full or broken.
            EngineError: there is nowhere to train now.

        """
        await self._report(0, last=True)
        try:
            evaluation, saved = await self._worker.settle()
        except StorageError:
            self._meter.checkpoint_failed()
            raise
        self._note(saved)
        await self._draw_heldout(evaluation)
        await self._close_curves()
        return evaluation

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        """Evaluate on the held-out batches that are durable; see :meth:`Worker.evaluate`."""
        return await self._worker.evaluate()

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights as a safetensors file."""
        return await self._worker.weights()

    async def checkpoint(self) -> bool:
        """Write a checkpoint of the state after the last whole step.

        Returns:
            whether there was one to be written: a worker elsewhere may be lost.

        Raises:
            StorageError: the disk is full or broken; older checkpoints are untouched.

        """
        try:
            saved = await self._worker.save()
        except StorageError:
            self._meter.checkpoint_failed()
            raise
        if saved is not None:
            self._note(saved)
        return saved is not None

    async def close(self) -> None:
        """Free what the worker holds, and close the curves."""
        await self._worker.close()
        await self._close_curves()

    async def _close_curves(self) -> None:
        if self._meter.curves is not None:
            await self._workers.write(self._meter.curves.close, self._name)

    def _note(self, saved: Saved) -> None:
        self._saved, self._saved_steps = time.monotonic(), self.status.steps
        self._meter.checkpoint(saved.size, saved.seconds)

    async def _draw_heldout(self, values: dict[str, float]) -> None:
        if self._meter.curves is not None:
            curves, steps = self._meter.curves, self.status.steps
            await self._workers.write(curves.add_heldout, self._name, steps, values)

    async def _stepped(self, step: Step, queue: int) -> None:
        status = self.status
        self._busy += step.duration / 1e6
        self._meter.applied(step.duration / 1e6)
        self.add_span((SPAN_TRAIN, status.progress.applied, step.start, step.duration))
        if step.loss is not None:
            self._losses.append(step.loss)
        elif status.skipped >= MAX_SKIPPED:
            raise ConfigError("loss", f"not finite {MAX_SKIPPED} times in a row", "a smaller optimizer.lr")
        else:
            logger.warning("! session %s: the loss of a batch is not finite; skipped", self._name)
        await self._report(queue)
        if (
            time.monotonic() - self._saved > CHECKPOINT_INTERVAL
            or status.steps - self._saved_steps >= CHECKPOINT_STEPS
        ):
            await self.checkpoint()

    async def _report(self, queue: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._reported < METRICS_INTERVAL:
            return
        self._reported = now
        losses, self._losses = self._losses, []
        spans, self._spans = self._spans, []
        status = self.status
        metrics = Metrics(
            step=status.steps,
            epoch=status.progress.epoch,
            loss=sum(losses) / len(losses) if losses else None,
            lr=status.lr,
            queue=queue,
            busy=self._busy,
            spans=tuple(spans),
        )
        self.report(metrics)
        if self._meter.curves is not None:
            await self._workers.write(self._meter.curves.add, self._name, metrics)
