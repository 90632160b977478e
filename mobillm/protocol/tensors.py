"""Headers of packed tensors: what is in a payload and exactly how long it is.

``docs/packed-tensors.md``. Which tensors a batch may hold is a closed list: the
taps, the targets, the lengths and the equalizers of the taps. No text, no input ids and no attention mask
are among them.
"""

from __future__ import annotations

import dataclasses
import math

from ..formats import BLOCKS, MAX_RANK, Format, packed_size
from .checksum import crc32c

__all__ = [
    "EQUALIZERS",
    "LAST_TENSOR",
    "LENGTHS",
    "TARGETS",
    "TensorHeader",
    "checksum",
    "is_tensor",
    "tensor_name",
]

TARGETS = 1000
LENGTHS = 1001
EQUALIZERS = 2000  # the equalizer of tap k is tensor 2000 + k
LAST_TENSOR = 2999

MAX_DIMENSION = 2**31 - 1


def checksum(payload: bytes | memoryview) -> int:
    """Return the CRC32C by which the headers of equalized tensors name their packed equalizer."""
    return crc32c(payload)


def is_tensor(tensor: int) -> bool:
    """Tell whether a number is that of a tensor that a batch may hold."""
    return 0 <= tensor <= LENGTHS or EQUALIZERS <= tensor <= LAST_TENSOR


def tensor_name(tensor: int) -> str:
    """Name a tensor of a batch by its number."""
    if tensor == TARGETS:
        return "targets"
    if tensor == LENGTHS:
        return "lengths"
    if tensor >= EQUALIZERS:
        return f"the equalizer of tap {tensor - EQUALIZERS}"
    return f"tap {tensor}"


@dataclasses.dataclass(frozen=True, slots=True)
class TensorHeader:
    """Format, block length and shape of a packed tensor; valid from its constructor on.

    Args:
        format: packed format.
        block: values per block; 0 for formats without blocks.
        shape: dimensions, each at least 1.
        equalizer: CRC32C of the packed factors that the channels were divided by; None: by nothing.

    Raises:
        ValueError: they do not describe a tensor, or have another type.

    Attributes:
        size: exact bytes of the packed tensor.

    """

    format: Format
    block: int
    shape: tuple[int, ...]
    equalizer: int | None = None
    size: int = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.format, Format):
            raise ValueError(f"{self.format!r} in the place of a packed format")
        numbers = (self.block, *self.shape, *(() if self.equalizer is None else (self.equalizer,)))
        if not all(type(number) is int for number in numbers):
            raise ValueError("a block, a dimension or an equalizer that is not an integer")
        if self.format.is_block:
            if self.block not in BLOCKS:
                raise ValueError(f"a block of {self.block} values; accepted are {BLOCKS}")
        elif self.block != 0:
            raise ValueError(f"a block of {self.block} values for a format without blocks")
        if not 1 <= len(self.shape) <= MAX_RANK:
            raise ValueError(f"a tensor of rank {len(self.shape)}; accepted are 1 to {MAX_RANK}")
        if not all(1 <= size <= MAX_DIMENSION for size in self.shape):
            raise ValueError("a dimension that is not from 1 to 2**31 - 1")
        if self.equalizer is not None and not self.format.is_block:
            raise ValueError("an equalizer for a format without blocks")
        object.__setattr__(self, "size", packed_size(self.format, self.block, self.shape))

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)
