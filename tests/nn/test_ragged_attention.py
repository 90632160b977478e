"""Tests of attention inside samples; attention written out for one sample is the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mobillm.nn.ragged import Ragged
from mobillm.nn.ragged_attention import attend

LENGTHS = torch.tensor([3, 1, 5])


def written_out(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend in one sample; each is ``[heads, T, size]``, queries are those of the last tokens."""
    scores = query @ key.transpose(1, 2) * scaling
    later = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool).triu(1)[-query.shape[1] :]
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, 0.1])
def test_samples_do_not_see_one_another(kv_heads: int, scaling: float | None) -> None:
    """Each sample's result is that of the sample alone, and a token sees none after it."""
    query = torch.randn(1, 4, 9, 8)
    key, value = (torch.randn(1, kv_heads, 9, 8) for _ in range(2))
    mixed = attend(query, key, value, Ragged(LENGTHS), scaling=scaling)
    assert mixed.shape == (1, 9, 4, 8)
    wide = [each[0].repeat_interleave(4 // kv_heads, 0) for each in (key, value)]
    for start, end in ((0, 3), (3, 4), (4, 9)):
        k, v = (each[:, start:end] for each in wide)
        expected = written_out(query[0, :, start:end], k, v, scaling or 8**-0.5)
        torch.testing.assert_close(mixed[0, start:end].transpose(0, 1), expected)


def test_queries_of_the_last_tokens() -> None:
    """Without a layout all keys are one sample's, and the queries are of its end."""
    query, key, value = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    k, v = (each[0].repeat_interleave(2, 0) for each in (key, value))
    mixed = attend(query, key, value, None)
    torch.testing.assert_close(mixed[0].transpose(0, 1), written_out(query[0], k, v, 8**-0.5))


def test_types() -> None:
    """What comes in bf16 leaves in bf16, also where the gradient is computed in fp32."""
    values = [torch.randn(1, 2, 9, 8).bfloat16().requires_grad_() for _ in range(3)]
    mixed = attend(values[0], values[1], values[2], Ragged(LENGTHS))
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.dtype == torch.bfloat16 for value in values)
