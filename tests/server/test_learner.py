"""What a worker owns: weights and progress that change together and come back together."""

from __future__ import annotations

import pathlib

import pytest

from mobillm.server.checkpoints import Checkpoints
from mobillm.server.learner import Learner, Piece
from mobillm.server.log import ActivationLog
from mobillm.server.trainer import Trainer
from tests.sessions import packed, spec


def make(folder: pathlib.Path) -> Learner:
    """Return a learner at the newest checkpoint."""
    return Learner(Trainer(spec(), {}), Checkpoints(folder))


def test_steps_and_progress(tmp_path: pathlib.Path) -> None:
    """A step moves both; a held-out batch moves the progress alone."""
    learner = make(tmp_path)
    assert not learner.restored
    step = learner.step(Piece([packed(spec(), 1)], 1, 1, 0))
    learner.hold_out(2)
    status = learner.status
    assert (status.steps, status.progress.applied, status.progress.count) == (1, 2, 1)
    assert status.progress.mean == step.loss
    assert step.duration >= 0


def test_a_checkpoint_holds_both(tmp_path: pathlib.Path) -> None:
    """A new one goes on with the same weights from the same place."""
    learner = make(tmp_path)
    learner.step(Piece([packed(spec(), 1)], 1, 1, 0))
    Checkpoints(tmp_path).save(1, learner.save())
    again = make(tmp_path)
    assert again.restored
    assert again.progress == learner.progress
    for one in (learner, again):
        one.step(Piece([packed(spec(), 2)], 2, 1, 0))
    assert again.trainer.weights() == learner.trainer.weights()


def test_judging_keeps_the_best(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling goes back to the epoch with the lowest loss; a second time changes nothing."""
    losses = iter([1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, batches: {"loss": next(losses), "count": 4.0})
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1), packed(spec(), 2, heldout=True)])
    learner = make(tmp_path)
    learner.step(Piece([packed(spec(), 1)], 2, 1, 0))
    assert learner.judge(log) == {"loss": 1.0, "count": 4.0}
    best = learner.trainer.weights()
    learner.step(Piece([packed(spec(), 1)], 2, 2, 1))
    learner.judge(log)
    assert (learner.progress.judged, learner.progress.best_epoch) == (2, 1)
    assert learner.trainer.weights() != best
    for _ in range(2):
        learner.settle(log)
        assert learner.trainer.weights() == best
    log.close()


def test_figures_that_are_not_finite_are_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of samples is there all the same."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self, batches: {"loss": float("nan"), "accuracy": 0.5})
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1, heldout=True, samples=3)])
    assert make(tmp_path).evaluate(log) == {"accuracy": 0.5, "count": 3.0}
    log.close()
