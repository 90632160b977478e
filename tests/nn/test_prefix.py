"""Tests of samples that begin alike; the ragged layout is the oracle."""

from __future__ import annotations

import pytest
import torch

from mobillm.nn.prefix import SharedPrefix
from mobillm.nn.ragged import Ragged


def ragged(samples: list[list[float]]) -> tuple[torch.Tensor, Ragged]:
    """Return rows of two channels, each value and its negative, and their layout."""
    values = torch.tensor([value for sample in samples for value in sample])
    return torch.stack((values, -values), 1), Ragged(torch.tensor([len(sample) for sample in samples]))


def of(samples: list[list[float]]) -> SharedPrefix:
    """Return the layout of samples that begin alike."""
    found = SharedPrefix.of(*ragged(samples))
    assert found is not None
    return found


def test_what_is_shared_is_held_once() -> None:
    """Rows are the shared ones, then the others of each sample; every ragged row is one of them."""
    samples = [[5.0, 6.0, 1.0], [5.0, 6.0, 7.0, 8.0], [5.0, 6.0, 1.0]]
    values, layout = ragged(samples)
    shared = of(samples)
    held = values[shared.kept]
    assert held[:, 0].tolist() == [5.0, 6.0, 1.0, 7.0, 8.0, 1.0]
    assert torch.equal(held[shared.held], values)
    assert torch.equal(shared.pad(held), layout.pad(values))
    assert torch.equal(shared.unpad(shared.pad(held)), held)
    assert torch.equal(shared.apart(lambda part, rows: part.unpad(part.pad(rows) + 1), held), held + 1)


def test_rows_after_one_that_differs() -> None:
    """They are not shared, whatever they are: what came before them is not the same."""
    assert len(of([[5.0, 1.0, 7.0, 9.0], [5.0, 2.0, 7.0, 8.0]]).kept) == 1 + 3 + 3


def test_gradients_of_shared_rows_are_summed() -> None:
    """A shared row gets what it would get in all samples."""
    samples = [[5.0, 1.0], [5.0, 7.0, 8.0]]
    values, layout = ragged(samples)
    weights = torch.randn(2, 3, 2)
    values.requires_grad_()
    (layout.pad(values) * weights).sum().backward()  # type: ignore[no-untyped-call]
    shared = of(samples)
    held = values.detach()[shared.kept].requires_grad_()
    (shared.pad(held) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert held.grad is not None
    torch.testing.assert_close(held.grad[0], values.grad[0] + values.grad[2])
    torch.testing.assert_close(held.grad[1:], values.grad[[1, 3, 4]])


@pytest.mark.parametrize(
    "samples",
    [
        [[5.0, 1.0], [6.0, 1.0]],
        [[5.0], [5.0, 6.0]],  # a sample has a row of its own at least
        [[5.0, 6.0, 7.0]],
        [[float("nan"), 1.0], [float("nan"), 2.0]],
        [[1.0, 2.0], *([[1.0, 3.0]] * 8), [1.0] * 100],  # these are taken apart
        [[5.0, 1.0], [5.0, 2.0], [4.0, 1.0]],
    ],
    ids=["different", "one row", "one sample", "NaN", "apart", "all but one"],
)
def test_samples_that_do_not_begin_alike(samples: list[list[float]]) -> None:
    """Then there is no such layout."""
    assert SharedPrefix.of(*ragged(samples)) is None


def test_rows_that_differ_in_one_channel() -> None:
    """Every channel counts."""
    values = torch.zeros(4, 8)
    layout = Ragged(torch.tensor([2, 2]))
    assert SharedPrefix.of(values, layout) is not None
    values[2, 7] = 1e-6
    assert SharedPrefix.of(values, layout) is None
