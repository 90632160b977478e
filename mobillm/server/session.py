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
import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, DamageError, EngineError, ErrorCode, MobiLLMError, ModelError, StorageError
from ..protocol import Finished
from .batch import Batch
from .blobs import BlobReader
from .engine import Engine, Job, Worker
from .equalizers import Equalizers
from .log import ActivationLog
from .meter import Meter
from .observer import Observer
from .pace import Pace
from .reader import Entry
from .refusal import CANCELLED, failure
from .store import SessionStore
from .training import MAX_SKIPPED, SPAN_LOG, Span, Training
from .workers import Workers

__all__ = ["Session"]

logger = logging.getLogger("mobillm.server")


class Session:
    """One fine-tuning job.

    Args:
        store: its files and its record.
        workers: the server's threads.
        engine: trains it.
        meter: counts what happens.
        pace: how many steps its tenant may take.

    Attributes:
        record: what the registry knows of it.
        received, durable, applied: batch numbers, see ``docs/protocol.md``.
        held: packed bytes of batches that came and whose memory is not free again.
        last: number of the last batch, once the device has said so.
        equalizers: those of the batches up to ``received``.
        finished: set when all epochs have been trained.
        failure: why it cannot go on as it is, for the operator; None while it can.
        observer: whom to tell; replaced at each attachment.
        on_finished: called when training is over, whether or not a device is attached.
        on_stalled: called when the engine has nowhere to go on training.
        workers: the server's threads.
        attaching: held while a device is being attached.

    """

    def __init__(
        self,
        store: SessionStore,
        workers: Workers,
        engine: Engine,
        meter: Meter | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.store = store
        self.record = store.record()
        self.id = self.record.id
        self.tenant = self.record.tenant
        self.spec = self.record.spec
        self.finished = self.record.finished
        self.observer = Observer()
        self.on_finished: Callable[[], None] = lambda: None
        self.on_stalled: Callable[[], None] = lambda: None
        self.equalizers = Equalizers()
        self._log: ActivationLog | None = None
        self._closed_size = store.log_size()  # while the log is not open
        self.held = 0
        self.last = self.record.last
        self.received = self.durable = self.applied = 0
        self.failure: str | None = None
        self.training: Training | None = None
        self.workers = workers
        self._meter = meter or Meter()
        self._pace = pace or Pace(0)
        self._engine = engine
        self._pending: collections.deque[Batch] = collections.deque()  # arrived, not yet durable
        # Durable, not yet trained on; an entry is what has to be read from the log first.
        self._queue: collections.deque[Batch | Entry] = collections.deque()
        self._wake = asyncio.Condition()
        self._starting = asyncio.Lock()
        self.attaching = asyncio.Lock()
        self._beginning: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        try:
            self._reset()
        except StorageError as exc:
            self.failure = str(exc)

    def _reset(self) -> None:
        """Be where the disk is, whose files may have been mended since."""
        self._close_log()
        last = self.record.last
        if self.ended:
            # The result needs no log; it is opened when somebody asks for more.
            self.last = last
            self.received = self.durable = self.applied = last or 0
            return
        self.received = self.durable = self.log.last
        self.applied = 0
        # A crash may have come between FINISH and the disk; then the device sends the rest again.
        self.last = last if last is None or last <= self.received else None

    @property
    def failed(self) -> bool:
        """Whether it cannot go on as it is; the next attachment tries again."""
        return self.failure is not None

    @property
    def ended(self) -> bool:
        """Whether nothing of it changes any more: it is finished, or the operator has cancelled it."""
        return self.finished is not None or self.record.cancelled

    @property
    def log(self) -> ActivationLog:
        """The activation log, opened on first use.

        Raises:
            StorageError: as from :meth:`SessionStore.open_log`.

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

    async def start(self, blobs: BlobReader) -> None:
        """Build or restore the trainer, and begin to write and to train.

        Args:
            blobs: where the frozen weights are that the spec names.

        Raises:
            ModelError: a blob does not fit the spec.
            StorageError: all checkpoints are damaged, or a blob is.
            EngineError: there is nowhere to train now.

        """
        async with self._starting:
            if self.training is not None:
                return
            if self.record.cancelled:
                raise ConfigError("session", "cancelled", "one that the server's owner has not cancelled")
            self.training = await self._begin(blobs)
            self.failure = None
            # What the log holds beyond the checkpoint is trained on again, in the same order.
            if self.finished is None:
                self._queue.extend(entry for entry in self.log.entries if entry.seq > self.applied)
            self._work()

    def _work(self) -> None:
        self._tasks = [asyncio.create_task(self._guard(work)) for work in (self._write, self._train)]

    def begin(self, blobs: BlobReader) -> asyncio.Task[None]:
        """Begin :meth:`start` in a task of the session's own, or return the one that is under way."""
        if self._beginning is None or self._beginning.done():
            self._beginning = asyncio.get_running_loop().create_task(self._start(blobs))
            # Whoever waits for it may be gone by then.
            self._beginning.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._beginning

    async def _start(self, blobs: BlobReader) -> None:
        try:
            await self.start(blobs)
        except EngineError as exc:
            logger.warning("! session %s: %s", self.id.hex(), exc)
            self.on_stalled()
            raise
        except (ModelError, StorageError) as exc:
            self.failure = str(exc)
            raise
        finally:
            self._beginning = None  # it would keep an error, and the frozen weights that this was raised over

    async def recover(self) -> None:
        """Go back to what the disk holds if the session has failed; :meth:`start` comes next.

        Raises:
            StorageError: its files are still damaged.

        """
        async with self._starting:
            if not self.failed:
                return
            await self._cancel()
            await self._drop()
            self._forget()
            try:
                await self.workers.write(self._reset)
            except StorageError as exc:
                self.failure = str(exc)
                raise

    async def _begin(self, blobs: BlobReader) -> Training:
        name, store = self.id.hex(), self.store
        files = store.checkpoints, store.log_path, lambda: self.log
        job = Job(name, self.spec, blobs, *files, self.equalizers, self.tenant)
        worker = await self._engine.begin(job)
        try:
            await self.workers.write(self._take_up, worker)  # it may have to open the log
        except BaseException:
            await worker.close()
            raise
        training = Training(worker, self.spec, lambda: self.log, self.workers, self._meter, name)
        training.report = lambda metrics: self.observer.report(metrics)  # whoever it is then
        training.turn = lambda: self._pace.turn(self.tenant)
        return training

    def _take_up(self, worker: Worker) -> None:
        """Go on where a worker's checkpoint is, or from the start of the log if there was none."""
        if not worker.restored:
            if self.record.delivered is not None:
                raise DamageError(
                    f"{self.store.directory} has lost its checkpoints, and the log was deleted; restore one "
                    "from a backup or delete the session"
                )
            # Not in other sessions: batches may have come meanwhile, from a device that had credit before.
            if self.finished is not None:
                self.finished = None  # a result without weights is none: it is trained again from the log
                self._reset()
        self.applied = worker.status.progress.applied
        if self.finished is None:
            self.log  # noqa: B018 - opened in this thread

    async def _guard(self, work: Callable[[], Any]) -> None:
        """Run a task's root; whatever ends it is told to the device."""
        try:
            await work()
        except Exception as exc:
            skipped = self.training is not None and self.training.status.skipped >= MAX_SKIPPED
            code, text, again = failure(exc, self.id, skipped=skipped)
            self._say(exc)
            self.failure = str(exc) or type(exc).__name__
            self.observer.fail(code, text, again=again)
            if isinstance(exc, EngineError):
                self.on_stalled()

    def _say(self, exc: Exception) -> None:
        level = logging.WARNING if isinstance(exc, EngineError) else logging.ERROR
        known = isinstance(exc, MobiLLMError)
        logger.log(level, "! session %s: %s", self.id.hex(), exc, exc_info=None if known else exc)

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
        if seq > self.durable or self.record.delivered is not None:
            return False
        return self.log.entries[seq - 1].sent != checksum

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
        if self.finished is not None and self.record.evaluation is not None:
            return self.finished.steps, dict(self.record.evaluation)
        return await self._loaded().evaluate()

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights as a safetensors file."""
        return await self._loaded().weights()

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
        if self.training is not None:
            self.training.add_span(span)

    async def close(self) -> None:
        """End the tasks after their current piece of work, write a checkpoint, close the log.

        Can be called more than once.
        """
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        async with self._starting:
            running = await self._cancel()
            try:
                if running and not self.failed:
                    await self._loaded().checkpoint()
            finally:
                if self.training is not None:
                    await self.training.close()
                self._close_log()

    async def cancel(self) -> None:
        """End the session for good; its log and its checkpoints stay until it is deleted.

        Raises:
            StorageError: the disk is full or broken; the session has stopped, and a restart goes on with it.

        """
        if not self.ended:
            await self._save(cancelled=True, ended=time.time())
        self.observer.fail(ErrorCode.SESSION_UNKNOWN, CANCELLED)
        await self.close()
        await self.park()
        self._forget()

    async def release(self) -> None:
        """Delete the log of a finished session, parked before: the device has the result.

        Its weights and the figures of its held-out batches stay.

        Raises:
            StorageError: the disk is broken.

        """
        async with self._starting:
            if self.finished is None or self.training is not None or self.record.delivered is not None:
                return
            await self._save(delivered=time.time())
            self._close_log()
            await self.workers.write(self.store.delete_log)
            self._closed_size = 0

    async def park(self) -> bool:
        """Free memory and files of a session in which nothing goes on; tell whether that was so.

        :meth:`start` brings it back. Cancelled, it leaves the session as it was.
        """
        async with self._starting:
            waits = self.last is None and not self.waiting
            if not (waits or self.ended or self.failed):
                return False
            working = bool(self._tasks)
            try:
                await self._cancel()
                if working and waits and not self.ended and not self.failed:
                    await self._store()
            except asyncio.CancelledError:
                if working:
                    self._work()
                raise
            if self.failed:
                self._forget()
            await self._drop()
            await self.workers.write(self._close_log)
            return True

    async def _store(self) -> None:
        """Write a checkpoint, if that can be done: with an older one what came since is trained on again."""
        try:
            if await self._loaded().checkpoint():
                return
        except Exception as exc:
            self._say(exc)
        self.applied = 0

    def _forget(self) -> None:
        """Drop batches that have come and are not trained on; their memory is free."""
        self._pending.clear()
        self._queue.clear()
        self.held = 0
        self.observer.acknowledge()

    async def _drop(self) -> None:
        training, self.training = self.training, None
        if training is not None:
            await training.close()

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
            duration = time.monotonic_ns() // 1000 - start
            self.add_span((SPAN_LOG, batches[-1].seq, start, duration))
            self._meter.durable(len(batches), duration / 1e6)
            async with self._wake:
                for batch in batches:
                    self._pending.popleft()
                    self._queue.append(batch)
                self.durable = batches[-1].seq
                self._wake.notify_all()
            self.observer.acknowledge()

    async def _train(self) -> None:
        training = self._loaded()
        while self.last is None or self.applied < self.last:
            async with self._wake:
                await self._wake.wait_for(lambda: bool(self._queue) or self.applied == self.last)
            if self._queue:
                item = self._queue[0]
                await training.first_epoch(item, self.waiting)
                self.applied = item.seq
                self._queue.popleft()
                if isinstance(item, Batch):
                    self.held -= item.size
                else:
                    self._meter.replayed()
                self.observer.acknowledge()
        if self.finished is None:
            await training.later_epochs()
            evaluation = await training.complete()
            self.finished = Finished(steps=training.status.steps, loss=training.status.progress.mean)
            await self._save(ended=time.time(), evaluation=evaluation)
            logger.info("= session %s finished after %d steps", self.id.hex(), self.finished.steps)
            self.observer.finish(self.finished)  # whoever is attached now, not when this began
            self.on_finished()

    def _loaded(self) -> Training:
        if self.training is None:
            raise ConfigError("session", "not started", "its blobs first")
        return self.training

    async def _save(self, **changes: Any) -> None:
        # Before the first wait: whoever saves later has these changes, too.
        self.record = dataclasses.replace(self.record, last=self.last, finished=self.finished, **changes)
        await self.workers.write(self.store.save, self.record)
