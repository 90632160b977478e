"""Tests of linear layers in few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobillm.errors import ConfigError
from mobillm.nn.quantized import Int4Linear, Int8Linear, quantized_linear, weight_of
from mobillm.nn.workspace import Workspace


def drawn(*shape: int) -> torch.Tensor:
    """Draw normal values, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("bits", "error"), [(8, 0.025), (4, 0.12)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(512, 96, 64), (2, 7, 48, 40), (1, 16, 8)])
def test_products(bits: int, error: float, bias: bool, shape: tuple[int, ...]) -> None:
    """Products of normal values are off by a few hundredths at most, in any shape and type."""
    *lead, inner, outer = shape
    weight, values = drawn(outer, inner), drawn(*lead, inner)
    added = drawn(outer) if bias else None
    expected = F.linear(values, weight, added)
    layer = quantized_linear(weight, added, bits, Workspace())
    found = layer(values)
    assert found.shape == expected.shape
    assert (found - expected).norm() < error * expected.norm()
    assert layer(values.bfloat16()).dtype == torch.bfloat16
    assert layer.nbytes < weight.nbytes
    assert quantized_linear(weight.to("meta"), added, bits, Workspace()).nbytes == layer.nbytes


def test_largest_values_do_not_saturate() -> None:
    """The largest codes on both sides add up exactly, on a CPU that adds pairs in 16 bits too."""
    layer = Int8Linear(torch.ones(32, 512), None)
    assert torch.equal(layer(torch.ones(4, 512)), torch.full((4, 32), 512.0))
    assert torch.equal(layer(-torch.ones(4, 512)), torch.full((4, 32), -512.0))


def test_a_row_does_not_depend_on_others() -> None:
    """A row with a value a thousand times larger costs the others no accuracy, and zeros stay zeros."""
    layer, values = Int8Linear(drawn(24, 64), None), drawn(5, 64)
    alone = layer(values[1:])
    values[0, 3] = 27_000.0
    assert torch.equal(layer(values)[1:], alone)
    assert torch.equal(layer(torch.zeros(2, 64)), torch.zeros(2, 24))
    values[0, 3] = torch.nan
    found = layer(values)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], alone)


def test_four_bits_are_exact_on_their_grid() -> None:
    """Weights on 16 equal steps per group are kept exactly, as those of a GGUF file in Q4_1 nearly are."""
    codes = torch.arange(16).repeat(8, 4).view(8, 2, 32)
    steps = torch.tensor([0.5, 2.0]).view(1, 2, 1)
    weight = (codes * steps - 4.0).view(8, 64)
    layer = Int4Linear(weight, None, Workspace())
    assert torch.equal(layer.expand(torch.float32), weight)
    assert torch.equal(layer(torch.eye(64)), weight.T)


def test_layers_share_the_workspace() -> None:
    """Expanded weights of several layers take the memory of one."""
    workspace = Workspace()
    layers = [Int4Linear(drawn(24, 32), None, workspace) for _ in range(3)]
    expected = layers[0](torch.eye(32))
    for layer in layers[1:]:
        layer(torch.eye(32))
    assert workspace.nbytes == 4 * 24 * 32
    assert torch.equal(layers[0](torch.eye(32)), expected)


def test_which_modules_are_linear() -> None:
    """GPT-2's layers are linear ones whose weights lie the other way; odd widths are left as they are."""
    turned_linear: Any = Conv1D
    linear, conv = nn.Linear(6, 4), turned_linear(4, 6)
    assert weight_of(linear, linear.weight) is linear.weight
    turned = weight_of(conv, conv.weight)
    assert turned is not None
    assert torch.equal(turned, conv.weight.T)
    assert weight_of(nn.Linear(5, 4), torch.empty(4, 5)) is None
    assert weight_of(nn.LayerNorm(4), torch.empty(4)) is None


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that cannot multiply integers is told what else to use."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="built without oneDNN"):
        Int8Linear(torch.ones(4, 4), None)
