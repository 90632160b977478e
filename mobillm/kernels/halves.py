"""Conversion of the numbers in a record's trailer to fp16, for numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import bitpack
from .workspace import Workspace

__all__ = ["NORMAL", "halves", "round_normal", "store"]

NORMAL = np.float32(2.0**-14)  # the smallest fp16 number that is not subnormal
_workspace = Workspace()


def round_normal(
    values: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32], bits: npt.NDArray[Any], negative: bool
) -> None:
    """Round to fp16, ties to even, with steps on integers: numpy converts one number after the other.

    Args:
        values: fp32 of magnitude 2**-14 to 65504, all of one sign.
        rounded: fp32 of the same shape, gets the rounded values; may be ``values``.
        bits: uint16 of the same shape, gets the bits of the fp16 numbers.
        negative: the sign of the values.

    """
    single = values.view(np.uint32)
    kept = _workspace.take("kept", single.shape, np.uint32)
    # Half of the lowest kept bit, less one when that bit is 0: carries exactly when rounding goes up.
    np.right_shift(single, 13, out=kept)
    np.bitwise_and(kept, 1, out=kept)
    np.add(kept, 0xFFF, out=kept)
    np.add(kept, single, out=kept)
    np.right_shift(kept, 13, out=kept)
    np.left_shift(kept, 13, out=rounded.view(np.uint32))
    # The exponent's bias falls from 127 to 15; the sign's bit is above those that are copied.
    np.subtract(kept, (127 - 15 << 10) - (0x8000 if negative else 0), out=kept)
    np.copyto(bits, kept, casting="unsafe")


def halves(*numbers: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Convert columns [blocks] to rows of fp16 [blocks, columns], rounding to even."""
    rows = np.empty((len(numbers[0]), len(numbers)), "<f2")
    for column, of_blocks in enumerate(numbers):
        rows[:, column] = of_blocks
    return rows


def store(out: npt.NDArray[np.uint8], trailer: npt.NDArray[np.float16]) -> None:
    """Write rows of fp16 to rows of bytes, with one kind of zero.

    Args:
        out: uint8 [blocks, 2 * columns], contiguous along the last axis; is written.
        trailer: fp16 [blocks, columns]; loses the sign of its zeros.

    """
    bits = trailer.view("<i2")
    if bits.min() == -0x8000:  # which zero a minimum is depends on the order of the search
        bits[bits == -0x8000] = 0
    bitpack.copy_octets(trailer.view(np.uint8), out)
