"""The trained weights of a session with their moments and averages, each in one piece of memory.

A step then clips, updates and averages two vectors, not a hundred small tensors; and the weights of several
sessions can be put side by side with one copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..spec import OptimizerSpec

__all__ = ["Weights"]


class Weights:
    """What an optimizer step changes.

    The given parameters become views of one vector: matrices first, as only they decay, else in their order.

    Args:
        parameters: those that are trained, by name.
        spec: the optimizer.

    Attributes:
        values: all weights, ``[P]``.
        average: their moving average; None when the spec asks for none.

    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec) -> None:
        self._spec = spec
        names = sorted(parameters, key=lambda name: parameters[name].ndim < 2)
        self._parameters = {name: parameters[name] for name in names}
        self._ends = list(itertools.accumulate(p.numel() for p in self._parameters.values()))
        self.values = torch.cat([p.detach().flatten() for p in self._parameters.values()])
        for name, piece in self.named(self.values).items():
            parameters[name].data = piece
        matrices = sum(p.numel() for p in self._parameters.values() if p.ndim >= 2)
        decays = (spec.weight_decay, 0.0)
        regions = zip(self.values.tensor_split([matrices]), decays, strict=True)
        kept = [(nn.Parameter(region), decay) for region, decay in regions if region.numel()]
        self._regions = [region for region, _ in kept]
        self._sizes = [region.numel() for region in self._regions]
        groups = [{"params": [region], "weight_decay": decay} for region, decay in kept]
        self._optimizer = torch.optim.AdamW(groups, lr=spec.lr, fused=True)
        self.average = self.values.clone() if spec.ema else None

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """Return the views of a vector of all weights, or of something for each of them, by name."""
        pieces = values.tensor_split(self._ends[:-1])
        return {
            name: piece.view(p.shape)
            for (name, p), piece in zip(self._parameters.items(), pieces, strict=True)
        }

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Split the ends of several such vectors, ``[G, n]`` for the last n weights; each ``[G, ...]``."""
        start = self.values.numel() - rows.shape[1]
        own = [n for n, end in zip(self._parameters, self._ends, strict=True) if end > start]
        pieces = torch.split(rows, [self._parameters[name].numel() for name in own], 1)
        shapes = (self._parameters[name].shape for name in own)
        return {n: piece.view(-1, *shape) for n, piece, shape in zip(own, pieces, shapes, strict=True)}

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in their order."""
        return list(self._parameters)

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the opposite of :meth:`named`.

        Raises:
            ValueError: a tensor has another shape than its parameter.

        """
        for name, parameter in self._parameters.items():
            if tensors[name].shape != parameter.shape:
                seen, expected = list(tensors[name].shape), list(parameter.shape)
                raise ValueError(f"{name} is {seen}, not {expected}")
        return torch.cat([tensors[name].flatten() for name in self._parameters])

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of a loss, ``[P]``."""
        parts = torch.autograd.grad(loss, list(self._parameters.values()), materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    def update(self, gradient: Tensor, lr: float) -> bool:
        """Clip a gradient and take a step of AdamW.

        Args:
            gradient: ``[P]``; it is changed.
            lr: learning rate.

        Returns:
            whether the gradient was finite; else nothing is changed.

        """
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            return False
        if self._spec.clip and norm > self._spec.clip:
            gradient.mul_(self._spec.clip / norm)
        pieces = torch.split(gradient, self._sizes)
        for group, region, piece in zip(self._optimizer.param_groups, self._regions, pieces, strict=True):
            group["lr"] = lr
            region.grad = piece
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def update_average(self, steps: int) -> None:
        """Move the average, if there is one, towards the weights after so many steps."""
        if self.average is not None:
            # A short memory first: otherwise the average would remember the initial weights for long.
            decay = min(self._spec.ema, (1 + steps) / (10 + steps))
            self.average.lerp_(self.values, 1.0 - decay)

    def moments(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the first and second moments ``[P]`` and how many updates they hold; None before any."""
        states = [self._optimizer.state[region] for region in self._regions]
        if not all(states):
            return None
        first, second = (torch.cat([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        return first, second, states[0]["step"]

    def set_moments(self, first: Tensor, second: Tensor, count: Tensor) -> None:
        """Go on with what :meth:`moments` has returned."""
        parts = zip(
            self._regions, torch.split(first, self._sizes), torch.split(second, self._sizes), strict=True
        )
        for region, one, two in parts:
            self._optimizer.state[region] = {
                "step": count.to(self.values.device, copy=True),
                "exp_avg": one.to(self.values.device, copy=True),
                "exp_avg_sq": two.to(self.values.device, copy=True),
            }
