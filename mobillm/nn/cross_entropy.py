"""Next-token cross entropy over a large vocabulary, a chunk of tokens at a time."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .heads import FrozenHead

__all__ = ["IGNORED", "chunked_cross_entropy"]

IGNORED = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies whose gradient is computed together with the value.

    The head is frozen, so the only gradient is that of the hidden states, ``[R, d]``; no logits
    survive their chunk and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: FrozenHead) -> Tensor:
        rows = head.rows
        total = hidden.new_zeros(())
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            with torch.enable_grad():
                piece = hidden[part].detach().requires_grad_(wanted)
                loss = functional.cross_entropy(head.logits(piece), targets[part], reduction="sum")
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(loss, piece)
            total += loss.detach()
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, None, None]:
        gradient = ctx.gradient
        return (None if gradient is None else gradient * outputs[0]), None, None


def chunked_cross_entropy(hidden: Tensor, targets: Tensor, head: FrozenHead) -> Tensor:
    """Sum the cross entropy of next-token targets under a frozen head.

    Args:
        hidden: ``[R, d]`` normalised hidden states, the input of ``head.logits``.
        targets: ``[R]`` int64 token ids; none of them ignored.
        head: the frozen LM head.

    Returns:
        a scalar that can be differentiated with respect to ``hidden``.

    """
    apply = cast(Any, _ChunkedCrossEntropy.apply)
    return cast(Tensor, apply(hidden, targets, head))
