"""The trained weights in one vector: views by name, and steps as torch's optimizer takes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mobillm.server.weights import Weights
from mobillm.spec import OptimizerSpec


def layers() -> nn.Sequential:
    """Return two layers with a bias each."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_steps_are_those_of_torch() -> None:
    """Clipping and AdamW give what torch gives for the parameters one by one; only matrices decay."""
    own, other = layers(), layers()
    spec = OptimizerSpec(lr=0.1, weight_decay=0.2, clip=0.5, schedule="constant")
    weights = Weights(dict(own.named_parameters()), spec)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    plain = [p for p in other.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    for step in range(4):
        values = torch.randn(5, 3) * (0.01 if step == 2 else 1.0)  # the third gradient needs no clipping
        assert weights.update(weights.gradient(own(values).square().sum()), 0.1)
        optimizer.zero_grad()
        other(values).square().sum().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        for one, two in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in own.parameters())


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    """Neither weights nor moments."""
    weights = Weights(dict(layers().named_parameters()), OptimizerSpec())
    before = weights.values.clone()
    assert not weights.update(torch.full_like(before, torch.inf), 0.1)
    assert weights.values.equal(before)
    assert weights.moments() is None


def test_by_name_and_back() -> None:
    """Pieces have the parameters' shapes and memory; a vector of pieces is the vector again."""
    network = layers()
    weights = Weights(dict(network.named_parameters()), OptimizerSpec())
    assert weights.names == ["0.weight", "1.weight", "0.bias", "1.bias"]
    pieces = weights.named(weights.values)
    assert weights.vector(pieces).equal(weights.values)
    weights.values.zero_()
    assert all(not p.any() for p in network.parameters())
    rows = torch.arange(32.0).view(2, 16)  # the last 16 of 26 weights, of two sessions
    ends = weights.split(rows[:, 2:])
    assert {name: list(piece.shape) for name, piece in ends.items()} == {
        "1.weight": [2, 2, 4],
        "0.bias": [2, 4],
        "1.bias": [2, 2],
    }
    assert ends["1.bias"][1].tolist() == [30.0, 31.0]
    with pytest.raises(ValueError, match=r"0\.bias is \[3\], not \[4\]"):
        weights.vector(pieces | {"0.bias": torch.zeros(3)})


def test_moments_go_on() -> None:
    """Other weights with the same values and moments take the same step, bit for bit."""
    one, two = (Weights(dict(layers().named_parameters()), OptimizerSpec()) for _ in range(2))
    gradient = torch.linspace(-1, 1, one.values.numel())
    one.update(gradient.clone(), 0.1)
    two.values.copy_(one.values)
    moments = one.moments()
    assert moments is not None
    two.set_moments(*moments)
    for weights in (one, two):
        weights.update(gradient.clone(), 0.1)
    assert one.values.equal(two.values)
