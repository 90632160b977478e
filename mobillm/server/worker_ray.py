"""A session's worker on a Ray cluster: whatever happens to its actor, the session sees one that goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError

from ..errors import EngineError, MobiLLMError, StorageError
from .batch import Batch
from .engine import Job, Saved, Status, Step
from .progress import Progress
from .reader import Entry
from .schedule import Schedule

if TYPE_CHECKING:
    from .engine_ray import RayEngine

__all__ = ["RayWorker"]

logger = logging.getLogger("mobillm.server")

PLACE = 60.0  # seconds until an actor has found a node and has loaded torch there
CALL = 600.0  # seconds of one piece of training; an actor that needs longer counts as lost
IDLE = 60.0  # seconds without work after which an actor gives its room to others, until it is needed again
ATTEMPTS = 3  # actors that may be lost one after another with the same piece of training


class _Lost(Exception):
    """The actor is gone."""


class _Late(_Lost):
    """It may be there, and does not answer."""


class RayWorker:
    """Trains one session in an actor; see :class:`mobillm.server.engine.Worker`.

    When its actor is lost, a new one begins with the newest checkpoint and is taken through the same pieces
    until it is where the old one was; then it does what the old one did not finish. A piece depends on the
    state before it alone, so that the weights are the same bit for bit.

    Args:
        engine: makes actors.
        job: what is trained.

    Attributes:
        status: how far it has come.
        restored: whether it began with a checkpoint.
        node: Ray's name of the node where its actor is, or was; None before the first one.
        pid: the process of its actor there.

    """

    def __init__(self, engine: RayEngine, job: Job) -> None:
        self.status = Status(0, 0, 0.0, Progress())
        self.restored = False
        self.node: str | None = None
        self.pid = 0
        self._engine = engine
        self._job = job
        self._actor: Any = None
        self._avoided: str | None = None  # the node where the last actor was lost
        self._known = 0  # entries of the log that the actor knows
        self._turn = asyncio.Lock()
        self._closed = False
        self._idle: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Have the first actor made; see :meth:`RayEngine.begin`."""
        async with self._turn:
            try:
                actor, self.restored, self.status = await self._place()
            except _Lost as exc:
                raise self._given_up(exc) from exc
            self._actor = actor
        self._rest()

    async def train(self, item: Batch | Entry) -> Step | None:
        """Train on the next batch of the first epoch, which is in the log already."""
        step: Step | None = await self._call("train", item.seq)
        return None if step is None else _here(step)

    async def train_again(self, epoch: int, index: int) -> Step:
        """Train on a batch of a later epoch."""
        return _here(await self._call("train_again", epoch, index))

    async def judge(self) -> dict[str, float]:
        """Judge an epoch that is over by the held-out batches."""
        values: dict[str, float] = await self._call("judge")
        return values

    async def settle(self) -> tuple[dict[str, float], Saved]:
        """Go back to the best weights, evaluate them, and write a checkpoint of them, all in one piece."""
        values, saved = await self._call("settle")
        return values, saved

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        """Evaluate on the held-out batches that are durable."""
        values = await self._call("evaluate")
        return self.status.steps, values

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights."""
        data = await self._call("weights", log=False)
        return self.status.steps, data

    async def save(self) -> Saved | None:
        """Write a checkpoint; None: the actor is lost, and with it what there was to save."""
        async with self._turn:
            if self._actor is None:
                return None
            try:
                saved, self.status = await self._do(self._actor, "save", log=False)
            except _Lost as exc:
                await self._lose(exc)
                return None
            found: Saved = saved
            return found

    async def close(self) -> None:
        """End the actor."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.gather(self._idle, return_exceptions=True)
        async with self._turn:
            actor, self._actor = self._actor, None
            if self._engine.workers.get(self._job.name) is self:
                del self._engine.workers[self._job.name]
            await self._end(actor)

    async def _call(self, method: str, *args: Any, log: bool = True) -> Any:
        """Have an actor do something, another one if need be; ``log`` tells it of new batches first."""
        async with self._turn:
            try:
                return await self._retried(method, *args, log=log)
            finally:
                self._rest()

    def _rest(self) -> None:
        """Begin to count the time without work."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if self._closed else asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        await asyncio.sleep(IDLE)
        async with self._turn:
            actor = self._actor
            if actor is None:
                return
            try:
                _, self.status = await self._do(actor, "save", log=False)
            except (_Lost, StorageError) as exc:
                logger.warning("! session %s cannot be saved: %s", self._job.name, exc)
            self._actor = None
            await self._end(actor)
            logger.info("= session %s: its worker had nothing to do, and has ended", self._job.name)

    # In the methods below, whoever calls has the turn.

    async def _retried(self, method: str, *args: Any, log: bool) -> Any:
        reason = _Lost("")
        for _ in range(ATTEMPTS):
            if self._closed:
                raise EngineError(f"the worker of session {self._job.name} has ended")
            try:
                if self._actor is None:
                    self._actor = await self._make_up()
                value, self.status = await self._do(self._actor, method, *args, log=log)
                return value
            except _Lost as exc:
                reason = exc
                await self._lose(exc)
        raise self._given_up(reason)

    async def _make_up(self) -> Any:
        """Have another actor made, and take it to where the lost one was; return it."""
        actor, _, status = await self._place()
        goal = self.status.progress
        try:
            while _place_of(status.progress) != _place_of(goal):
                status = await self._repeat(actor, status.progress, goal)
        except BaseException:
            await self._end(actor)
            raise
        return actor

    async def _repeat(self, actor: Any, now: Progress, goal: Progress) -> Status:
        """Have an actor do the piece that comes after ``now``; return where it is then."""
        if now.applied < goal.applied:
            _, status = await self._do(actor, "train", now.applied + 1)
            return status
        log = await self._engine.run(self._job.log)
        piece = Schedule(self._job.spec, log.entries).after(now)
        if piece is None:
            raise StorageError(
                f"{self._job.log_path} ends before what was trained on; restore it from a backup or delete "
                "the session"
            )
        if piece.index is None:
            _, status = await self._do(actor, "judge")
        else:
            _, status = await self._do(actor, "train_again", piece.epoch, piece.index)
        return status

    async def _place(self) -> tuple[Any, bool, Status]:
        """Have an actor made; return it, whether there was a checkpoint, and where that was."""
        away_from, self._known = self._avoided, 0
        actor = await self._engine.run(lambda: self._engine.make(self._job, away_from))
        try:
            try:
                asked = self._engine.ask(actor.ping.remote)
                self.node, self.pid = await self._outcome(asked, PLACE)
            except _Late as exc:
                raise EngineError(
                    f"no node of the Ray cluster had {self._engine.room} free within {PLACE:g} s"
                ) from exc
            restored, status = await self._do(actor, "restore", log=False)
        except BaseException:
            await self._end(actor)
            raise
        logger.info("= session %s: its worker is process %d of node %s", self._job.name, self.pid, self.node)
        return actor, restored, status

    async def _do(self, actor: Any, method: str, *args: Any, log: bool = True) -> tuple[Any, Status]:
        count = 0

        def call() -> Any:
            nonlocal count
            if not log:
                return getattr(actor, method).remote(*args)
            entries = self._job.log().entries  # may be opened here, so not in the event loop
            count = len(entries)
            return getattr(actor, method).remote(entries[self._known : count], *args)

        value, status = await self._outcome(self._engine.ask(call), CALL)
        self._known = max(self._known, count)
        return value, status

    async def _outcome(self, future: asyncio.Future[Any], seconds: float) -> Any:
        try:
            # When this is cancelled, the actor still finishes its piece before it does the next one.
            async with asyncio.timeout(seconds):
                return await asyncio.shield(future)
        except TimeoutError as exc:
            raise _Late(f"no answer in {seconds:g} s") from exc
        except RayTaskError as exc:
            if isinstance(exc.cause, MobiLLMError):
                raise exc.cause from exc
            raise
        except RayError as exc:
            raise _Lost(str(exc).partition("\n")[0]) from exc

    async def _lose(self, reason: _Lost) -> None:
        actor, self._actor = self._actor, None
        self._avoided = self.node
        logger.warning("! session %s has lost its worker: %s", self._job.name, reason)
        await self._end(actor)

    async def _end(self, actor: Any) -> None:
        if actor is not None:
            await self._engine.run(lambda: self._engine.end(actor))

    def _given_up(self, reason: _Lost) -> EngineError:
        return EngineError(f"the worker of session {self._job.name} was lost again and again: {reason}")


def _place_of(progress: Progress) -> tuple[int, int, int, int]:
    """Return where training is, without figures, which another kind of processor may round otherwise."""
    return progress.applied, progress.epoch, progress.index, progress.judged


def _here(step: Step) -> Step:
    """Return a step that has just ended with the times of this machine's clock."""
    return dataclasses.replace(step, start=time.monotonic_ns() // 1000 - step.duration)
