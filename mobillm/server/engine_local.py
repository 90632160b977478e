"""The engine of a server on one machine: all sessions share the server's training thread."""

from __future__ import annotations

import asyncio
import functools
import operator
import time
from collections.abc import Hashable, Sequence
from typing import Self

from .batch import Batch
from .engine import Job, Saved, Status, Step
from .learner import Learner, Piece
from .reader import Entry
from .replay import Replay
from .together import fits, shape_of
from .trainer import Trainer, warm_up
from .turns import Joint
from .workers import Workers

__all__ = ["LocalEngine"]


class LocalEngine:
    """Trains in the server's training thread, in fair turns.

    Args:
        workers: the server's threads; whoever made them ends them.
        device: torch device to train on.

    """

    def __init__(self, workers: Workers, device: str = "cpu") -> None:
        self._workers = workers
        self._device = device
        self._warming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Have the training thread get ready; what sessions ask of it meanwhile waits for that."""
        self._warming = asyncio.create_task(self._workers.train("", warm_up))

    async def begin(self, job: Job) -> _LocalWorker:
        """Return a worker that is where the session's newest checkpoint left it, or new.

        Raises:
            ModelError: a blob does not fit the spec.
            StorageError: all checkpoints are damaged, or a blob is.

        """
        blobs = await self._workers.write(job.blobs.read_all, job.spec)

        def work() -> Learner:
            trainer = Trainer(job.spec, blobs, self._device, job.equalizers)
            return Learner(trainer, job.checkpoints)

        return _LocalWorker(await self._workers.train(job.tenant, work), job, self._workers)

    async def close(self) -> None:
        """Wait until the training thread has got ready, or had no time to begin with it."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)


class _JointStep(Joint[Step]):
    """A step that can be taken together with those of other sessions."""

    def __init__(self, kind: Hashable, learner: Learner, piece: Piece) -> None:
        super().__init__(kind, piece.grid.tokens)
        self._learner = learner
        self._piece = piece

    def fits(self, others: Sequence[Self]) -> bool:
        grids = (other._piece.grid for other in others)
        return fits(self._learner.trainer.spec, functools.reduce(operator.or_, grids, self._piece.grid))

    def run(self, others: Sequence[Self]) -> Sequence[Step | Exception]:
        if not others:
            return [self._learner.step(self._piece)]
        all_of_them = (self, *others)
        return Learner.step_together([j._learner for j in all_of_them], [j._piece for j in all_of_them])


class _LocalWorker:
    """One session's share of the threads; see :class:`mobillm.server.engine.Worker`."""

    def __init__(self, learner: Learner, job: Job, workers: Workers) -> None:
        self.learner = learner
        self._job = job
        self._workers = workers
        self._replay: Replay | None = None
        # Work of other sessions of the same shape can be done with its own.
        self._shape = shape_of(job.spec, learner.trainer.device.type) if workers.group > 1 else None

    @property
    def status(self) -> Status:
        return self.learner.status

    @property
    def restored(self) -> bool:
        return self.learner.restored

    async def train(self, item: Batch | Entry) -> Step | None:
        if item.heldout:
            self.learner.hold_out(item.seq)
            return None
        batch = item
        if isinstance(batch, Entry):
            batch = await self._workers.write(self._job.log().read, batch)
        return await self._step(Piece([batch], batch.seq, 1, 0))

    async def train_again(self, epoch: int, index: int) -> Step:
        if self._replay is None:
            self._replay = Replay(self._job.spec, self._job.log())
        parts = await self._workers.write(self._replay.batch, epoch, index)
        return await self._step(Piece(parts, self.learner.progress.applied, epoch, index + 1))

    async def _step(self, piece: Piece) -> Step:
        if self._shape is None or not fits(self._job.spec, piece.grid):
            return await self._workers.train(self._job.name, functools.partial(self.learner.step, piece))
        return await self._workers.train(self._job.name, _JointStep(self._shape, self.learner, piece))

    async def judge(self) -> dict[str, float]:
        return await self._workers.train(self._job.name, lambda: self.learner.judge(self._job.log()))

    async def settle(self) -> tuple[dict[str, float], Saved]:
        values = await self._workers.train(self._job.name, lambda: self.learner.settle(self._job.log()))
        return values, await self.save()

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        def work() -> tuple[int, dict[str, float]]:
            return self.learner.trainer.steps, self.learner.evaluate(self._job.log())

        return await self._workers.train(self._job.name, work)

    async def weights(self) -> tuple[int, bytes]:
        trainer = self.learner.trainer
        return await self._workers.train(self._job.name, lambda: (trainer.steps, trainer.weights()))

    async def save(self) -> Saved:
        def work() -> tuple[int, bytes]:
            return self.learner.trainer.steps, self.learner.save()

        start = time.monotonic()
        steps, data = await self._workers.train(self._job.name, work)
        await self._workers.write(self._job.checkpoints.save, steps, data)
        return Saved(len(data), time.monotonic() - start)

    async def close(self) -> None:
        pass  # the network goes with the last reference to it
