"""Tests of dropout with masks of its own."""

from __future__ import annotations

import pytest
import torch

from mobillm.nn.dropout import Dropout, MaskSource, kept


def test_masks_follow_seed_and_step() -> None:
    """The mask depends on seed and step alone, and the process's random state is left alone."""
    values = torch.ones(4, 50)
    before = torch.random.get_rng_state()

    def draw(seed: int, step: int, earlier: int = 0) -> torch.Tensor:
        source = MaskSource(seed)
        layer = Dropout(0.5, source)
        source.begin(earlier)
        layer(values)
        source.begin(step)
        out: torch.Tensor = layer(values)
        return out

    assert torch.equal(draw(3, 7), draw(3, 7, earlier=2))
    assert not torch.equal(draw(3, 7), draw(3, 8))
    assert not torch.equal(draw(3, 7), draw(4, 7))
    assert torch.equal(before, torch.random.get_rng_state())
    assert draw((1 << 63) - 1, 1 << 40).shape == values.shape


@pytest.mark.parametrize("dropout", [1.0 - 2.0**-20, 0.999, 0.9, 0.5, 0.1, 2.0**-20])
def test_share_that_is_kept(dropout: float) -> None:
    """As many values are kept as asked for, also next to none and all, and the mean stays."""
    keep = kept(dropout)
    assert keep == pytest.approx(1.0 - dropout, abs=2.0**-16)
    values = torch.ones(2000, 2000)
    share = float(MaskSource(1).keep(values, keep).float().mean())
    error = (keep * (1.0 - keep) / values.numel()) ** 0.5
    assert share == pytest.approx(keep, abs=5 * error + 1e-9)
    scaled = Dropout(dropout, MaskSource(1))(values)
    assert float(scaled.double().mean()) == pytest.approx(share / keep)


def test_all_at_once() -> None:
    """Masks of several layers, drawn in one go, are those drawn one after the other."""
    sizes = [1, 7, 8, 30]
    one, other = MaskSource(2), MaskSource(2)
    apart = [one.keep(torch.empty(size), 0.5) for size in sizes]
    assert torch.equal(other.keep_all(sizes, 0.5, torch.device("cpu")), torch.cat(apart))


def test_scale_and_modes() -> None:
    """Kept values are scaled up in training; evaluation changes nothing."""
    layer = Dropout(0.25, MaskSource(0))
    values = torch.ones(200, 200)
    out = layer(values)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float(out.mean()) - 1.0) < 0.02
    assert torch.equal(layer.eval()(values), values)
