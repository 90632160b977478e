"""Tests of the chunked cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mobillm.nn import heads
from mobillm.nn.cross_entropy import chunked_cross_entropy
from mobillm.nn.heads import FrozenHead, export_lm_head
from tests.nn.tiny import VOCABULARY, tiny_model


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt-350m"])
def test_value_and_gradient(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient are those of one large cross entropy, and logits exist for one chunk only."""
    head = FrozenHead.from_bytes(export_lm_head(tiny_model(architecture)))
    monkeypatch.setattr(heads, "_CHUNK_VALUES", 3 * VOCABULARY)
    sizes: list[int] = []
    logits = head.logits

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(hidden.shape[0])
        return logits(hidden)

    hidden = torch.randn(8, 16, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (8,))
    expected = F.cross_entropy(head.logits(hidden), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(2.0 * expected, hidden)
    monkeypatch.setattr(head, "logits", spy)
    loss = chunked_cross_entropy(hidden, targets, head)
    (seen,) = torch.autograd.grad(2.0 * loss, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(seen, gradient)
    assert sizes == [3, 3, 2]


def test_no_rows() -> None:
    """Without a counted token the loss is zero and still differentiable."""
    head = FrozenHead.from_bytes(export_lm_head(tiny_model("llama")))
    hidden = torch.zeros(0, 16, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.zeros(0, dtype=torch.int64), head)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
