"""A worker whose actors are lost, without Ray: actors in this process that die when they are told to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError

from mobillm.errors import EngineError, StorageError
from mobillm.server import worker_ray
from mobillm.server.actor import ActorSpec, SessionActor
from mobillm.server.blobs import BlobReader
from mobillm.server.checkpoints import Checkpoints
from mobillm.server.engine import Job
from mobillm.server.engine_local import LocalEngine
from mobillm.server.engine_ray import RayEngine
from mobillm.server.equalizers import Equalizers
from mobillm.server.log import ActivationLog
from mobillm.server.meter import Meter
from mobillm.server.training import Training
from mobillm.server.worker_ray import RayWorker
from mobillm.server.workers import Workers
from tests.conftest import Run
from tests.sessions import packed, spec

WHAT = spec(epochs=3, batches=3, early_stopping=3)


class FakeEngine:
    """Makes actors in this process; each dies before the calls, counted over all of them, that it is told."""

    room = "much"

    def __init__(self, *deaths: int, after: bool = False) -> None:
        self.workers: dict[str, RayWorker] = {}
        self.deaths = deaths
        self.after = after
        self.calls: list[str] = []
        self.made: list[str | None] = []
        self.alive: set[int] = set()
        self.hold = asyncio.Event()
        self.hold.set()

    async def run(self, work: Callable[[], Any]) -> Any:
        """Call at once."""
        return work()

    def make(self, job: Job, away_from: str | None) -> Any:
        """Return an actor whose methods can be asked for."""
        self.made.append(away_from)
        self.alive.add(len(self.made))
        folder = job.log_path.parent
        actor = SessionActor(ActorSpec(job.spec, folder, folder, job.log_path, "cpu", 1))
        return Handle(self, len(self.made), actor)

    def end(self, actor: Any) -> None:
        """Note the end."""
        self.alive.discard(actor.number)

    def ask(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Answer when the loop comes to it, and nothing is held."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answer() -> None:
            done = call()
            if done.exception() is not None:
                future.set_exception(done.exception())
            else:
                future.set_result(done.result())

        async def later() -> None:
            await self.hold.wait()
            answer()

        self.task = asyncio.get_running_loop().create_task(later())
        return future


class Handle:
    """Stands for a handle of Ray: ``handle.method.remote(...)``."""

    def __init__(self, engine: FakeEngine, number: int, actor: SessionActor) -> None:
        self.engine = engine
        self.number = number
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return Method(self, name)


class Method:
    """Stands for a method of such a handle."""

    def __init__(self, handle: Handle, name: str) -> None:
        self.handle = handle
        self.name = name

    def remote(self, *args: Any) -> concurrent.futures.Future[Any]:
        """Call the actor, or have it die before or after that."""
        handle, engine = self.handle, self.handle.engine
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        engine.calls.append(self.name)
        if self.name == "ping":
            outcome.set_result((f"node {handle.number}", handle.number))
            return outcome
        dies = len(engine.calls) in engine.deaths
        try:
            if dies and not engine.after:
                raise ActorDiedError()
            result = getattr(handle.actor, self.name)(*args)
            if dies:
                raise ActorDiedError()
            outcome.set_result(result)
        except Exception as exc:
            outcome.set_exception(exc)
        return outcome


def job_in(folder: pathlib.Path) -> tuple[Job, ActivationLog]:
    """Return a session with three batches and a held-out one in its log."""
    folder.mkdir(exist_ok=True)
    log = ActivationLog(folder / "log")
    if not log.entries:
        log.append([*(packed(WHAT, seq) for seq in (1, 2, 3)), packed(WHAT, 4, heldout=True)])
    job = Job("x", WHAT, BlobReader(folder), Checkpoints(folder), log.path, lambda: log, Equalizers())
    return job, log


async def whole(engine: Any, folder: pathlib.Path, workers: Workers) -> tuple[int, bytes, dict[str, float]]:
    """Train a whole session; return steps, weights and figures."""
    job, log = job_in(folder)
    worker = await engine.begin(job)
    training = Training(worker, WHAT, lambda: log, workers, Meter(), "x")
    for entry in log.entries:
        await training.first_epoch(entry, 0)
        if entry.seq == 2:
            await training.checkpoint()
    await training.later_epochs()
    values = await training.complete()
    steps, weights = await training.weights()
    await training.close()
    log.close()
    return steps, weights, values


async def begin(engine: FakeEngine, job: Job) -> RayWorker:
    """Return the worker of a fake engine."""
    worker = RayWorker(cast(RayEngine, engine), job)
    engine.workers[job.name] = worker
    await worker.begin()
    return worker


class Begins:
    """A fake engine as :func:`whole` uses engines."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    async def begin(self, job: Job) -> RayWorker:
        """Return a worker."""
        return await begin(self.engine, job)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after it"])
def test_wherever_an_actor_dies(run_once: Run, tmp_path: pathlib.Path, after: bool) -> None:
    """A death before or after any call of a session leaves the result as it is without one, bit for bit."""

    async def main() -> None:
        workers = Workers()
        undisturbed = await whole(LocalEngine(workers), tmp_path / "local", workers)
        quiet = FakeEngine()
        assert await whole(Begins(quiet), tmp_path / "quiet", workers) == undisturbed
        assert quiet.made == [None]
        for number in range(3, len(quiet.calls) + 1):  # the first two place it
            engine = FakeEngine(number, after=after)
            found = await whole(Begins(engine), tmp_path / f"{number}", workers)
            assert found == undisturbed, quiet.calls[number - 1]
            # A checkpoint that was about to be written is not missed: the next call looks for the older one.
            assert engine.made == [None, "node 1"]
            assert (engine.alive, engine.workers) == (set(), {})
        workers.close()

    run_once(main())


def test_two_deaths_while_it_is_made_up(run_once: Run, tmp_path: pathlib.Path) -> None:
    """An actor that dies while it repeats what was done is replaced, too."""

    async def main() -> None:
        workers = Workers()
        undisturbed = await whole(LocalEngine(workers), tmp_path / "local", workers)
        engine = FakeEngine(12, 15)
        assert await whole(Begins(engine), tmp_path / "ray", workers) == undisturbed
        assert engine.made == [None, "node 1", "node 2"]
        workers.close()

    run_once(main())


def test_actors_that_always_die(run_once: Run, tmp_path: pathlib.Path) -> None:
    """After a few of them it is an error, and nothing is left of them."""

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine(*range(3, 30))
        worker = await begin(engine, job)
        with pytest.raises(EngineError, match="lost again and again: The actor"):
            await worker.train(log.entries[0])
        assert len(engine.made) == worker_ray.ATTEMPTS
        assert engine.alive == set()
        await worker.close()
        with pytest.raises(EngineError, match="has ended"):
            await worker.weights()
        log.close()

    run_once(main())


def test_no_room(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that nobody places in time is given up."""
    monkeypatch.setattr(worker_ray, "PLACE", 0.05)

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine()
        engine.hold.clear()
        with pytest.raises(EngineError, match=r"no node of the Ray cluster had much free within 0\.05 s"):
            await begin(engine, job)
        assert engine.alive == set()
        engine.hold.set()
        await engine.task
        log.close()

    run_once(main())


def test_one_that_does_not_answer_counts_as_lost(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that takes too long is begun again elsewhere."""
    monkeypatch.setattr(worker_ray, "CALL", 0.05)

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine()
        worker = await begin(engine, job)
        engine.hold.clear()
        stuck = asyncio.get_running_loop().create_task(worker.train(log.entries[0]))
        while len(engine.made) < 2:
            await asyncio.sleep(0.01)
        engine.hold.set()
        assert await stuck is not None
        assert worker.status.progress.applied == 1
        await worker.close()
        log.close()

    run_once(main())


def test_an_idle_actor_gives_its_room_back(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves and ends; the next call has another one go on from there."""
    monkeypatch.setattr(worker_ray, "IDLE", 0.05)

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine()
        worker = await begin(engine, job)
        await worker.train(log.entries[0])
        _, weights = await worker.weights()
        while engine.alive:
            await asyncio.sleep(0.01)
        assert engine.calls[-1] == "save"
        assert await worker.save() is None
        assert await worker.weights() == (1, weights)
        assert engine.calls[-3:] == ["ping", "restore", "weights"]
        await worker.close()
        assert engine.alive == set()
        log.close()

    run_once(main())


def test_a_cancelled_step_is_finished(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Whoever saves next saves a whole step."""

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine()
        worker = await begin(engine, job)
        engine.hold.clear()
        step = asyncio.get_running_loop().create_task(worker.train(log.entries[0]))
        await asyncio.sleep(0.02)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        engine.hold.set()
        assert await worker.save() is not None
        assert worker.status.progress.applied == 1
        await worker.train(log.entries[1])  # told again of what the cancelled call has told already
        assert worker.status.progress.applied == 2
        await worker.close()
        log.close()

    run_once(main())


def test_a_place_that_is_never_reached(run_once: Run, tmp_path: pathlib.Path) -> None:
    """What was trained on and is not in the log cannot be repeated; that is said."""

    async def main() -> None:
        job, log = job_in(tmp_path)
        engine = FakeEngine(7)
        worker = await begin(engine, job)
        for entry in log.entries:
            await worker.train(entry)
        beyond = dataclasses.replace(worker.status.progress, epoch=WHAT.epochs + 1)
        worker.status = dataclasses.replace(worker.status, progress=beyond)
        with pytest.raises(StorageError, match="restore it from a backup"):
            await worker.weights()
        assert engine.alive == set()
        await worker.close()
        log.close()

    run_once(main())
