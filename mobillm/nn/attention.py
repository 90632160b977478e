"""Blocks of the ladder: pre-norm self-attention and MLP on a narrow stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout, MaskSource
from .ragged import Ragged

__all__ = ["Block", "KeyValues", "Turn", "rotate", "turn"]

KeyValues = tuple[Tensor, Tensor]  # each [1, heads, past tokens, head width]
Turn = tuple[Tensor, Tensor]  # cosines and sines, each [positions, head width]
_THETA = 10_000.0


class Block(nn.Module):
    """One pre-norm transformer block; its output projections are zero at first, so it starts as identity.

    Positions enter as rotary embeddings (RoPE, arXiv 2104.09864): relative, without parameters, and
    keys can be cached. An odd last channel of a head is left unrotated.

    Args:
        width: of the stream.
        heads: attention heads; divides ``width``.
        causal: whether a position sees only itself and earlier ones.
        dropout: probability, on what the attention and the MLP add.
        source: of dropout masks.

    """

    def __init__(self, width: int, heads: int, causal: bool, dropout: float, source: MaskSource) -> None:
        super().__init__()
        self._heads = heads
        self._causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout, source)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, stream: Tensor, layout: Ragged) -> Tensor:
        """Return the block's output for a ragged stream ``[N, width]``."""
        mixed = layout.apart(self._attend, self.qkv(self.attention_norm(stream)))
        return self._finish(stream, mixed)

    def _attend(self, layout: Ragged, qkv: Tensor) -> Tensor:
        """Map ragged ``[N, 3 width]`` to ``[N, width]``."""
        query, key, value = self._split(layout.pad(qkv), start=0)
        # With the padding at the right no valid token sees it under a causal mask.
        mask = None if self._causal or layout.full else layout.mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self._causal)
        return layout.unpad(mixed.transpose(1, 2).flatten(2))

    def extend(self, stream: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Run the new tokens of one sample with the keys and values of the earlier ones.

        Args:
            stream: ``[n, width]`` of the new tokens.
            past: keys and values so far; None at the sample's start.

        Returns:
            the output ``[n, width]`` and the keys and values including the new tokens.

        """
        start = 0 if past is None else past[0].shape[2]
        query, key, value = self._split(self.qkv(self.attention_norm(stream))[None], start)
        if past is not None:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        steps = torch.arange(key.shape[2], device=key.device)
        mask = steps <= steps[start:, None]  # [n, start + n]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._finish(stream, mixed.transpose(1, 2).flatten(2)[0]), (key, value)

    def _split(self, qkv: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = qkv.shape
        query, key, value = qkv.view(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)  # [B, h, T, w]
        turns = turn(start, length, query.shape[-1], qkv.device)
        return rotate(query, turns), rotate(key, turns), value

    def _finish(self, stream: Tensor, mixed: Tensor) -> Tensor:
        stream = stream + self.dropout(self.attention_out(mixed))
        inner = F.gelu(self.mlp_in(self.mlp_norm(stream)))
        added: Tensor = self.dropout(self.mlp_out(inner))
        return stream + added


def turn(start: int, length: int, width: int, device: torch.device) -> Turn:
    """Return by how much the channels of a head turn at each position.

    Args:
        start: first position.
        length: positions.
        width: of a head.
        device: of the result.

    """
    half = width // 2
    steps = torch.arange(start, start + length, device=device, dtype=torch.float32)
    rates = _THETA ** (-torch.arange(half, device=device, dtype=torch.float32) / max(half, 1))
    angles = steps[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    rest = angles.new_zeros(length, width - 2 * half)
    return torch.cat((cos, cos, rest + 1.0), 1), torch.cat((-sin, sin, rest), 1)


def rotate(values: Tensor, turns: Turn) -> Tensor:
    """Turn the channels of queries or keys ``[..., T, width]``."""
    cos, sin = turns
    half = values.shape[-1] // 2
    first, second, rest = torch.split(values, [half, half, values.shape[-1] - 2 * half], dim=-1)
    return torch.addcmul(values * cos, torch.cat((second, first, rest), dim=-1), sin)
