"""What runs in a Ray worker process, here without one: it trains as the local engine does."""

from __future__ import annotations

import pathlib

import pytest
import torch

from mobillm.errors import StorageError
from mobillm.server.actor import ActorSpec, SessionActor
from mobillm.server.blobs import BlobReader
from mobillm.server.engine import Job
from mobillm.server.engine_local import LocalEngine
from mobillm.server.equalizers import Equalizers
from mobillm.server.log import ActivationLog
from mobillm.server.workers import Workers
from mobillm.spec import SessionSpec
from tests.conftest import Run
from tests.sessions import new_store, packed, spec

WHAT = spec(epochs=2, early_stopping=1)


def make(log: ActivationLog, what: SessionSpec = WHAT) -> SessionActor:
    """Return the actor of a session whose log is in its directory."""
    folder = log.path.parent
    return SessionActor(ActorSpec(what, folder / "blobs", folder, log.path, "cpu", 1))


def test_it_trains_as_the_local_engine_does(run_once: Run, tmp_path: pathlib.Path) -> None:
    """First epoch, judgement, second epoch, result: the same bits, though told of the log bit by bit."""

    async def main() -> None:
        workers = Workers()
        store = new_store(tmp_path, WHAT)
        log = store.open_log()
        log.append([packed(WHAT, 1), packed(WHAT, 2, heldout=True), packed(WHAT, 3)])
        blobs = BlobReader(tmp_path)
        job = Job("x", WHAT, blobs, store.checkpoints, log.path, lambda: log, Equalizers())
        local = await LocalEngine(workers).begin(job)
        actor = make(log)
        assert actor.restore() == (False, local.status)
        for entry in log.entries:
            step, status = actor.train([entry], entry.seq)
            same = await local.train(entry)
            assert (step is None) == (same is None) == entry.heldout
            assert status == local.status
        # Told of what it knows: a caller that gave a call up does not know how it ended.
        assert actor.judge(log.entries)[0] == await local.judge()
        for index in range(2):
            _, status = actor.train_again([], 2, index)
            await local.train_again(2, index)
            assert status == local.status
        (values, saved), _ = actor.settle([])
        (weights, status), again = actor.weights(), make(log)
        assert (values, weights) == ((await local.settle())[0], (await local.weights())[1])
        assert saved.size > 0
        restored, found = again.restore()
        assert (restored, found.progress) == (True, status.progress)
        assert again.weights()[0] == weights
        assert again.evaluate(log.entries)[0] == values
        log.close()
        workers.close()

    run_once(main())


def test_a_checkpoint_is_taken_up(tmp_path: pathlib.Path) -> None:
    """Another actor goes on where the first one has saved."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), seq) for seq in (1, 2)])
    first = make(log, spec())
    first.train(log.entries, 1)
    first.save()
    second = make(log, spec())
    assert second.restore()[0]
    first.train([], 2)
    second.train(log.entries, 2)
    assert second.weights() == first.weights()
    log.close()


def test_threads_and_missing_files(tmp_path: pathlib.Path) -> None:
    """Torch has the threads it is told, and files that are not there are named."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1)])
    actor = SessionActor(
        ActorSpec(spec(), tmp_path, tmp_path, tmp_path / "elsewhere", "cpu", torch.get_num_threads())
    )
    with pytest.raises(StorageError, match="elsewhere cannot be read"):
        actor.train(log.entries, 1)
    log.close()
