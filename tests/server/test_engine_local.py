"""The engine on one machine: a worker in the server's threads."""

from __future__ import annotations

import asyncio
import pathlib
import threading

import pytest

from mobillm.server import engine_local
from mobillm.server.engine import Job, Worker
from mobillm.server.engine_local import LocalEngine
from mobillm.server.equalizers import Equalizers
from mobillm.server.workers import Workers
from tests.conftest import Run
from tests.sessions import NO_BLOBS, new_store, packed, spec


def test_from_the_log_and_from_memory(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch is the same in memory and in the log, and a checkpoint brings the worker back."""

    async def main() -> None:
        workers = Workers()
        engine = LocalEngine(workers)
        await engine.start()
        store = new_store(tmp_path, spec())
        log = store.open_log()
        log.append([packed(spec(), 1), packed(spec(), 2, heldout=True), packed(spec(), 3)])
        job = Job("x", spec(), NO_BLOBS, store.checkpoints, log.path, lambda: log, Equalizers())
        first, second = await engine.begin(job), await engine.begin(job)
        one: Worker = first
        assert not one.restored
        for entry in log.entries:
            told = [await first.train(log.read(entry)), await second.train(entry)]
            assert [step is None for step in told] == [entry.heldout] * 2
        assert await first.weights() == await second.weights()
        saved = await first.save()
        assert saved.size == sum(path.stat().st_size for path in tmp_path.glob("*/checkpoint-*"))
        third = await engine.begin(job)
        assert third.restored
        assert third.status.progress == first.status.progress
        for worker in (first, third):
            await worker.train_again(2, 0)
            await worker.train_again(2, 1)
        assert await first.weights() == await third.weights()
        assert (await first.evaluate())[1]["count"] == 4.0
        for worker in (first, second, third):
            await worker.close()
        await engine.close()
        log.close()
        workers.close()

    run_once(main())


def test_the_thread_warms_up_beside_the_loop(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting does not wait for it, training does, and closing leaves no work behind."""
    begun, may_end, threads = threading.Event(), threading.Event(), list[str]()

    def warm_up() -> None:
        threads.append(threading.current_thread().name)
        begun.set()
        assert may_end.wait(5)

    monkeypatch.setattr(engine_local, "warm_up", warm_up)

    async def main() -> None:
        workers = Workers()
        engine = LocalEngine(workers)
        await engine.start()
        assert await asyncio.to_thread(begun.wait, 5)
        work = asyncio.create_task(workers.train("x", lambda: "done"))
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0.05)
        assert not work.done()
        assert not closing.done()
        may_end.set()
        assert await work == "done"
        await closing
        await engine.close()
        workers.close()

    run_once(main())
    assert threads == ["mobillm-train"]
