"""Tests of the ragged layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.errors import ConfigError
from mobillm.nn.ragged import Ragged


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_padding_round_trip(lengths: list[int]) -> None:
    """Padding and unpadding are inverse, samples lie at the left, and the rest is zero."""
    layout = Ragged(torch.tensor(lengths))
    values = torch.arange(1.0, sum(lengths) * 2 + 1).view(-1, 2)
    padded = layout.pad(values)
    assert padded.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(layout.unpad(padded), values)
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :length], values[start : start + length])
        assert not padded[row, length:].any()
        assert torch.equal(layout.pool(values, "first")[row], values[start])
        assert torch.equal(layout.pool(values, "last")[row], values[start + length - 1])
        torch.testing.assert_close(layout.pool(values, "mean")[row], values[start : start + length].mean(0))
        start += length


@pytest.mark.parametrize(
    "lengths", [torch.tensor([2, 0]), torch.tensor([1.0]), torch.zeros(0, dtype=torch.int64)]
)
def test_bad_lengths(lengths: torch.Tensor) -> None:
    """Empty batches, empty samples and other types are refused."""
    with pytest.raises(ConfigError, match="lengths"):
        Ragged(lengths)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 40]), min_size=1, max_size=12))
def test_samples_of_similar_length_together(lengths: list[int]) -> None:
    """What is done apart is what is done together, and never are there many positions for each token."""
    layout = Ragged(torch.tensor(lengths))
    values = torch.arange(1.0, sum(lengths) + 1)[:, None]
    places: list[int] = []

    def sums(part: Ragged, *each: torch.Tensor) -> torch.Tensor:
        places.append(part.samples * part.longest)
        first, second = (part.pad(value) for value in each)
        return part.unpad(first.cumsum(1) + second)

    found = layout.apart(sums, values, 2 * values)
    expected = torch.cat([each.cumsum(0) + 2 * each for each in torch.split(values, lengths)])
    assert torch.equal(found, expected)
    assert sum(places) <= 4 * layout.tokens


def test_one_long_sample_among_many() -> None:
    """Attention costs what the samples hold, not the longest of them for each."""
    layout = Ragged(torch.tensor([3000] + [1] * 3000))
    places: list[int] = []

    def work(part: Ragged, values: torch.Tensor) -> torch.Tensor:
        places.append(part.samples * part.longest)
        return values

    assert torch.equal(layout.apart(work, torch.arange(6000)), torch.arange(6000))
    assert places == [3000, 3000]
