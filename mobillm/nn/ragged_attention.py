"""Causal attention inside each sample of a batch whose samples lie one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ragged import Padding

__all__ = ["attend"]


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Padding | None, *, scaling: float | None = None
) -> Tensor:
    """Mix values; key and value may have fewer heads, which divide the query's.

    Args:
        query: ``[1, heads, N, size]``.
        key: ``[1, heads, N, size]``.
        value: as ``key``.
        layout: which rows belong to which sample; None where all are one sample's, and the queries those of
            its last tokens.
        scaling: of the products; None is ``size ** -0.5``.

    Returns:
        ``[1, N, heads, size]``.

    """
    grouped = query.shape[1] != key.shape[1]
    if layout is None:
        steps = torch.arange(key.shape[2], device=key.device)
        mask = steps <= steps[key.shape[2] - query.shape[2] :, None]
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
        return mixed.transpose(1, 2)
    # On a CPU the backward pass of attention is four times slower in bf16 than in fp32.
    dtype = torch.float32 if query.requires_grad and query.device.type == "cpu" else query.dtype

    def padded(part: Padding, *values: Tensor) -> Tensor:
        q, k, v = (part.pad(each.to(dtype)).transpose(1, 2) for each in values)  # [B, heads, T, size]
        # With the padding at the right no valid token sees it under a causal mask.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        return part.unpad(mixed.transpose(1, 2))

    mixed = layout.apart(padded, *(each[0].transpose(0, 1) for each in (query, key, value)))
    return mixed[None].to(query.dtype)
