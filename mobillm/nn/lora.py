"""LoRA: trained low-rank matrices beside frozen linear layers (arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import SCALE

__all__ = ["LoRALinear", "products"]


class LoRALinear(nn.Module):
    """A frozen linear layer and two trained matrices: ``x W' + b + SCALE (x A') B'``.

    A is drawn as PEFT draws it, B is zero, so it starts as the frozen layer. A and B are held in fp32.
    Computing is in the type of ``x``; a frozen layer of another type is copied to it for each product.

    Args:
        frozen: the layer; its parameters are used, not copied, and get no gradients.
        rank: rows of A.

    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.lora_A = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.lora_B = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        (out,) = products(values, [self])
        return out


def products(values: Tensor, layers: Sequence[LoRALinear]) -> tuple[Tensor, ...]:
    """Return what each of some layers makes of the same values, as one step of autograd.

    Args:
        values: ``[..., in]``.
        layers: of one rank.

    Returns:
        ``[..., out]`` of each layer.

    """
    rows = values.reshape(-1, values.shape[-1])
    frozen = [layer.frozen for layer in layers]
    trained = [layer.lora_A for layer in layers] + [layer.lora_B for layer in layers]
    outs = cast(Any, _Products).apply(rows, frozen, *trained)
    return tuple(out.reshape(*values.shape[:-1], out.shape[-1]) for out in outs)


class _Products(torch.autograd.Function):
    """Products of the same rows with several layers.

    Autograd alone would keep a wide copy of each frozen matrix, and pass over outputs and gradients several
    times more: what is added by the small matrices is summed into them here as it is made, and all layers'
    small matrices that meet the rows do so as one.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, frozen: Sequence[nn.Linear], *trained: Tensor) -> tuple[Tensor, ...]:
        dtype = rows.dtype
        downs, ups = trained[: len(frozen)], trained[len(frozen) :]
        # Wide and low rather than narrow and high: BLAS is up to four times faster so.
        lows = torch.cat(downs).to(dtype) @ rows.t()
        outs = []
        for layer, low, up in zip(frozen, torch.split(lows, len(downs[0])), ups, strict=True):
            bias: Tensor | None = layer.bias
            out = F.linear(rows, layer.weight.to(dtype), None if bias is None else bias.to(dtype))
            outs.append(out.addmm_(low.t(), up.to(dtype).t(), alpha=SCALE))
        ctx.frozen = frozen
        ctx.save_for_backward(rows, lows, *trained)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, lows, *trained = ctx.saved_tensors
        downs, ups = trained[: len(gradients)], trained[len(gradients) :]
        dtype, rank = rows.dtype, len(downs[0])
        throughs = torch.empty_like(lows)
        of_ups = []
        parts = (torch.split(each, rank) for each in (lows, throughs))
        for gradient, low, through, up in zip(gradients, *parts, ups, strict=True):
            torch.mm(up.to(dtype).t(), gradient.t(), out=through)
            of_ups.append((low @ gradient).mul_(SCALE).t().to(up.dtype))
        of_downs = torch.split((throughs.mul_(SCALE) @ rows).to(downs[0].dtype), rank)
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = throughs.t() @ torch.cat(downs).to(dtype)
            for gradient, layer in zip(gradients, ctx.frozen, strict=True):
                of_rows.addmm_(gradient, layer.weight.to(dtype))
        return of_rows, None, *of_downs, *of_ups
