"""Two layers' worth of memory for all layers of a model: one computes while the next one is read."""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Any

import torch
from torch import Tensor, nn

from .stored import StoredLayers

__all__ = ["LayerStore"]

_ALIGNMENT = 64  # bytes; as torch's own allocations, so that the same kernels run on the same addresses


class LayerStore:
    """Keep the layers of a model on the disk.

    The parameters of layer *i* are views into buffer *i* mod 2. :meth:`bring` fills the buffer with the
    layer's weights; the layer before it keeps its own until the next but one is brought.

    Args:
        layers: the layers, their parameters on the meta device.
        stored: where their weights are.

    Attributes:
        depth: how many layers are run; after the last of them comes the first again.
        reads: how many layers were read.

    """

    def __init__(self, layers: nn.ModuleList, stored: StoredLayers) -> None:
        self.depth = len(layers)
        self.reads = 0
        self._stored = stored
        sizes = [sum(_room(p) for p in layer.parameters()) for layer in layers]
        room = max(sizes) + _ALIGNMENT
        buffers = [torch.empty(room, dtype=torch.uint8) for _ in range(min(2, len(layers)))]
        self._targets: list[dict[str, Tensor]] = []
        for number, layer in enumerate(layers):
            buffer = buffers[number % 2]
            at = -buffer.data_ptr() % _ALIGNMENT
            targets = {}
            for name, parameter in list(layer.named_parameters()):
                view = buffer[at : at + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
                at += _room(parameter)
                place, _, leaf = name.rpartition(".")
                layer.get_submodule(place)._parameters[leaf] = nn.Parameter(view, requires_grad=False)
                targets[stored.names[number][name]] = view
            self._targets.append(targets)
            layer.register_forward_pre_hook(functools.partial(self._before, number))
        self._held: list[int | None] = [None] * len(buffers)
        self._coming: tuple[int, concurrent.futures.Future[None]] | None = None
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "mobillm-weights")

    @property
    def nbytes(self) -> int:
        """Bytes of all layers on the disk, in the type in which they are held."""
        return sum(view.nbytes for targets in self._targets for view in targets.values())

    def bring(self, layer: int) -> None:
        """Wait until a layer's weights are there, and begin to read the next one's.

        The layer that was brought before must have finished computing.

        Args:
            layer: its number, from 0.

        Raises:
            ModelError: the weights cannot be read.
            OSError: the same.

        """
        if self._held[layer % 2] == layer:
            return
        if self._coming is not None:
            (number, reading), self._coming = self._coming, None
            reading.result()
            self._held[number % 2] = number
        if self._held[layer % 2] != layer:
            self._held[layer % 2] = None
            self.reads += 1
            self._read(layer)
            self._held[layer % 2] = layer
        following = (layer + 1) % self.depth
        if following % 2 != layer % 2 and self._held[following % 2] != following:
            self._held[following % 2] = None
            self.reads += 1
            self._coming = following, self._reader.submit(self._read, following)

    def _before(self, layer: int, *_: Any) -> None:
        self.bring(layer)

    def _read(self, layer: int) -> None:
        for name, target in self._targets[layer].items():
            self._stored.checkpoint.read(name, target)


def _room(parameter: Tensor) -> int:
    """Return the bytes of a parameter, up to the next multiple of the alignment."""
    return -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
