"""A session on the server: batches in, onto the disk, into training; it outlives its connections.

Two tasks belong to a session. One writes batches to the activation log, as many as have come at once
(group commit); the other trains, one batch at a time, and goes on with the log when the device has sent
its last batch. Both run torch and file I/O in the worker threads of the server.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError, ErrorCode, MobiLLMError, StorageError
from ..protocol import Finished, Metrics
from .batch import Batch
from .equalizers import Equalizers
from .log import ActivationLog, Entry
from .observer import Observer
from .progress import Progress
from .replay import Replay
from .store import SessionStore
from .trainer import Trainer
from .workers import Workers

__all__ = ["Session", "Span"]

logger = logging.getLogger("mobillm.server")

# Batches in a row with a loss that is not finite, after which going on makes no sense.
MAX_SKIPPED = 10
METRICS_INTERVAL = 0.1  # seconds
CHECKPOINT_INTERVAL = 60.0  # seconds; at most this much training is repeated after a crash

SPAN_RECEIVE, SPAN_TRAIN, SPAN_LOG = 0, 1, 2
Span = tuple[int, int, int, int]  # kind, batch number, start and duration in microseconds


class Session:
    """One fine-tuning job.

    Args:
        store: its files and its record.
        workers: the server's threads.
        device: torch device to train on.

    Attributes:
        record: what the registry knows of it.
        received, durable, applied: batch numbers, see ``docs/protocol.md``.
        held: packed bytes of batches that came and whose memory is not free again.
        last: number of the last batch, once the device has said so.
        equalizers: those of the batches up to ``received``.
        finished: set when all epochs have been trained.
        failed: whether writing or training has ended with an error.
        observer: whom to tell; replaced at each attachment.
        on_finished: called when training is over, whether or not a device is attached.
        workers: the server's threads.
        attaching: held while a device is being attached.

    """

    def __init__(self, store: SessionStore, workers: Workers, device: str) -> None:
        self.store = store
        self.record = store.record()
        self.id = self.record.id
        self.tenant = self.record.tenant
        self.spec = self.record.spec
        self.finished = self.record.finished
        self.observer = Observer()
        self.on_finished: Callable[[], None] = lambda: None
        self.equalizers = Equalizers()
        self._log: ActivationLog | None = None
        self._closed_size = store.log_size()  # while the log is not open
        self.held = 0
        last = self.record.last
        if self.ended:
            # The result needs no log; it is opened when somebody asks for more.
            self.last = last
            self.received = self.durable = self.applied = last or 0
        else:
            self.received = self.durable = self.log.last
            self.applied = 0
            # A crash may have come between FINISH and the disk; then the device sends the rest again.
            self.last = last if last is None or last <= self.received else None
        self.trainer: Trainer | None = None
        self.workers = workers
        self._device = device
        self._pending: collections.deque[Batch] = collections.deque()  # arrived, not yet durable
        # Durable, not yet trained on; an entry is what has to be read from the log first.
        self._queue: collections.deque[Batch | Entry] = collections.deque()
        self._wake = asyncio.Condition()
        self._starting = asyncio.Lock()
        self.attaching = asyncio.Lock()
        self.failed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._progress = Progress()
        self._losses: list[float] = []
        self._busy = 0.0
        self._spans: list[Span] = []
        self._reported = 0.0
        self._saved = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether nothing of it changes any more: it is finished, or the operator has cancelled it."""
        return self.finished is not None or self.record.cancelled

    @property
    def log(self) -> ActivationLog:
        """The activation log, opened on first use.

        Raises:
            StorageError: it is damaged before its last record.

        """
        if self._log is None:
            self._log = self.store.open_log()
            self.equalizers.load(self._log)
        return self._log

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            self._closed_size = log.size
            log.close()

    async def start(self, head: bytes | None) -> None:
        """Build or restore the trainer, and begin to write and to train.

        Args:
            head: the blob of the frozen LM head; None for tasks without one.

        Raises:
            ModelError: the head does not fit the spec.
            StorageError: all checkpoints are damaged.

        """
        async with self._starting:
            if self.trainer is not None:
                return
            if self.record.cancelled:
                raise ConfigError("session", "cancelled", "one that the server's owner has not cancelled")
            self.trainer = await self.workers.train(self._restore, head)
            # What the log holds beyond the checkpoint is trained on again, in the same order.
            if self.finished is None:
                self._queue.extend(entry for entry in self.log.entries if entry.seq > self.applied)
            self._saved = time.monotonic()
            loop = asyncio.get_running_loop()
            for work in (self._write, self._train):
                self._tasks.append(loop.create_task(self._guard(work)))

    async def recover(self) -> None:
        """Go back to what the disk holds if writing or training has failed; :meth:`start` comes next."""
        async with self._starting:
            if not self.failed:
                return
            await self._cancel()
            self.failed = False
            self.trainer = None
            self._pending.clear()
            self._queue.clear()
            self.held = 0
            self.received = self.durable = self.log.last
            self.equalizers.load(self.log)
            self.applied = 0
            self._progress = Progress()
            if self.last is not None and self.last > self.received:
                self.last = None

    def _restore(self, head: bytes | None) -> Trainer:
        trainer = Trainer(self.spec, head, self._device, self.equalizers)
        checkpoint = self.store.load_checkpoint()
        if checkpoint is None:
            self.finished = None  # a result without weights is none: it is trained again from the log
            self.received = self.durable = self.log.last
            self.applied = 0
            if self.last is not None and self.last > self.received:
                self.last = None
        else:
            self._progress = Progress(**trainer.load(checkpoint))
            self.applied = self._progress.applied
        if self.finished is None and self.applied > self.log.last:
            raise StorageError(
                f"{self.log.path} ends at batch {self.log.last}, but batch {self.applied} was trained on: "
                "it is damaged; restore it from a backup or delete the session"
            )
        return trainer

    async def _guard(self, work: Callable[[], Any]) -> None:
        """Run a task's root; whatever ends it is told to the device."""
        try:
            await work()
        except StorageError as exc:
            logger.error("! session %s: %s", self.id.hex(), exc)
            self._fail(ErrorCode.STORAGE_FULL, "the server cannot store or read this session's data")
        except MobiLLMError as exc:
            logger.error("! session %s: %s", self.id.hex(), exc)
            skipped = self.trainer is not None and self.trainer.skipped >= MAX_SKIPPED
            self._fail(ErrorCode.NON_FINITE if skipped else ErrorCode.SCHEMA_MISMATCH, str(exc))
        except Exception:
            logger.exception("! session %s failed", self.id.hex())
            self._fail(ErrorCode.INTERNAL, "the server failed; its log says why")

    def _fail(self, code: ErrorCode, text: str) -> None:
        self.failed = True
        self.observer.fail(code, text)

    # The device's side calls these.

    async def put(self, batch: Batch) -> None:
        """Take a whole, checked batch in; its number must be the next one."""
        # Before the first wait, so that nothing can come between the number's check and its use.
        self.received = batch.seq
        self.equalizers.add(batch)
        self.held += batch.size
        self._pending.append(batch)
        async with self._wake:
            self._wake.notify_all()

    async def begin_epoch(self) -> int:
        """Return the number of a new attachment; it is on the disk, so no later one has it again.

        Raises:
            StorageError: the disk is full or broken.

        """
        epoch = self.record.epoch + 1
        await self._save(epoch=epoch)
        return epoch

    def is_other(self, seq: int, checksum: int) -> bool:
        """Tell whether a batch that is durable already had other bytes than these."""
        return seq <= self.durable and self.log.entries[seq - 1].checksum != checksum

    async def finish(self, last: int) -> None:
        """Note that batch ``last`` was the last one.

        Raises:
            ConfigError: it is not the last one that has come, or another one was named before.

        """
        if last != self.received or self.last not in (None, last):
            raise ConfigError("FINISH.seq", last, f"the last batch, {self.last or self.received}")
        self.last = last
        async with self._wake:
            self._wake.notify_all()
        await self._save()

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        """Evaluate on the held-out batches that are durable.

        Returns:
            the steps behind the weights; and ``count`` (samples) with the values that are finite.

        """
        trainer = self._trainer()
        entries = [entry for entry in self.log.entries if entry.heldout]

        def work() -> tuple[int, dict[str, float]]:
            return trainer.steps, trainer.evaluate(self.log.read(entry) for entry in entries)

        steps, values = await self.workers.train(work)
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        return steps, finite | {"count": float(sum(entry.samples for entry in entries))}

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights as a safetensors file."""
        trainer = self._trainer()
        return await self.workers.train(lambda: (trainer.steps, trainer.weights()))

    @property
    def steps(self) -> int | None:
        """Optimizer steps taken; None while neither the trainer is loaded nor the session finished."""
        if self.trainer is not None:
            return self.trainer.steps
        return None if self.finished is None else self.finished.steps

    @property
    def training_epoch(self) -> int | None:
        """Epoch of the last step, from 1; None as for :attr:`steps`."""
        if self.trainer is not None:
            return self._progress.epoch
        return None if self.finished is None else self.spec.epochs

    @property
    def loss(self) -> float | None:
        """Mean loss of the present epoch, or of the last one; None before its first step."""
        if self.trainer is None or self.finished is not None:
            return None if self.finished is None else self.finished.loss
        return self._progress.mean

    @property
    def waiting(self) -> int:
        """Batches that have arrived and have not been trained on."""
        return len(self._pending) + len(self._queue)

    @property
    def stored(self) -> int:
        """Bytes of the log, with those of batches that are about to be written."""
        size = self._closed_size if self._log is None else self._log.size
        return size + sum(batch.size for batch in self._pending)

    def add_span(self, span: Span) -> None:
        """Keep a timing for the next METRICS, if the spec asks for timings."""
        if self.spec.trace and len(self._spans) < 64:
            self._spans.append(span)

    async def checkpoint(self) -> None:
        """Write a checkpoint of the state after the last whole step.

        Raises:
            StorageError: the disk is full or broken; older checkpoints are untouched.

        """
        if self.trainer is None:
            return
        trainer = self.trainer

        def work() -> tuple[int, bytes]:
            return trainer.steps, trainer.save(dataclasses.asdict(self._progress))

        steps, data = await self.workers.train(work)
        await self.workers.write(self.store.save_checkpoint, steps, data)
        self._saved = time.monotonic()

    async def close(self) -> None:
        """End the tasks after their current piece of work, write a checkpoint, close the log.

        Can be called more than once.
        """
        async with self._starting:
            running = await self._cancel()
            try:
                if running and not self.failed:
                    await self.checkpoint()
            finally:
                self._close_log()

    async def cancel(self) -> None:
        """End the session for good; its log and its checkpoints stay until it is deleted.

        Raises:
            StorageError: the disk is full or broken; the session has stopped, and a restart goes on with it.

        """
        if not self.ended:
            await self._save(cancelled=True, ended=time.time())
        self.observer.fail(ErrorCode.SESSION_UNKNOWN, "the server's owner has cancelled the session")
        await self.close()
        await self.park()

    async def park(self) -> None:
        """Free the memory and the files of a session that has ended; :meth:`start` brings it back."""
        async with self._starting:
            if not self.ended or self.trainer is None:
                return
            await self._cancel()
            self.trainer = None
            self._close_log()

    async def _cancel(self) -> bool:
        """End the tasks after their current piece of work; tell whether there were any."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return bool(tasks)

    # The tasks.

    async def _write(self) -> None:
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: bool(self._pending))
                batches = list(self._pending)
            start = time.monotonic_ns() // 1000
            await self.workers.write(self.log.append, batches)
            self.add_span((SPAN_LOG, batches[-1].seq, start, time.monotonic_ns() // 1000 - start))
            async with self._wake:
                for batch in batches:
                    self._pending.popleft()
                    self._queue.append(batch)
                self.durable = batches[-1].seq
                self._wake.notify_all()
            self.observer.acknowledge()

    async def _train(self) -> None:
        while self.last is None or self.applied < self.last:
            async with self._wake:
                await self._wake.wait_for(lambda: bool(self._queue) or self.applied == self.last)
            if self._queue:
                item = self._queue[0]
                batch = await self.workers.write(self.log.read, item) if isinstance(item, Entry) else item
                await self._apply(batch)
                self._queue.popleft()
                if batch is item:
                    self.held -= batch.size
                self.observer.acknowledge()
        if self.finished is None:
            await self._replay()
            finished = await self._complete()
            self.observer.finish(finished)  # whoever is attached now, not when this began
            self.on_finished()

    async def _apply(self, batch: Batch) -> None:
        if batch.heldout:
            self._progress = self._progress.after(batch.seq, 1, 0, None)
        else:
            await self._step([batch], batch.seq, 1, 0)
        self.applied = batch.seq

    async def _step(self, parts: Sequence[Batch], applied: int, epoch: int, index: int) -> None:
        trainer = self._trainer()

        def work() -> tuple[float | None, int, int]:
            start = time.monotonic_ns()
            loss = trainer.step(*parts)
            # Weights and progress change together, in one thread: a checkpoint sees both or neither.
            self._progress = self._progress.after(applied, epoch, index, loss)
            return loss, start // 1000, (time.monotonic_ns() - start) // 1000

        loss, start, duration = await self.workers.train(work)
        self._busy += duration / 1e6
        self.add_span((SPAN_TRAIN, applied, start, duration))
        if loss is not None:
            self._losses.append(loss)
        elif trainer.skipped >= MAX_SKIPPED:
            raise ConfigError("loss", f"not finite {MAX_SKIPPED} times in a row", "a smaller optimizer.lr")
        else:
            logger.warning("! session %s: the loss of a batch is not finite; skipped", self.id.hex())
        self._report()
        if time.monotonic() - self._saved > CHECKPOINT_INTERVAL:
            await self.checkpoint()

    async def _replay(self) -> None:
        replay = Replay(self.spec, self.log)
        index = self._progress.index  # 0 unless a later epoch was under way
        for epoch in range(max(2, self._progress.epoch), self.spec.epochs + 1):
            for number in range(index, len(replay)):
                parts = await self.workers.write(replay.batch, epoch, number)
                await self._step(parts, self.applied, epoch, number + 1)
            index = 0

    async def _complete(self) -> Finished:
        trainer = self._trainer()
        self._report(last=True)
        await self.checkpoint()
        self.finished = Finished(steps=trainer.steps, loss=self._progress.mean)
        await self._save(ended=time.time())
        return self.finished

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise ConfigError("session", "not started", "its blobs first")
        return self.trainer

    def _report(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._reported < METRICS_INTERVAL:
            return
        self._reported = now
        trainer = self._trainer()
        losses, self._losses = self._losses, []
        spans, self._spans = self._spans, []
        self.observer.report(
            Metrics(
                step=trainer.steps,
                epoch=self._progress.epoch,
                loss=sum(losses) / len(losses) if losses else None,
                lr=trainer.lr,
                queue=self.waiting,
                busy=self._busy,
                spans=tuple(spans),
            )
        )

    async def _save(self, **changes: Any) -> None:
        # Before the first wait: whoever saves later has these changes, too.
        self.record = dataclasses.replace(self.record, last=self.last, finished=self.finished, **changes)
        await self.workers.write(self.store.save, self.record)
