"""One piece of memory that is used again and again, as large as what was asked for most."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """Memory for weights that are expanded just before they are used; for one user at a time.

    Attributes:
        nbytes: bytes that are held.

    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self._memory.nbytes

    def take(self, values: int, dtype: torch.dtype) -> Tensor:
        """Return ``[values]`` of undefined content; what was taken before is overwritten with it."""
        size = values * dtype.itemsize
        if size > self._memory.nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # frees the smaller one first
            # A tensor that was made in inference mode could not be written outside of it later.
            with torch.inference_mode(False):
                self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory[:size].view(dtype)
