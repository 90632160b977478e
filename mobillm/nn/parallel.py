"""Parallel adapters: a full-width stream beside the backbone, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec import SideSpec
from .dropout import Dropout, MaskSource
from .tap_norm import normalise_tap

__all__ = ["Parallel"]


class Parallel(nn.Module):
    """One bottleneck adapter per tap on a stream as wide as the backbone (arXiv 2502.20421).

    ``S_k = (1 - mu_k) norm(A_k) + mu_k h_{k-1}`` and ``h_k = S_k + Up_k gelu(Down_k S_k)``, with
    ``S_1 = norm(A_1)`` and ``mu_k = sigmoid(gates_k)``. The stream is added to the backbone's state
    through one scale per channel that is zero at first. No position sees another one.

    Args:
        hidden_size: width d of the taps.
        taps: number K of taps.
        side: width of the bottleneck and dropout.
        source: of dropout masks.

    """

    def __init__(self, hidden_size: int, taps: int, side: SideSpec, source: MaskSource) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(hidden_size, side.width) for _ in range(taps))
        self.up = nn.ModuleList(nn.Linear(side.width, hidden_size) for _ in range(taps))
        for layer in self.up.parameters():
            nn.init.zeros_(layer)
        self.gates = nn.Parameter(torch.zeros(taps))
        self.scale = nn.Parameter(torch.zeros(hidden_size))
        self.dropout = Dropout(side.dropout, source)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Return ``h_K``, ragged ``[N, d]``, for ragged taps ``[N, d]``."""
        stream: Tensor | None = None
        for index, tap in enumerate(taps):
            entered = normalise_tap(tap)
            if stream is not None:
                gate = torch.sigmoid(self.gates[index])
                entered = (1 - gate) * entered + gate * stream
            inner = F.gelu(self.down[index](entered))
            stream = entered + self.up[index](self.dropout(inner))
        assert stream is not None
        return stream

    def expand(self, stream: Tensor) -> Tensor:
        """Map the stream ``[..., d]`` to what is added to the backbone's state; zero at first."""
        return stream * self.scale
