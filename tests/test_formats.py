"""Tests of mobillm.formats."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.errors import ConfigError
from mobillm.formats import BLOCKS, MAX_RANK, Format, packed_size, row_size

# Wire code, bits of a code, bytes after each block's codes.
TABLE = {
    "F32": (0, 32, 0),
    "F16": (1, 16, 0),
    "BF16": (2, 16, 0),
    "I32": (3, 32, 0),
    "ASYM2": (18, 2, 4),
    "ASYM3": (19, 3, 4),
    "ASYM4": (20, 4, 4),
    "ASYM5": (21, 5, 4),
    "ASYM6": (22, 6, 4),
    "ASYM7": (23, 7, 4),
    "ASYM8": (24, 8, 4),
    "NF4": (36, 4, 2),
    "FP4": (37, 4, 2),
    "F8": (40, 8, 2),
}


def test_table() -> None:
    """The wire codes and sizes never change."""
    assert {f.name: (int(f), f.bits, f.trailer) for f in Format} == TABLE
    assert {f for f in Format if f.is_block} == {f for f in Format if f.trailer}
    assert {f for f in Format if f.is_asym} == {f for f in Format if f.name.startswith("ASYM")}
    assert (BLOCKS, MAX_RANK) == ((32, 64, 128), 8)


@pytest.mark.parametrize("name", ["asym4", "ASYM4", "Asym4"])
def test_parse(name: str) -> None:
    """Names are read in either case."""
    assert Format.parse(name) is Format.ASYM4


@pytest.mark.parametrize("name", ["", "asym9", "int4", "20"])
def test_parse_refuses_other_names(name: str) -> None:
    """The error lists the names that would have been accepted, without the one for integers."""
    with pytest.raises(ConfigError, match=r"one of f32, f16, bf16, asym2.*nf4, fp4, f8") as caught:
        Format.parse(name)
    assert caught.value.field == "codec.format"
    assert "i32" not in str(caught.value)


@pytest.mark.parametrize(
    ("fmt", "block", "width", "size"),
    [
        (Format.F32, 0, 3, 12),
        (Format.BF16, 0, 3, 6),
        (Format.I32, 0, 1, 4),
        (Format.ASYM4, 64, 64, 36),
        (Format.ASYM4, 64, 576, 324),
        (Format.ASYM4, 64, 65, 36 + 5),
        (Format.ASYM4, 32, 33, 20 + 5),
        (Format.ASYM3, 64, 64, 28),
        (Format.ASYM3, 64, 3, 2 + 4),
        (Format.ASYM5, 128, 129, 84 + 5),
        (Format.ASYM8, 32, 31, 35),
        (Format.NF4, 64, 64, 34),
        (Format.NF4, 64, 1, 3),
        (Format.ASYM7, 64, 64, 60),
        (Format.FP4, 64, 65, 34 + 3),
        (Format.F8, 32, 33, 34 + 3),
    ],
)
def test_row_size(fmt: Format, block: int, width: int, size: int) -> None:
    """Full blocks, then a short one with its own trailer, worked out by hand."""
    assert row_size(fmt, block, width) == size


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(Format), st.sampled_from(BLOCKS), st.lists(st.integers(1, 300), max_size=4))
def test_packed_size_is_rows_times_row_size(fmt: Format, block: int, shape: list[int]) -> None:
    """No block crosses rows; a scalar is one row of one value."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    width = shape[-1] if shape else 1
    assert packed_size(fmt, block, shape) == rows * row_size(fmt, block, width)
    bits = width * fmt.bits
    blocks = -(-width // block) if fmt.is_block else 0
    assert bits // 8 <= row_size(fmt, block, width) - blocks * fmt.trailer <= bits // 8 + 1
