"""Constants that every backend uses: the tables of the table formats and the largest value of each format."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format

__all__ = ["BF16_MAX", "F8_MAX", "F16_MAX", "F32_MAX", "Table", "largest", "table_of"]

F8_MAX = 448.0
F16_MAX = 65504.0
BF16_MAX = 3.3895313892515355e38  # 0x7F7F, the largest finite bfloat16
F32_MAX = 3.4028234663852886e38

# Quantiles of N(0, 1) scaled to [-1, 1], with an exact 0 (Dettmers et al., QLoRA, arXiv 2305.14314,
# appendix E).
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Magnitudes by the lower three bits; the fourth bit is the sign (bitsandbytes' FP4, a 4-bit float with
# two bits of exponent, scaled to [-1, 1]).
_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)


@dataclasses.dataclass(frozen=True)
class Table:
    """What the codes of a table format stand for; every array is read-only.

    Attributes:
        values: fp32 [2**bits], the value of each code in units of the block's absolute maximum.
        codes: uint8 [256], the code of each point of the 8-bit grid; empty for an 8-bit format.

    """

    values: npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint8]

    @functools.cached_property
    def packed_pairs(self) -> npt.NDArray[np.uint8]:
        """uint8 [65536]: the packed byte of two grid points, the first in the lower byte of the index."""
        return _constant((self.codes[None, :] | self.codes[:, None] << 4).reshape(-1))

    @functools.cached_property
    def value_pairs(self) -> npt.NDArray[np.int64]:
        """int64 [256]: the two fp32 values that a packed byte of 4-bit codes stands for, bit by bit."""
        octets = np.arange(256)
        pairs = np.stack([self.values[octets & 15], self.values[octets >> 4]], axis=1)
        return _constant(pairs.view(np.int64).reshape(-1))


def _constant(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.setflags(write=False)
    return values


def _four_bits(values: npt.NDArray[np.float32]) -> Table:
    # Points 127 and 128 lie around zero and stand for it, so that a zero stays one.
    grid = (np.arange(256) - 127.5) / 127.5
    grid[127:129] = 0.0
    distance = np.abs(values.astype(np.float64)[None, :] - grid[:, None])
    return Table(_constant(values), _constant(distance.argmin(axis=1).astype(np.uint8)))


def _f8_values() -> npt.NDArray[np.float32]:
    octets = np.arange(256)
    exponent, fraction = octets >> 3 & 15, octets & 7
    magnitude = np.where(
        exponent == 0, fraction * 2.0**-9, (8 + fraction) * np.exp2(exponent.astype(np.float64) - 10)
    )
    magnitude[octets & 127 == 127] = np.nan
    return (np.where(octets < 128, magnitude, -magnitude) / F8_MAX).astype(np.float32)


@functools.cache
def table_of(fmt: Format) -> Table:
    """Return the table of ``NF4``, ``FP4`` or ``F8``."""
    if fmt is Format.F8:
        return Table(_constant(_f8_values()), _constant(np.empty(0, np.uint8)))
    if fmt is Format.NF4:
        return _four_bits(np.array(_NF4, np.float32))
    magnitudes = np.array(_FP4, np.float32)
    return _four_bits(np.concatenate([magnitudes, -magnitudes]))


def largest(fmt: Format) -> float:
    """Return the largest magnitude that a format carries."""
    if fmt is Format.F32:
        return F32_MAX
    return BF16_MAX if fmt is Format.BF16 else F16_MAX
