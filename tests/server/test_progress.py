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
