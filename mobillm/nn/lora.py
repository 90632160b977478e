"""LoRA: trained low-rank matrices beside frozen linear layers (arXiv 2106.09685)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import SCALE

__all__ = ["LoRALinear"]


class LoRALinear(nn.Module):
    """A frozen linear layer and two trained matrices: ``x W' + b + SCALE (x A') B'``.

    A is drawn as PEFT draws it, B is zero, so it starts as the frozen layer. A and B are held in fp32.
    Computing is in the type of ``x``; a frozen layer of another type is copied to it for each product.

    Args:
        frozen: the layer; its parameters are used, not copied.
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
        low = F.linear(values, self.lora_A.to(values.dtype))
        added = F.linear(low, self.lora_B.to(values.dtype))
        return torch.add(self._product(values), added, alpha=SCALE)

    def _product(self, values: Tensor) -> Tensor:
        weight, bias = self.frozen.weight, self.frozen.bias
        if weight.dtype == values.dtype:
            return F.linear(values, weight, bias)
        product: Tensor = cast(Any, _Widened).apply(values, weight, bias)
        return product


class _Widened(torch.autograd.Function):
    """Multiply by a frozen matrix in the type of the values; autograd alone would keep the wide copy."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        dtype = values.dtype
        return F.linear(values, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight.to(gradient.dtype), None, None
