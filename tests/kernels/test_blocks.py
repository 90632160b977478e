from __future__ import annotations

import math

import numpy as np
import pytest

from mobillm.formats import Format, packed_size
from mobillm.kernels import blocks, reference


def test_extremes_of_each_block() -> None:
    """The smallest and the largest value are found block by block."""
    low, high = blocks.extremes(blocks.turn(np.array([[3, -1, 2], [0, 0, 5]], np.float32)))
    assert (low.tolist(), high.tolist()) == ([-1, 0], [3, 5])


def test_extremes_keep_nan() -> None:
    """A NaN hides neither among the smallest nor among the largest values."""
    low, high = blocks.extremes(blocks.turn(np.array([[3, math.nan, 2], [1, 1, 1]], np.float32)))
    assert (np.isnan(low).tolist(), np.isnan(high).tolist()) == ([True, False], [True, False])


@pytest.mark.parametrize("n", [1, 3, 4, 36, 64])
def test_extremes_of_any_length(n: int) -> None:
    """Blocks that are no multiple of a group are searched too."""
    for many in (50, 1152):  # one piece, and two
        values = np.random.default_rng(n).standard_normal((many, n)).astype(np.float32)
        low, high = blocks.extremes(blocks.turn(values))
        assert (low == values.min(axis=1)).all()
        assert (high == values.max(axis=1)).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_top_bits_centre_merged_codes(bits: int) -> None:
    """The lowest and the highest code stand for the middle of the 8-bit codes that they merge."""
    scale, minimum = blocks.top_bits(1.0, 10.0, bits)
    assert scale == 2 ** (8 - bits)
    assert minimum == 10 + (2 ** (8 - bits) - 1) / 2
    assert minimum + scale * (2**bits - 1) == 10 + 255 - (2 ** (8 - bits) - 1) / 2


def test_damaged_trailer_decodes_without_a_warning() -> None:
    """An infinite scale gives values that are not finite, quietly."""
    record = np.frombuffer(bytes.fromhex("10 00 7c 00 00"), np.uint8)[None]
    out = np.empty((1, 2), np.float32)
    blocks.decode(Format.ASYM4, record, 2, out)
    assert not np.isfinite(out).all()


@pytest.mark.parametrize("ends", [(1000.3, 1001.0), (0.0, 21 * 2.0**-24)])
@pytest.mark.parametrize("n", [64, 63])
def test_codes_outside_are_limited(ends: tuple[float, float], n: int) -> None:
    """In fp16 a minimum may lie above values of its block, and a scale may be too small for others."""
    values = np.linspace(*ends, n, dtype=np.float32)[None]
    out = np.empty((1, (n + 1) // 2 + 4), np.uint8)
    assert blocks.encode(Format.ASYM4, values, out)
    assert out.tobytes() == reference.quantize(values, Format.ASYM4)


@pytest.mark.parametrize("n", [64, 63])
@pytest.mark.parametrize("fmt", [Format.ASYM4, Format.ASYM3, Format.ASYM8, Format.NF4, Format.F8])
def test_pieces_meet_without_a_seam(fmt: Format, n: int) -> None:
    """However many blocks are encoded together, each gets the record that it gets alone."""
    values = np.random.default_rng(n).standard_normal((1729, n)).astype(np.float32)
    record = packed_size(fmt, 64, (n,))
    alone = np.empty((len(values), record), np.uint8)
    for number in range(len(values)):
        assert blocks.encode(fmt, values[number : number + 1], alone[number : number + 1])
    for many in (2, 575, 577, 900, 1152, 1728, 1729):
        together = np.empty((many, record), np.uint8)
        assert blocks.encode(fmt, values[:many], together)
        assert (together == alone[:many]).all(), many


def test_numpys_buffer_is_left_as_it_was() -> None:
    """It belongs to the caller, and may have any size."""
    before = np.setbufsize(4096)
    try:
        values = np.ones((1, 64), np.float32)
        assert blocks.encode(Format.ASYM4, values, np.empty((1, 36), np.uint8))
        values[0, 7] = math.nan
        assert not blocks.encode(Format.ASYM4, values, np.empty((1, 36), np.uint8))
        assert np.getbufsize() == 4096
    finally:
        np.setbufsize(before)


@pytest.mark.parametrize("fmt", [Format.ASYM4, Format.ASYM8, Format.NF4, Format.F8])
@pytest.mark.parametrize("rest", [(-1.0, 1.0), (1.0, 2.0), (-2.0, -1.0), (0.0, 0.0)])
@pytest.mark.parametrize(
    "value", [math.nan, math.copysign(math.nan, -1), math.inf, -math.inf, 65520.0, -65520.0]
)
def test_what_is_too_large_is_seen(fmt: Format, rest: tuple[float, float], value: float) -> None:
    """Whatever sign it and its neighbours have, and wherever it is."""
    for place in (0, 1, 2, 3, 63):
        values = np.linspace(*rest, 128, dtype=np.float32).reshape(2, 64)
        values[1, place] = value
        assert not blocks.encode(fmt, values, np.empty((2, packed_size(fmt, 64, (64,))), np.uint8))


@pytest.mark.parametrize("n", [64, 63])
@pytest.mark.parametrize("rest", [(1.0, 2.0), (-2.0, -1.0), (-0.0, -0.0), (-1.0, -0.0), (0.0, 1.0)])
def test_extremes_of_one_sign(rest: tuple[float, float], n: int) -> None:
    """A block without a number on one side of zero, among others that have both."""
    values = np.random.default_rng(n).standard_normal((20, n)).astype(np.float32)
    values[7] = np.random.default_rng(n).permutation(np.linspace(*rest, n, dtype=np.float32))
    low, high = blocks.extremes(blocks.turn(values))
    assert (low == values.min(axis=1)).all()
    assert (high == values.max(axis=1)).all()
