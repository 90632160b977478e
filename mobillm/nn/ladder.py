"""The ladder: narrow blocks with attention, one per tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..spec import SideSpec
from .attention import Block, KeyValues
from .dropout import Dropout, MaskSource
from .ragged import Ragged
from .tap_norm import normalise_tap

__all__ = ["Ladder"]


class Ladder(nn.Module):
    """A stream of width r that takes in one tap per block (arXiv 2206.06522, with attention).

    ``z_k = Block_k(mu_k Down_k(norm(A_k)) + (1 - mu_k) z_{k-1})`` with ``z_0 = 0`` and
    ``mu_k = sigmoid(gates_k)``. Taps are projected down before they are padded, so only the narrow
    stream is ever padded.

    Args:
        hidden_size: width d of the taps.
        taps: number K of taps.
        side: width, heads, dropout and causality.
        source: of dropout masks.

    """

    def __init__(self, hidden_size: int, taps: int, side: SideSpec, source: MaskSource) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(hidden_size, side.width) for _ in range(taps))
        self.blocks = nn.ModuleList(
            Block(side.width, side.heads, side.causal, side.dropout, source) for _ in range(taps)
        )
        self.gates = nn.Parameter(torch.zeros(taps))
        self.up = nn.Linear(side.width, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = Dropout(side.dropout, source)

    def forward(self, taps: Sequence[Tensor], layout: Ragged) -> Tensor:
        """Return ``z_K``, ragged ``[N, r]``, for ragged taps ``[N, d]``."""
        stream: Tensor | None = None
        for index, block in enumerate(self.blocks):
            stream = block(self._mix(index, taps[index], stream), layout)
        assert stream is not None
        return stream

    def extend(
        self, taps: Sequence[Tensor], past: Sequence[KeyValues] | None
    ) -> tuple[Tensor, list[KeyValues]]:
        """Return ``z_K`` of the new tokens ``[n, r]`` of one sample, and the cache including them."""
        stream: Tensor | None = None
        cache: list[KeyValues] = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            mixed = self._mix(index, taps[index], stream)
            stream, entry = block.extend(mixed, None if past is None else past[index])
            cache.append(entry)
        assert stream is not None
        return stream, cache

    def expand(self, stream: Tensor) -> Tensor:
        """Map the stream ``[..., r]`` to what the head's input gets added, ``[..., d]``; zero at first."""
        out: Tensor = self.up(stream)
        return out

    def _mix(self, index: int, tap: Tensor, stream: Tensor | None) -> Tensor:
        gate = torch.sigmoid(self.gates[index])
        entered: Tensor = gate * self.down[index](self.dropout(normalise_tap(tap)))
        return entered if stream is None else entered + (1 - gate) * stream
