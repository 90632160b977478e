"""How far training has come."""

from __future__ import annotations

from mobillm.server.progress import Progress


def test_losses_are_of_one_epoch() -> None:
    """The mean starts anew with each epoch; a step without a loss counts for none."""
    progress = Progress()
    assert progress.mean is None
    progress = progress.after(1, 1, 0, 2.0).after(2, 1, 0, None).after(3, 1, 0, 4.0)
    assert (progress.applied, progress.mean) == (3, 3.0)
    progress = progress.after(3, 2, 1, 1.0)
    assert (progress.epoch, progress.index, progress.mean) == (2, 1, 1.0)


def test_the_best_epoch() -> None:
    """Only a lower loss makes an epoch the best; one that is not finite never does."""
    progress = Progress()
    for epoch, loss, best in ((1, None, 0), (2, 0.5, 2), (3, 0.5, 2), (4, None, 2), (5, 0.4, 5)):
        progress = progress.after(9, epoch, 3, 1.0).judge(loss)
        assert (progress.judged, progress.best_epoch) == (epoch, best)
    assert progress.best_loss == 0.4
