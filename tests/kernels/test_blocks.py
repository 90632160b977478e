from __future__ import annotations

import math

import numpy as np
import pytest

from mobillm.formats import Format
from mobillm.kernels import blocks


def test_extremes_of_each_block() -> None:
    """The smallest and the largest value are found block by block."""
    low, high = blocks.extremes(np.array([[3, -1, 2], [0, 0, 5]], np.float32))
    assert (low.tolist(), high.tolist()) == ([-1, 0], [3, 5])


def test_extremes_keep_nan() -> None:
    """A NaN hides neither among the smallest nor among the largest values."""
    low, high = blocks.extremes(np.array([[3, math.nan, 2], [1, 1, 1]], np.float32))
    assert (np.isnan(low).tolist(), np.isnan(high).tolist()) == ([True, False], [True, False])


@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_top_bits_record_centres_merged_codes(bits: int) -> None:
    """The lowest and the highest code stand for the middle of the 8-bit codes that they merge."""
    low = np.array([10], np.float32)
    record = blocks.top_bits_record(np.zeros((1, 8), np.uint8), np.array([1], np.float32), low, bits)
    scale, minimum = blocks.trailer_of(record, bits)[0]
    assert scale == 2 ** (8 - bits)
    assert minimum == 10 + (2 ** (8 - bits) - 1) / 2
    top = blocks.top_bits_record(np.full((1, 8), 255, np.uint8), np.array([1], np.float32), low, bits)
    assert (blocks.decode(Format[f"ASYM{bits}"], top, 8) == 10 + 255 - (2 ** (8 - bits) - 1) / 2).all()


def test_damaged_trailer_decodes_without_a_warning() -> None:
    """An infinite scale gives values that are not finite, quietly."""
    record = np.frombuffer(bytes.fromhex("10 00 7c 00 00"), np.uint8)[None]
    assert not np.isfinite(blocks.decode(Format.ASYM4, record, 2)).all()
