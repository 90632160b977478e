"""Constants that every backend uses: the NormalFloat table and the largest value of each format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats import Format

__all__ = ["BF16_MAX", "F16_MAX", "F32_MAX", "NF4_MIDPOINTS", "NF4_VALUES", "largest"]

F16_MAX = 65504.0
BF16_MAX = 3.3895313892515355e38  # 0x7F7F, the largest finite bfloat16
F32_MAX = 3.4028234663852886e38


def _constant(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    values.setflags(write=False)
    return values


# The 16 values of NF4: quantiles of N(0, 1) scaled to [-1, 1], with an exact 0 (Dettmers et al., QLoRA,
# arXiv 2305.14314, appendix E).
NF4_VALUES = _constant(
    np.array(
        [
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
        ],
        dtype=np.float32,
    )
)
# A value above midpoint i has a code above i; a value on it takes code i.
NF4_MIDPOINTS = _constant((NF4_VALUES[:-1] + NF4_VALUES[1:]) / np.float32(2))


def largest(fmt: Format) -> float:
    """Return the largest magnitude that a format carries."""
    if fmt is Format.F32:
        return F32_MAX
    return BF16_MAX if fmt is Format.BF16 else F16_MAX
