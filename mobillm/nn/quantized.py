"""Linear layers whose weights are held in 8 or 4 bits, on a CPU."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError
from .workspace import Workspace

__all__ = ["Int4Linear", "Int8Linear", "QuantizedLinear", "quantized_linear", "weight_of"]

# Without VNNI an x86 CPU adds two products of an unsigned and a signed byte in 16 bits, saturating:
# 2 * 255 * 64 still fits. The same on every CPU, so that a model gives the same codes everywhere.
_TOP = 64
_ZERO = 128  # unsigned code of an input that is zero
_GROUP = 32  # weights that share a scale in 4 bits, as in GGUF's Q4_1
_TINY = 1e-30


class QuantizedLinear(nn.Module):
    """A linear layer with weights in few bits.

    Attributes:
        in_features, out_features: as those of ``nn.Linear``.
        nbytes: bytes that its weights take; of one on the meta device those that they would take.

    """

    nbytes: int

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._bias = None if bias is None else bias.detach().float()

    def _with_bias(self, out: Tensor, like: Tensor) -> Tensor:
        """Return rows ``[N, out]`` with the bias, in the shape and type of the input."""
        if self._bias is not None:
            out += self._bias
        return out.view(*like.shape[:-1], self.out_features).to(like.dtype)


class Int8Linear(QuantizedLinear):
    """Weights in 8 bits with a scale for each output, multiplied as integers.

    Each row of the input is quantized by its own largest value, to 8 bits, and the weights to the integers
    from -64 to 64; products are summed up exactly, in 32 bits (oneDNN).

    Args:
        weight: floating ``[out, in]``; not kept. On the meta device nothing is computed.
        bias: ``[out]`` or None.

    Raises:
        ConfigError: this torch has no integer product of matrices.

    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.nbytes = weight.numel() + self.out_features * (4 + 8 + (0 if bias is None else 4))
        if weight.is_meta:
            return
        if not cast(Any, torch.backends).mkldnn.is_available():
            raise ConfigError("dtype", "int8", "bfloat16 or int4: this torch was built without oneDNN")
        weight = weight.float()
        self._scale = weight.abs().amax(1).clamp_min_(_TINY) / _TOP
        codes = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._packed = _onednn().qlinear_prepack(codes, None)
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]`` in the type of ``values``."""
        rows = values.reshape(-1, self.in_features).float()
        step = rows.abs().amax(1, keepdim=True).clamp_min_(_TINY) / 127
        codes = (rows / step).round_().add_(_ZERO).to(torch.uint8)
        # Input, its scale and zero; weights, theirs; bias; scale, zero and type of the output; what follows.
        out = _onednn().qlinear_pointwise(
            codes, 1.0, _ZERO, self._packed, self._scale, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return self._with_bias(out.mul_(step), values)


class Int4Linear(QuantizedLinear):
    """Weights in 4 bits with a scale and a smallest value for each group of 32, expanded when they are used.

    Args:
        weight: floating ``[out, in]``, ``in`` even; not kept. On the meta device nothing is computed.
        bias: ``[out]`` or None.
        workspace: memory for the expanded weights.

    """

    def __init__(self, weight: Tensor, bias: Tensor | None, workspace: Workspace) -> None:
        super().__init__(weight, bias)
        self._workspace = workspace
        self._groups = self.in_features // math.gcd(self.in_features, _GROUP)
        groups = self.out_features * self._groups
        self.nbytes = weight.numel() // 2 + groups * 4 + (0 if bias is None else self.out_features * 4)
        if weight.is_meta:
            return
        grouped = weight.float().view(self.out_features, self._groups, -1)
        low, high = grouped.aminmax(dim=2)
        # The codes are those for the rounded scale and smallest value, so that rounding adds no error.
        self._low = low.bfloat16()
        self._step = ((high - self._low.float()) / 15).clamp_min_(_TINY).bfloat16()
        codes = (grouped - self._low.float()[..., None]) / self._step.float()[..., None]
        flat = codes.round_().clamp_(0, 15).to(torch.uint8).view(self.out_features, self.in_features)
        first, second = flat.chunk(2, dim=1)
        self._codes = first | second << 4

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]`` in the type of ``values``."""
        rows = values.reshape(-1, self.in_features)
        return self._with_bias(F.linear(rows, self.expand(rows.dtype)), values)

    def expand(self, dtype: torch.dtype) -> Tensor:
        """Return the weights ``[out, in]`` in the workspace."""
        shape = self.out_features, self.in_features
        weight = self._workspace.take(shape[0] * shape[1], dtype).view(shape)
        first, second = weight.chunk(2, dim=1)
        first.copy_(self._codes & 15)
        second.copy_(self._codes >> 4)
        grouped = weight.view(self.out_features, self._groups, -1)
        grouped.mul_(self._step.to(dtype)[..., None]).add_(self._low.to(dtype)[..., None])
        return weight


def quantized_linear(weight: Tensor, bias: Tensor | None, bits: int, workspace: Workspace) -> QuantizedLinear:
    """Quantize the weights of a linear layer.

    Args:
        weight: floating ``[out, in]``.
        bias: ``[out]`` or None.
        bits: 8 or 4.
        workspace: for weights that are expanded.

    Raises:
        ConfigError: this torch cannot compute with them.

    """
    return Int8Linear(weight, bias) if bits == 8 else Int4Linear(weight, bias, workspace)


def weight_of(module: nn.Module, weight: Tensor) -> Tensor | None:
    """Return the weight ``[out, in]`` of a linear layer as it is stored; None for what is not quantized."""
    if isinstance(module, Conv1D):  # GPT-2's
        weight = weight.T.contiguous()
    elif not isinstance(module, nn.Linear):
        return None
    return weight if weight.shape[1] % 2 == 0 else None


def _onednn() -> Any:
    return cast(Any, torch.ops).onednn
