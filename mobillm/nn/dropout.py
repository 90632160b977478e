"""Dropout whose masks are a function of a seed and a step number, not of the process's random state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "MaskSource"]

_MIX = 0x9E3779B97F4A7C15  # odd constant of splitmix64: neighbouring steps get unrelated seeds


class MaskSource:
    """Random numbers for all dropout layers of one network.

    Args:
        seed: of the network; two networks with the same seed and step draw the same masks.

    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._generator: torch.Generator | None = None

    def begin(self, step: int) -> None:
        """Start the masks of optimizer step ``step`` anew, whatever was drawn before."""
        self._step = step
        self._generator = None

    def keep(self, like: Tensor, probability: float) -> Tensor:
        """Draw a boolean mask of ``like``'s shape that is true with ``probability``."""
        return self._draw(like.shape, like.device) < probability

    def keep_all(self, sizes: Sequence[int], probability: float, device: torch.device) -> Tensor:
        """Draw what :meth:`keep` would draw for so many values each, one after the other; in one vector."""
        # A CPU's generator gives the same numbers however many are drawn at a time.
        drawn = [sum(sizes)] if device.type == "cpu" else sizes
        return torch.cat([self._draw((size,), device) < probability for size in drawn])

    def _draw(self, shape: Sequence[int], device: torch.device) -> Tensor:
        generator = self._generator
        if generator is None or generator.device != device:
            generator = torch.Generator(device)
            generator.manual_seed((self._seed + (self._step + 1) * _MIX) % (1 << 63))
            self._generator = generator
        return torch.rand(shape, generator=generator, device=device)


class Dropout(nn.Module):
    """Zero values in training with a given probability and scale up the others.

    Args:
        probability: of zeroing a value.
        source: where the masks come from.

    """

    def __init__(self, probability: float, source: MaskSource) -> None:
        super().__init__()
        self._probability = probability
        self._source = source

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` with dropout applied; unchanged in evaluation mode."""
        if not self.training or self._probability == 0.0:
            return values
        keep = 1.0 - self._probability
        return values * self._source.keep(values, keep) / keep
