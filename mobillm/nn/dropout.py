"""Dropout whose masks are a function of a seed and a step number, not of the process's random state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Dropout", "MaskSource", "kept"]

_MIX = 0x9E3779B97F4A7C15  # odd constant of splitmix64: neighbouring steps get unrelated seeds
_LEVELS = 1 << 16  # a value is kept or not by 16 random bits; a float for each takes three times as long


def kept(dropout: float) -> float:
    """Return the part of values that is kept, a multiple of 2**-16 above 0."""
    return max(1, round((1.0 - dropout) * _LEVELS)) / _LEVELS


class MaskSource:
    """Random masks for all dropout layers of one network.

    Args:
        seed: of the network; two networks with the same seed and step draw the same masks on the same kind of
            device.

    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start the masks of optimizer step ``step`` anew, whatever was drawn before."""
        self._step = step
        self._bits: np.random.PCG64DXSM | None = None
        self._generator: torch.Generator | None = None

    def keep(self, like: Tensor, probability: float) -> Tensor:
        """Draw a boolean mask of ``like``'s shape that is true with ``probability``, as of :func:`kept`."""
        return self.keep_all([like.numel()], probability, like.device).view(like.shape)

    def keep_all(self, sizes: Sequence[int], probability: float, device: torch.device) -> Tensor:
        """Draw what :meth:`keep` would draw for so many values each, one after the other; in one vector."""
        if device.type != "cpu":  # drawn where they are needed
            return torch.cat([self._floats(size, device) < probability for size in sizes])
        drawn = np.concatenate([self._words(size) for size in sizes])
        return torch.from_numpy(drawn) <= int(probability * _LEVELS) - _LEVELS // 2 - 1

    def _words(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        if self._bits is None:
            self._bits = np.random.PCG64DXSM([self._seed, self._step])
        words: np.ndarray[tuple[int], np.dtype[np.uint64]] = self._bits.random_raw((size + 3) // 4)
        return words.astype("<u8", copy=False).view("<i2")[:size]

    def _floats(self, size: int, device: torch.device) -> Tensor:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
            self._generator.manual_seed((self._seed + (self._step + 1) * _MIX) % (1 << 63))
        return torch.rand(size, generator=self._generator, device=device)


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
        keep = kept(self._probability)
        return values * self._source.keep(values, keep) / keep
