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
        weight, bias = self.frozen.weight, self.frozen.bias
        out: Tensor = cast(Any, _Product).apply(values, weight, bias, self.lora_A, self.lora_B)
        return out


class _Product(torch.autograd.Function):
    """The whole product as one step.

    Autograd alone would keep a wide copy of the frozen matrix, and pass over outputs and gradients several
    times more: what is added by the small matrices is summed into them here as it is made.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
    ) -> Tensor:
        dtype = values.dtype
        rows = values.reshape(-1, values.shape[-1])
        low = F.linear(rows, down.to(dtype))
        out = F.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
        out.addmm_(low, up.to(dtype).t(), alpha=SCALE)
        ctx.weight = weight
        ctx.save_for_backward(rows, low, down, up)
        return out.reshape(*values.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        rows, low, down, up = ctx.saved_tensors
        dtype = gradient.dtype
        into = gradient.reshape(-1, gradient.shape[-1])
        through = (into @ up.to(dtype)).mul_(SCALE)
        # In the order in which the longer side of the small matrices' gradients stays contiguous.
        of_up = (low.t() @ into).mul_(SCALE).t()
        of_down = through.t() @ rows
        of_values = None
        if ctx.needs_input_grad[0]:
            of_values = (into @ ctx.weight.to(dtype)).addmm_(through, down.to(dtype))
            of_values = of_values.reshape(*gradient.shape[:-1], rows.shape[-1])
        return of_values, None, None, of_down.to(down.dtype), of_up.to(up.dtype)
