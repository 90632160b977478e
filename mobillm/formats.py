"""The closed table of packed formats and their exact sizes.

Both the wire protocol and the kernels use this table, so it lives below both. The byte layouts are
specified in ``docs/packed-tensors.md``.

A tensor is packed row by row, where a row is the last axis. Block formats cut every row into blocks
of ``block`` consecutive values; the last block of a row may be short, and no block crosses rows, so
a row can be read without its neighbours.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

from .errors import ConfigError

__all__ = ["BLOCKS", "MAX_RANK", "Format", "packed_size", "row_size"]

BLOCKS = (32, 64, 128)
MAX_RANK = 8


class Format(enum.IntEnum):
    """Wire code of a packed format.

    ``F32``, ``F16``, ``BF16``, ``I32`` store little-endian values as they are. ``ASYMb`` stores b-bit
    codes with an fp16 scale and an fp16 minimum per block. ``NF4`` and ``FP4`` store 4-bit codes and
    ``F8`` 8-bit codes of a table, with one fp16 scale (the block's absolute maximum).
    """

    F32 = 0
    F16 = 1
    BF16 = 2
    I32 = 3
    ASYM2 = 18
    ASYM3 = 19
    ASYM4 = 20
    ASYM5 = 21
    ASYM6 = 22
    ASYM7 = 23
    ASYM8 = 24
    NF4 = 36
    FP4 = 37
    F8 = 40

    @property
    def bits(self) -> int:
        """Bits of one code, without scales."""
        return _BITS[self]

    @property
    def trailer(self) -> int:
        """Bytes that follow the codes of each block; 0 means the format has no blocks."""
        return _TRAILER.get(self, 4 if self.is_block else 0)

    @property
    def is_block(self) -> bool:
        """Whether values are coded block by block."""
        return self >= Format.ASYM2

    @property
    def is_asym(self) -> bool:
        """Whether blocks carry a scale and a minimum."""
        return Format.ASYM2 <= self <= Format.ASYM8

    @classmethod
    def parse(cls, name: str) -> Format:
        """Look a format up by its lower-case name, for example ``asym4``.

        Raises:
            ConfigError: there is no format of that name.

        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(f.name.lower() for f in cls if f is not cls.I32)
            raise ConfigError("codec.format", name, f"one of {known}") from None


_BITS = {
    Format.F32: 32,
    Format.F16: 16,
    Format.BF16: 16,
    Format.I32: 32,
    Format.ASYM2: 2,
    Format.ASYM3: 3,
    Format.ASYM4: 4,
    Format.ASYM5: 5,
    Format.ASYM6: 6,
    Format.ASYM7: 7,
    Format.ASYM8: 8,
    Format.NF4: 4,
    Format.FP4: 4,
    Format.F8: 8,
}
_TRAILER = {Format.NF4: 2, Format.FP4: 2, Format.F8: 2}


def row_size(fmt: Format, block: int, width: int) -> int:
    """Return the bytes of one packed row of ``width`` values."""
    if not fmt.is_block:
        return width * fmt.bits // 8
    full, rest = divmod(width, block)
    size = full * (block * fmt.bits // 8 + fmt.trailer)
    if rest:
        size += (rest * fmt.bits + 7) // 8 + fmt.trailer
    return size


def packed_size(fmt: Format, block: int, shape: Sequence[int]) -> int:
    """Return the exact bytes of a packed tensor; a tensor of rank 0 is one row of one value."""
    if not shape:
        return row_size(fmt, block, 1)
    return math.prod(shape[:-1]) * row_size(fmt, block, shape[-1])
