"""One optimizer step of several sessions whose networks have one shape, see :mod:`mobillm.nn.grouped`.

Only forward and backward pass are common. Clipping, AdamW, averages, learning rate and counts are each
session's own, as alone, and so is all its state: nothing of a group is left when the step is done.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import ParamSpec

import torch
from torch import Tensor

from ..nn.grouped import Group, Item, can_group
from ..spec import SessionSpec
from .batch import Batch
from .trainer import Trainer

__all__ = ["Grid", "fits", "shape_of", "step_together"]

P = ParamSpec("P")

# Where a step is more arithmetic than calls of operators nothing is gained. As measured
# (``benchmarks/grouped.py``), most values of the ladder's stream of one session and of all, with padding:
NARROW = 1 << 14
NARROW_TOGETHER = 1 << 16
# Values of the taps of all sessions: they are held unpacked until the step is done.
WIDE_TOGETHER = 1 << 24
WASTE = 1.5  # places of the common grid over places of each session's own


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """What a batch takes.

    Attributes:
        sessions: how many batches.
        samples: of the batch with most.
        longest: tokens of the longest sample.
        own: places of each batch in a grid of its own, summed.
        tokens: of all batches, without padding.

    """

    sessions: int
    samples: int
    longest: int
    own: int
    tokens: int

    @classmethod
    def of(cls, parts: Sequence[Batch]) -> Grid:
        """Return what the parts of one batch take."""
        lengths = [length for part in parts for length in part.lengths()]
        return cls(1, len(lengths), max(lengths), len(lengths) * max(lengths), sum(lengths))

    def __or__(self, other: Grid) -> Grid:
        """Return what both take together."""
        return Grid(
            self.sessions + other.sessions,
            max(self.samples, other.samples),
            max(self.longest, other.longest),
            self.own + other.own,
            self.tokens + other.tokens,
        )

    @property
    def places(self) -> int:
        """Places of the common grid."""
        return self.sessions * self.samples * self.longest


def shape_of(spec: SessionSpec, device: str) -> Hashable:
    """Return what sessions must have in common to be trained together; None: this one is trained alone.

    That is all that the sizes of their tensors and the operators follow from. Names, seeds, layers that are
    tapped, formats, and the optimizer with its schedule may differ.
    """
    if not can_group(spec):
        return None
    return spec.task, spec.outputs, spec.model.hidden_size, len(spec.model.taps), spec.side, device


def fits(spec: SessionSpec, grid: Grid) -> bool:
    """Tell whether it is faster to take a step together than one by one."""
    narrow = grid.places * spec.side.width
    wide = grid.tokens * len(spec.model.taps) * spec.model.hidden_size
    return (
        narrow <= min(NARROW * grid.sessions, NARROW_TOGETHER)
        and wide <= WIDE_TOGETHER
        and grid.places <= WASTE * grid.own
    )


def step_together(
    trainers: Sequence[Trainer], batches: Sequence[Sequence[Batch]]
) -> list[float | Exception | None]:
    """Take one optimizer step of each session.

    Args:
        trainers: sessions of one shape, see :func:`shape_of`.
        batches: the parts of one batch of each, as :meth:`Trainer.step` takes them.

    Returns:
        for each what its step alone returns or raises: a loss differs by rounding, an error of one does
        not reach the others.

    """
    try:
        losses, gradients = _gradients(trainers, batches)
    except Exception:  # nothing has changed; whose it is shows when each tries alone
        return [_tried(trainer.step, *parts) for trainer, parts in zip(trainers, batches, strict=True)]
    return [
        _tried(trainer.apply, loss, gradient if math.isfinite(loss) else None)
        for trainer, loss, gradient in zip(trainers, losses, gradients, strict=True)
    ]


def _tried(work: Callable[P, float | None], *args: P.args, **kwargs: P.kwargs) -> float | Exception | None:
    try:
        return work(*args, **kwargs)
    except Exception as exc:
        return exc


def _gradients(
    trainers: Sequence[Trainer], batches: Sequence[Sequence[Batch]]
) -> tuple[list[float], list[Tensor]]:
    items = []
    for trainer, parts in zip(trainers, batches, strict=True):
        trainer.network.begin_step(trainer.steps)
        items.append(Item(trainer.network, *trainer.unpack(parts)))
    group = Group(items)
    weights = [trainer.trained for trainer in trainers]
    # The projections of the taps come first, and are most of all weights: they are used where they are.
    down = [one.values[: group.wide].view(group.down).requires_grad_() for one in weights]
    rest = torch.stack([one.values[group.wide :] for one in weights]).requires_grad_()
    losses = group.losses(down, weights[0].split(rest))
    *first, second = torch.autograd.grad(losses.sum(), [*down, rest])
    gradients = [torch.cat((one.flatten(), two)) for one, two in zip(first, second, strict=True)]
    return losses.tolist(), gradients
