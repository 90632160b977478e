"""Tests of the ladder's blocks."""

from __future__ import annotations

import pytest
import torch

from mobillm.nn.attention import Block, KeyValues
from mobillm.nn.dropout import MaskSource
from mobillm.nn.ragged import Ragged


def _block(width: int, heads: int, causal: bool) -> Block:
    torch.manual_seed(0)
    block = Block(width, heads, causal, 0.0, MaskSource(0))
    for layer in (block.attention_out, block.mlp_out):
        torch.nn.init.normal_(layer.weight)
    return block


def test_starts_as_identity() -> None:
    """Zero output projections make a fresh block pass its input through."""
    stream = torch.randn(5, 8)
    block = Block(8, 2, True, 0.0, MaskSource(0))
    assert torch.equal(block(stream, Ragged(torch.tensor([2, 3]))), stream)


@pytest.mark.parametrize("causal", [True, False])
def test_samples_do_not_see_each_other(causal: bool) -> None:
    """A sample's output is the same alone and in a padded batch."""
    block, stream = _block(8, 2, causal), torch.randn(9, 8)
    together = block(stream, Ragged(torch.tensor([2, 4, 3])))
    alone = block(stream[2:6], Ragged(torch.tensor([4])))
    torch.testing.assert_close(together[2:6], alone)


@pytest.mark.parametrize("causal", [True, False])
def test_causality(causal: bool) -> None:
    """A later token changes earlier outputs exactly when the block is not causal."""
    block, stream = _block(8, 2, causal), torch.randn(5, 8)
    layout = Ragged(torch.tensor([5]))
    before = block(stream, layout)
    stream = torch.cat((stream[:4], torch.randn(1, 8)))
    after = block(stream, layout)
    assert torch.allclose(before[:4], after[:4]) is causal
    assert not torch.allclose(before[4], after[4])


def test_positions_matter() -> None:
    """Swapping two earlier tokens changes what the last one sees."""
    block, stream = _block(8, 2, True), torch.randn(4, 8)
    layout = Ragged(torch.tensor([4]))
    assert not torch.allclose(block(stream, layout)[3], block(stream[[1, 0, 2, 3]], layout)[3])


@pytest.mark.parametrize(("width", "heads"), [(8, 2), (6, 2), (3, 3)])
def test_extend_equals_forward(width: int, heads: int) -> None:
    """Token by token with a cache gives the whole sample's output, also with odd head widths."""
    block, stream = _block(width, heads, True), torch.randn(6, width)
    whole = block(stream, Ragged(torch.tensor([6])))
    past: KeyValues | None = None
    parts = []
    for part in (stream[:3], stream[3:4], stream[4:]):
        out, past = block.extend(part, past)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts), whole)
