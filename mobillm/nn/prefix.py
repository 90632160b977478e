"""Samples that begin alike: what they share is computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from .ragged import Ragged

__all__ = ["SharedPrefix"]


class SharedPrefix:
    """The layout of a batch whose samples have the same rows at their start, which are held once.

    A start token or the words of a template are such rows. Under causal attention what a layer makes of them
    depends on nothing that comes later, so it is the same in each sample. A tensor of this layout is
    ``[U, ...]``: the shared rows, then the other rows of each sample in turn.

    Args:
        layout: the ragged layout, of more than one sample.
        shared: rows that are shared, less than the shortest sample has.

    Attributes:
        kept: ``[U]`` rows of the ragged form that are held.
        held: ``[N]`` which of these each row of the ragged form is.

    """

    def __init__(self, layout: Ragged, shared: int) -> None:
        self._shared, self._samples = shared, layout.samples
        self._rest = Ragged(layout.lengths - shared)
        places = layout.places()
        later = places >= shared
        device = layout.lengths.device
        self.kept = torch.cat((torch.arange(shared, device=device), later.nonzero().squeeze(1)))
        self.held = torch.where(later, later.cumsum(0) - 1 + shared, places)

    @classmethod
    def of(cls, values: Tensor, layout: Ragged) -> Self | None:
        """Return the layout of samples that begin alike, or None where they do not.

        Args:
            values: ragged ``[N, d]``.
            layout: of the values; where it takes samples apart there is no other.

        """
        if layout.samples == 1 or layout.wasteful:
            return None
        most = int(layout.lengths.min()) - 1
        rows = layout.starts[:, None] + torch.arange(most, device=values.device)
        starts = values[rows]  # [B, most, d]
        alike = (starts == starts[:1]).flatten(2).all(2).all(0)
        shared = int(alike.long().cumprod(0).sum())
        return cls(layout, shared) if shared else None

    def pad(self, values: Tensor) -> Tensor:
        """Spread ``[U, ...]`` values to ``[B, T, ...]``, as :meth:`Ragged.pad` does."""
        # Not by index: on a GPU the sum of a shared row's gradients would then depend on chance.
        shared = values[: self._shared].expand(self._samples, *(-1,) * values.dim())
        return torch.cat((shared, self._rest.pad(values[self._shared :])), 1)

    def unpad(self, values: Tensor) -> Tensor:
        """Gather padded ``[B, T, ...]`` values to ``[U, ...]``."""
        return torch.cat((values[0, : self._shared], self._rest.unpad(values[:, self._shared :])))

    def apart(self, work: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Do what pads, with all samples together."""
        return work(self, *values)
