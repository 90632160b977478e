"""A session without a device: failures of disk and training, and coming back from them."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import pathlib
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from mobillm.errors import ConfigError, ErrorCode, ModelError, RemoteError, StorageError
from mobillm.protocol import Finished, Metrics
from mobillm.server.batch import Batch
from mobillm.server.engine import Job
from mobillm.server.engine_local import LocalEngine
from mobillm.server.log import ActivationLog
from mobillm.server.observer import Observer
from mobillm.server.session import Session
from mobillm.server.trainer import Trainer
from mobillm.server.training import MAX_SKIPPED
from mobillm.server.workers import Workers
from mobillm.spec import CodecSpec, SessionSpec
from tests.conftest import Run
from tests.sessions import NO_BLOBS, device, new_store, open_logs, packed, serving, spec, submit, train


class Watcher(Observer):
    """Keep what the session tells."""

    def __init__(self) -> None:
        self.failures: list[tuple[ErrorCode, str]] = []
        self.metrics: list[Metrics] = []
        self.finished = asyncio.Event()
        self.changed = asyncio.Event()

    def acknowledge(self) -> None:
        """Note that something changed."""
        self.changed.set()

    def report(self, metrics: Metrics) -> None:
        """Keep it."""
        self.metrics.append(metrics)

    def finish(self, finished: Finished) -> None:
        """Note it."""
        self.finished.set()

    def fail(self, code: ErrorCode, text: str, *, again: bool = True) -> None:
        """Keep it."""
        self.failures.append((code, text))
        self.changed.set()

    async def until(self, condition: object) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(10.0):
            while not condition():  # type: ignore[operator]
                self.changed.clear()
                await self.changed.wait()


def make(folder: pathlib.Path, what: SessionSpec, workers: Workers) -> tuple[Session, Watcher]:
    """Return a new session and whom it tells."""
    session = Session(new_store(folder, what), workers, LocalEngine(workers))
    watcher = Watcher()
    session.observer = watcher
    return session, watcher


def test_from_first_batch_to_the_end(run: Run, tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """Batches become durable, are applied, and the rest of the epochs follows."""

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, spec(epochs=2, batches=3), workers)
        await session.start(NO_BLOBS)
        await session.start(NO_BLOBS)
        for seq in (1, 2, 3):
            await session.put(packed(session.spec, seq))
        with pytest.raises(ConfigError, match=r"FINISH\.seq is 2"):
            await session.finish(2)
        await session.finish(3)
        await watcher.finished.wait()
        assert (session.received, session.durable, session.applied) == (3, 3, 3)
        assert session.finished is not None
        assert session.finished.steps == 6
        assert (session.waiting, session.held) == (0, 0)
        assert watcher.metrics[-1].epoch == 2
        await session.close()
        await session.close()
        workers.close()

    run(main())


def test_batches_come_while_the_trainer_is_built(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A device has credit from before its blobs came; what it sends while the start takes long counts."""
    begun, built = asyncio.Event(), asyncio.Event()

    class Slow(LocalEngine):
        async def begin(self, job: Job) -> Any:
            begun.set()
            await built.wait()
            return await super().begin(job)

    async def main() -> None:
        workers = Workers()
        session = Session(new_store(tmp_path, spec()), workers, Slow(workers))
        session.observer = watcher = Watcher()
        task = session.begin(NO_BLOBS)
        await begun.wait()
        for seq in (1, 2):
            await session.put(packed(session.spec, seq))
        built.set()
        await task
        await watcher.until(lambda: session.applied == 2)
        assert (session.received, session.durable) == (2, 2)
        assert (session.held, watcher.failures) == (0, [])
        await session.close()
        workers.close()

    run_once(main())


def test_a_session_that_could_not_start_keeps_no_weights(run_once: Run, tmp_path: pathlib.Path) -> None:
    """What an error was raised over is free as soon as whoever waited for the start has seen it."""
    weights: list[weakref.ref[Any]] = []

    class Failing(LocalEngine):
        async def begin(self, job: Job) -> Any:
            frozen = np.zeros(1000)
            weights.append(weakref.ref(frozen))
            raise ModelError(f"{frozen.size} weights do not fit")

    async def main() -> None:
        workers = Workers()
        session = Session(new_store(tmp_path, spec()), workers, Failing(workers))
        for _ in range(2):
            with pytest.raises(ModelError, match="do not fit"):
                await session.begin(NO_BLOBS)
        assert session.failure == "1000 weights do not fit"
        await asyncio.sleep(0)
        gc.collect()
        assert [ref() for ref in weights] == [None, None]
        await session.close()
        workers.close()

    run_once(main())


def test_a_session_that_never_started_closes_its_log(
    run_once: Run, tmp_path: pathlib.Path, no_fd_leak: None
) -> None:
    """No file stays open, and no checkpoint is written."""

    async def main() -> None:
        workers = Workers()
        session, _ = make(tmp_path, spec(), workers)
        with pytest.raises(ConfigError, match="not started"):
            await session.weights()
        await session.close()
        assert session.store.checkpoints.load() is None
        workers.close()

    run_once(main())


def test_disk_that_fails_and_recovers(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that could not be stored was never received; after recovery it can come again."""

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, spec(), workers)
        await session.start(NO_BLOBS)
        await session.put(packed(session.spec, 1))
        await watcher.until(lambda: session.applied == 1)

        def full(*_: object) -> None:
            raise StorageError("no space")

        with monkeypatch.context() as patch:
            patch.setattr(ActivationLog, "append", full)
            await session.put(packed(session.spec, 2))
            await watcher.until(lambda: watcher.failures)
        assert watcher.failures[0][0] == ErrorCode.STORAGE_FULL
        assert "no space" not in watcher.failures[0][1]
        await session.recover()
        assert (session.received, session.held) == (1, 0)
        await session.start(NO_BLOBS)
        await session.put(packed(session.spec, 2))
        await watcher.until(lambda: session.applied == 2)
        steps, weights = await session.weights()
        assert steps == 2
        await session.close()
        again = Session(session.store, workers, LocalEngine(workers))
        await again.start(NO_BLOBS)
        assert await again.weights() == (2, weights)
        await again.close()
        workers.close()

    run_once(main())


def test_losses_that_are_not_finite_end_training(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-44] A few are skipped; many in a row are told to the device."""
    what = spec(codec=CodecSpec(format="f32"))

    def spoilt(seq: int) -> Batch:
        batch = packed(what, seq)
        tap = np.full(len(batch.payloads[0]) // 4, np.inf, np.float32)
        return dataclasses.replace(batch, payloads={**batch.payloads, 0: memoryview(tap.tobytes())})

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, what, workers)
        await session.start(NO_BLOBS)
        for seq in range(1, MAX_SKIPPED + 1):
            await session.put(spoilt(seq))
        await watcher.until(lambda: watcher.failures)
        code, text = watcher.failures[0]
        assert code == ErrorCode.NON_FINITE
        assert "smaller optimizer.lr" in text
        await session.close()
        workers.close()

    run_once(main())


def test_two_starts_at_once_train_once(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Whoever starts second waits for the first."""

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, spec(), workers)
        await asyncio.gather(session.start(NO_BLOBS), session.start(NO_BLOBS))
        await session.put(packed(session.spec, 1))
        await watcher.until(lambda: session.applied == 1)
        assert (await session.weights())[0] == 1
        await session.close()
        workers.close()

    run_once(main())


@pytest.mark.parametrize(
    ("interval", "steps", "saved"), [(0.0, 1000, [2, 3]), (60.0, 2, [2]), (60.0, 1000, [])]
)
def test_checkpoints_are_written_now_and_then(
    run_once: Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
    steps: int,
    saved: list[int],
) -> None:
    """Training that lasts is saved while it goes on, by time and by steps, whichever comes first."""
    monkeypatch.setattr("mobillm.server.training.CHECKPOINT_INTERVAL", interval)
    monkeypatch.setattr("mobillm.server.training.CHECKPOINT_STEPS", steps)

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, spec(), workers)
        await session.start(NO_BLOBS)
        for seq in (1, 2, 3):
            await session.put(packed(session.spec, seq))
        await watcher.until(lambda: session.applied == 3)
        names = sorted(path.name for path in session.store.directory.glob("checkpoint-*"))
        assert [int(name.split("-")[1]) for name in names] == saved
        crashed = Session(session.store, workers, LocalEngine(workers))
        crashed.observer = watcher
        await crashed.start(NO_BLOBS)
        assert crashed.applied == max(saved, default=0)
        await watcher.until(lambda: crashed.applied == 3)
        assert await crashed.weights() == await session.weights()
        await crashed.close()
        await session.close()
        workers.close()

    logging.getLogger("mobillm").setLevel(logging.CRITICAL)
    run_once(main())
    logging.getLogger("mobillm").setLevel(logging.NOTSET)


@pytest.mark.parametrize("away", [True, False])
def test_a_session_that_finishes_alone_is_parked(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """Training that ends while no device is attached frees what it held; with one attached it is kept."""
    step, gate = Trainer.step, threading.Event()

    def waiting(self: Trainer, batch: Batch) -> float | None:
        assert gate.wait(10.0)
        return step(self, batch)

    async def main() -> None:
        monkeypatch.setattr(Trainer, "step", waiting)
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec(batches=3, epochs=2))
            await submit(session, 1, 3)
            await session.finish()
            if away:
                await session.detach()
            assert open_logs(tmp_path)
            gate.set()
            if away:
                async with asyncio.timeout(5.0):
                    while open_logs(tmp_path):
                        await asyncio.sleep(0.01)
                session = await client.attach(session.id, session.spec)
            assert (await session.wait_finished()).steps == 6
            assert await session.pull()
            assert away or open_logs(tmp_path)

    try:
        run_once(main())
    finally:
        gate.set()


def test_a_finished_session_is_parked_and_comes_back(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Left by its device, a finished session holds no file and no network; its result is still there."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with device(server) as client:
                session, weights = await train(client, spec(batches=3), 3)
                await session.detach()
            name = f"= session {session.id.hex()}"
            said = [
                f"{name} finished after 3 steps",
                f"{name}: its result was pulled",
                f"{name}: its device has left",
            ]
            assert [text for text in caplog.messages if text in said] == said
            assert open_logs(tmp_path) == []
            async with device(server) as client:
                again = await client.attach(session.id, session.spec)
                assert await again.wait_finished()
                assert await again.pull() == weights

    caplog.set_level(logging.INFO, "mobillm")
    run_once(main())


@pytest.mark.parametrize("cut", [0, 10])
def test_a_result_without_weights_is_trained_again(run_once: Run, tmp_path: pathlib.Path, cut: int) -> None:
    """A finished session that has lost its checkpoints goes back to its log, or to what is left of it."""

    async def main() -> None:
        workers = Workers()
        session, watcher = make(tmp_path, spec(epochs=2, batches=3), workers)
        await session.start(NO_BLOBS)
        for seq in (1, 2, 3):
            await session.put(packed(session.spec, seq))
        await session.finish(3)
        await watcher.finished.wait()
        expected = await session.weights()
        await session.close()
        for path in session.store.directory.glob("checkpoint-*"):
            path.unlink()
        path = session.store.log_path
        path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])

        again = Session(session.store, workers, LocalEngine(workers))
        again.observer = watcher = Watcher()
        assert (again.finished, again.received) == (session.finished, 3)
        await again.start(NO_BLOBS)
        if cut:
            assert (again.received, again.last) == (2, None)
            await again.put(packed(session.spec, 3))
            await again.finish(3)
        await watcher.finished.wait()
        assert (again.received, again.durable, again.applied) == (3, 3, 3)
        assert await again.weights() == expected
        await again.close()
        workers.close()

    run_once(main())


@pytest.mark.parametrize("kind", ["cut", "flipped", "gone"])
def test_a_log_shorter_than_its_checkpoint(
    run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Lost durable batches are told at the start; nothing is cut off, and a mended file is taken up again."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await submit(session, 1, 4)
            await session.wait_applied()
        (path,) = (tmp_path / "sessions").glob("*/activations.log")
        whole = path.read_bytes()
        damaged = whole[:-10] if kind == "cut" else whole[:-1] + bytes([whole[-1] ^ 1])
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes(damaged)
        caplog.clear()
        async with serving(tmp_path) as server, device(server) as client:
            (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
            assert f"session {session.id.hex()} is left alone: {path}" in line
            if kind != "gone":
                assert "batch 4, at byte " in line
                assert "batch 4 was trained on; restore the file from a backup or delete" in line
            for _ in range(2):
                with pytest.raises(
                    RemoteError, match=f"files of session {session.id.hex()} are damaged"
                ) as info:
                    await client.attach(session.id, session.spec)
                assert (info.value.code, info.value.retry_after) == (ErrorCode.INTERNAL, None)
            await train(client, spec(), 2)
            assert kind == "gone" or path.read_bytes() == damaged
            path.write_bytes(whole)
            again = await client.attach(session.id, session.spec)
            assert again.received == 4
            await submit(again, 5, 5)
            await again.wait_applied()

    with caplog.at_level(logging.INFO, "mobillm"):
        run(main())
    assert "Traceback" not in caplog.text
