"""The decoder layer of Llama and Qwen2, with few passes over hidden states in training.

It computes what transformers' layers compute, and its modules have their names. Autograd makes the gradient
of a norm, a rotation or a gate in a dozen passes over the hidden states; here it takes three or four.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import LoRALinear, products
from .ragged import Padding
from .ragged_attention import attend

__all__ = ["RMSNorm", "RotaryLayer"]


class RMSNorm(nn.Module):
    """Each row divided by its root mean square, times a frozen weight (arXiv 1910.07467).

    Args:
        width: of a row.
        eps: added to the mean square.

    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., width]`` to the same shape and type; it is computed in fp32 up to the weight."""
        out: Tensor = cast(Any, _Normed).apply(values, self.weight.detach(), self._eps)
        return out


class RotaryLayer(nn.Module):
    """Pre-norm attention with rotary positions (RoPE, arXiv 2104.09864), then a gated MLP (arXiv 2002.05202).

    Its linear layers are to be replaced by :class:`~mobillm.nn.lora.LoRALinear` before it runs.

    Args:
        width: of the hidden states.
        inner: of the MLP.
        heads: of the queries; divides ``width``.
        kv_heads: of keys and values; divides ``heads``.
        eps: of the norms.
        bias: whether query, key and value projections have one.
        number: among the layers above the tap, from 0.

    """

    def __init__(
        self, *, width: int, inner: int, heads: int, kv_heads: int, eps: float, bias: bool, number: int
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = _Attention(width, heads, kv_heads, bias, number)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = _GatedMLP(width, inner)

    def forward(self, hidden: Tensor, *, rows: Tensor | None = None, **named: Any) -> Tensor:
        """Map hidden states to those after the layer.

        Args:
            hidden: ``[1, N, width]``.
            rows: ``[R]`` distinct ones that are wanted; None for all.
            named: what attention takes.

        Returns:
            ``[1, N, width]``, or ``[1, R, width]``.

        """
        mixed = self.self_attn(self.input_layernorm(hidden), rows=rows, **named)
        hidden = (hidden if rows is None else hidden[:, rows]) + mixed
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool, number: int) -> None:
        super().__init__()
        self._size, self._number = width // heads, number
        self.q_proj: nn.Module = nn.Linear(width, heads * self._size, bias=bias)
        self.k_proj: nn.Module = nn.Linear(width, kv_heads * self._size, bias=bias)
        self.v_proj: nn.Module = nn.Linear(width, kv_heads * self._size, bias=bias)
        self.o_proj: nn.Module = nn.Linear(heads * self._size, width, bias=False)

    def forward(
        self,
        hidden: Tensor,
        *,
        rows: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        layout: Padding | None,
        past_key_values: Any = None,
    ) -> Tensor:
        if rows is None:
            found = _of_same(hidden, self.q_proj, self.k_proj, self.v_proj)
        else:  # the queries of the other rows may be anything
            some = self.q_proj(hidden[:, rows])
            query = some.new_zeros(1, hidden.shape[1], some.shape[2]).index_copy(1, rows, some)
            found = (query, *_of_same(hidden, self.k_proj, self.v_proj))
        query, key, value = (
            each.reshape(*each.shape[:-1], each.shape[-1] // self._size, self._size) for each in found
        )  # [1, N, heads, size]
        cosines, sines = (each[:, :, None] for each in position_embeddings)
        query, key = (cast(Any, _Rotated).apply(each, cosines, sines) for each in (query, key))
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self._number)
        mixed = attend(query, key, value, layout).flatten(2)
        out: Tensor = self.o_proj(mixed if rows is None else mixed[:, rows])
        return out


class _GatedMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj: nn.Module = nn.Linear(width, inner, bias=False)
        self.up_proj: nn.Module = nn.Linear(width, inner, bias=False)
        self.down_proj: nn.Module = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = _of_same(hidden, self.gate_proj, self.up_proj)
        out: Tensor = self.down_proj(cast(Any, _Gated).apply(gate, up))
        return out


def _of_same(values: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    return products(values, cast("tuple[LoRALinear, ...]", layers))


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = values.float()
        inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return weight * normed.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normed, inverse, weight = ctx.saved_tensors
        weighted = (gradient * weight).float()
        along = (weighted * normed).mean(-1, keepdim=True)
        return weighted.addcmul_(normed, along, value=-1).mul_(inverse).to(gradient.dtype), None, None


class _Rotated(torch.autograd.Function):
    """Pairs of a head's two halves turned by an angle; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.turn = cosines, sines
        return _turned(values, cosines, sines, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.turn
        return _turned(gradient, cosines, sines, -1.0), None, None


def _turned(values: Tensor, cosines: Tensor, sines: Tensor, way: float) -> Tensor:
    turned = values * cosines
    (first, second), (sine, _) = values.chunk(2, -1), sines.chunk(2, -1)
    of_first, of_second = turned.chunk(2, -1)
    of_first.addcmul_(second, sine, value=-way)
    of_second.addcmul_(first, sine, value=way)
    return turned


class _Gated(torch.autograd.Function):
    """``silu(gate) * up``, without the product of the forward pass kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate: Tensor = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, F.silu(gate).mul_(gradient)
