"""What training does next: every batch of every epoch once, judgements between them."""

from __future__ import annotations

import pathlib

import pytest

from mobillm.server.log import ActivationLog
from mobillm.server.progress import Progress
from mobillm.server.schedule import Piece, Schedule
from mobillm.spec import SessionSpec
from tests.sessions import packed, spec


def follow(what: SessionSpec, folder: pathlib.Path, losses: list[float], heldout: bool = True) -> list[Piece]:
    """Return all pieces of a session of two batches whose epochs end with these held-out losses."""
    log = ActivationLog(folder / "log")
    log.append([packed(what, 1), packed(what, 2, heldout=heldout), packed(what, 3)])
    schedule, progress, pieces = Schedule(what, log.entries), Progress(applied=3), []
    log.close()
    while (piece := schedule.after(progress)) is not None:
        pieces.append(piece)
        if piece.index is None:
            progress = progress.judge(losses[piece.epoch - 1])
        else:
            progress = progress.after(3, piece.epoch, piece.index + 1, 0.5)
    return pieces


def test_each_epoch_is_trained_whole(tmp_path: pathlib.Path) -> None:
    """All batches that are not held out come in order, in each epoch but the first."""
    steps = [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert [(p.epoch, p.index) for p in follow(spec(epochs=3), tmp_path, [])] == steps


@pytest.mark.parametrize(
    ("losses", "last"), [([3.0, 2.0, 1.0], 3), ([1.0, 2.0, 3.0], 2), ([2.0, 1.0, 3.0], 3)]
)
def test_epochs_are_judged(tmp_path: pathlib.Path, losses: list[float], last: int) -> None:
    """With early stopping each epoch's end is judged once, and an epoch that is no better is the last."""
    pieces = follow(spec(epochs=3, early_stopping=1), tmp_path, losses)
    judged = [piece.epoch for piece in pieces if piece.index is None]
    assert judged == list(range(1, last + 1))
    assert pieces[-1] == Piece(last, None)


def test_nothing_is_judged_without_held_out_batches(tmp_path: pathlib.Path) -> None:
    """Early stopping needs something to judge by."""
    pieces = follow(spec(epochs=2, early_stopping=1), tmp_path, [], heldout=False)
    assert [(p.epoch, p.index) for p in pieces] == [(2, 0), (2, 1), (2, 2)]


def test_a_session_without_training_batches_ends(tmp_path: pathlib.Path) -> None:
    """Where all is held out there is nothing to repeat."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1, heldout=True)])
    assert Schedule(spec(epochs=5), log.entries).after(Progress(applied=1)) is None
    log.close()
