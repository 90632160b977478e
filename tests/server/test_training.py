"""Training in memory: early stopping, and what a checkpoint brings back."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import pytest

from mobillm.protocol import Metrics
from mobillm.server.engine import Job
from mobillm.server.engine_local import LocalEngine
from mobillm.server.equalizers import Equalizers
from mobillm.server.log import ActivationLog
from mobillm.server.meter import Meter
from mobillm.server.registry import Registry
from mobillm.server.store import SessionStore
from mobillm.server.trainer import Trainer
from mobillm.server.training import Training
from mobillm.server.workers import Workers
from tests.conftest import Run
from tests.sessions import NO_BLOBS, device, new_store, packed, serving, spec, submit

LOSSES = [0.9, 0.5, 0.7, 0.6, 0.4, 0.3]  # after each epoch: with patience 2 the fifth is never seen
STOPPING = spec(epochs=6, batches=3, early_stopping=2)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let held-out losses follow ``LOSSES``; return the steps at which they were asked for."""
    seen: list[int] = []

    def evaluate(self: Trainer, batches: Any) -> dict[str, float]:
        count = float(sum(batch.samples for batch in batches))
        epoch = min(self.steps // 3, 6)
        seen.append(self.steps)
        return {"count": count, "loss": LOSSES[epoch - 1]}

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    return seen


async def begin(store: SessionStore, log: ActivationLog, workers: Workers) -> Training:
    """Return the training of a session at its newest checkpoint."""
    what = store.record().spec
    job = Job("x", what, NO_BLOBS, store.checkpoints, log.path, lambda: log, Equalizers())
    worker = await LocalEngine(workers).begin(job)
    return Training(worker, what, lambda: log, workers, Meter(), "x")


async def _trained(folder: pathlib.Path, cut: int | None, what: Any = STOPPING) -> tuple[int, bytes, bytes]:
    """Train a session, with a restart after ``cut`` steps; return steps, weights, and those of epoch 2."""
    second = b""
    step = Trainer.step

    def watched(self: Trainer, batch: Any) -> Any:
        nonlocal second
        if self.steps == 6 and not second:
            second = self.weights()
        return step(self, batch)

    workers = Workers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        store = new_store(folder, what)
        log = store.open_log()
        log.append([*(packed(what, seq) for seq in (1, 2, 3)), packed(what, 4, heldout=True)])

        async def load() -> Training:
            return await begin(store, log, workers)

        training = await load()
        for entry in log.entries[training.status.progress.applied :]:
            await training.first_epoch(entry, 0)
        if cut is not None:
            task = asyncio.get_running_loop().create_task(training.later_epochs())
            while training.status.steps < cut and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await training.checkpoint()
            training = await load()
        await training.later_epochs()
        await training.complete()
        steps, weights = await training.weights()
        log.close()
    workers.close()
    return steps, weights, second


def test_early_stopping(run_once: Run, tmp_path: pathlib.Path, judged: list[int]) -> None:
    """[O-41] Two epochs without a lower held-out loss end training; the weights are the best epoch's."""

    async def main() -> None:
        steps, weights, second = await _trained(tmp_path, None)
        assert steps == 3 * 4
        assert STOPPING.stopped(steps) == (4, 2)
        assert weights == second
        assert judged == [3, 6, 9, 12, 12]  # the last one is of the final weights

    run_once(main())


@pytest.mark.parametrize("cut", [4, 6, 8, 9, 11])
def test_a_restart_keeps_the_best(run_once: Run, tmp_path: pathlib.Path, judged: list[int], cut: int) -> None:
    """Wherever a checkpoint is taken up again, the end is the same."""

    async def main() -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        whole = await _trained(tmp_path / "a", None)
        steps, weights, _ = await _trained(tmp_path / "b", cut)
        assert (steps, weights) == whole[:2]

    run_once(main())


def test_all_epochs_without_it(run_once: Run, tmp_path: pathlib.Path, judged: list[int]) -> None:
    """Without early stopping nothing is judged between epochs, and the last weights stay."""

    async def main() -> None:
        steps, weights, second = await _trained(tmp_path, None, spec(epochs=6, batches=3))
        assert steps == 18
        assert weights != second
        assert judged == [18]

    run_once(main())


def test_best_weights_with_and_without_averages() -> None:
    """Going back to the best weights restores weights and averages, also after a load."""
    for ema in (0.0, 0.9):
        what = spec()
        what = spec(optimizer=type(what.optimizer)(lr=1e-2, schedule="constant", ema=ema))
        trainer = Trainer(what, {})
        trainer.step(packed(what, 1))
        best = trainer.weights()
        trainer.keep_best()
        trainer.step(packed(what, 2))
        again = Trainer(what, {})
        again.load(trainer.save({}))
        assert again.weights() == trainer.weights() != best
        for one in (trainer, again):
            one.use_best()
            assert one.weights() == best
            one.use_best()
            assert one.weights() == best


def test_the_result_says_that_it_has_arrived(run: Run, tmp_path: pathlib.Path) -> None:
    """[O-40] After PULL and DETACH the batches are gone; weights and figures of the held-out part stay."""

    async def main() -> None:
        for keep in (False, True):
            folder = tmp_path / str(keep)
            async with serving(folder, keep=keep) as server, device(server) as client:
                session = await client.open(spec(batches=2, epochs=2))
                log = folder / "sessions" / session.id.hex() / "activations.log"
                await submit(session, 1, 2)
                await submit(session, 3, 3, heldout=True)
                await session.finish()
                await session.wait_finished()
                figures, weights = await session.evaluate(), await session.pull()
                assert figures.samples == 4
                assert await session.detach()
                assert log.exists() is keep
            async with serving(folder, keep=keep) as server, device(server) as client:
                again = await client.attach(session.id, session.spec)
                assert (again.received, again.applied) == (3, 3)
                assert await again.wait_finished()
                assert await again.evaluate() == figures
                assert await again.pull() == weights

    run(main())


def test_leaving_before_the_end_deletes_nothing(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-40] A pull in mid-training, or no pull at all, does not say that the result has arrived."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec(batches=2, epochs=2))
            log = tmp_path / "sessions" / session.id.hex() / "activations.log"
            await submit(session, 1, 2)
            await session.pull()
            await session.detach()
            assert log.exists()
            again = await client.attach(session.id, session.spec)
            await again.pull()
            await again.finish()
            await again.wait_finished()
            await again.detach()
            assert log.exists()

    run_once(main())


def test_metrics_are_merged(run_once: Run, tmp_path: pathlib.Path, registry: Registry) -> None:
    """METRICS come at most ten times a second, and the last one always."""
    told: list[Metrics] = []

    async def main() -> None:
        workers = Workers()
        store: SessionStore = new_store(tmp_path, spec(batches=3))
        log = store.open_log()
        log.append([packed(spec(), seq) for seq in (1, 2, 3)])
        training = await begin(store, log, workers)
        training.report = told.append
        for entry in log.entries:
            await training.first_epoch(log.read(entry), 5)
        assert 1 <= len(told) <= 3
        assert (told[0].step, told[0].queue) == (1, 5)
        await training.complete()
        assert (told[-1].step, told[-1].queue) == (3, 0)
        log.close()
        workers.close()

    run_once(main())
