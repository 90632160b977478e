"""The normalisation of tapped hidden states at the entrance of a side network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalise_tap"]

_EPS = 1e-5
# A few channels of a language model are hundreds of times larger than the rest (arXiv 2402.17762).
_LIMIT = 10.0


def normalise_tap(hidden: Tensor) -> Tensor:
    """Bring hidden states to a common scale, token by token, in fp32.

    Each token is normalised by itself (LayerNorm without weights), so the huge states of an attention
    sink do not touch the other tokens; then values are limited to 10, so its largest channels do not
    outweigh all others.

    Args:
        hidden: ``[..., d]`` of any floating type.

    Returns:
        ``[..., d]`` fp32, each value from -10 to 10.

    """
    return F.layer_norm(hidden.float(), hidden.shape[-1:], eps=_EPS).clamp(-_LIMIT, _LIMIT)
