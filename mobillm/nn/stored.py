"""Where the layers of a model lie in its checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .layers import Parts
from .skeleton import layer_prefixes

__all__ = ["StoredLayers"]


@dataclasses.dataclass(frozen=True, slots=True)
class StoredLayers:
    """The layers of a model on the disk.

    Attributes:
        names: for each parameter of each layer its name in the checkpoint.
        checkpoint: where the weights are.

    """

    names: Sequence[Mapping[str, str]]
    checkpoint: Checkpoint

    @classmethod
    def find(cls, model: nn.Module, parts: Parts, names: Mapping[str, str], checkpoint: Checkpoint) -> Self:
        """Return the layers of a model.

        Args:
            model: may be on the meta device.
            parts: of the model.
            names: for each parameter of the model its name in the checkpoint.
            checkpoint: where the weights are.

        """
        prefixes = layer_prefixes(model, parts)
        found = [
            {own: names[f"{prefix}.{own}"] for own, _ in layer.named_parameters()}
            for prefix, layer in zip(prefixes, parts.layers, strict=True)
        ]
        return cls(found, checkpoint)

    def values(self, layer: int) -> int:
        """Return how many weights a layer has."""
        return sum(math.prod(self.checkpoint.shape(name)) for name in self.names[layer].values())

    def read(self, layer: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read a layer's weights into memory of their own, by their names in the layer.

        Args:
            layer: its number, from 0.
            dtype: of the result.

        Raises:
            ModelError: the weights cannot be read.
            OSError: the same.

        """
        found = {}
        for own, name in self.names[layer].items():
            found[own] = torch.empty(self.checkpoint.shape(name), dtype=dtype)
            self.checkpoint.read(name, found[own])
        return found
