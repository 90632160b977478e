"""LoRA: trained low-rank matrices beside frozen linear layers (arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import SCALE

__all__ = ["LoRALinear"]


class LoRALinear(nn.Module):
    """A frozen linear layer and two trained matrices: ``x W' + b + SCALE (x A') B'``.

    A is drawn as PEFT draws it, B is zero, so it starts as the frozen layer. A and B are held in fp32 and
    computed with in the type of ``x``.

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
        out: Tensor = torch.add(self.frozen(values), added, alpha=SCALE)
        return out
