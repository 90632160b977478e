from __future__ import annotations

import numpy as np
import pytest

from mobillm.formats import Format
from mobillm.kernels.tables import BF16_MAX, F16_MAX, F32_MAX, largest, table_of

FOUR_BITS = (Format.NF4, Format.FP4)
# The first point of the 8-bit grid of each code, as docs/packed-tensors.md lists them.
NF4_RUNS = (0, 20, 50, 69, 85, 98, 110, 122, 133, 143, 154, 165, 178, 192, 210, 238)
FP4_RUNS = {
    11: 0, 10: 22, 13: 54, 12: 75, 15: 91, 14: 101, 9: 117, 0: 127, 1: 129, 6: 139, 7: 155, 4: 165, 5: 181,
    2: 202, 3: 234,
}  # fmt: skip


def test_nf4_table_rises_from_minus_one_to_one_through_an_exact_zero() -> None:
    """The 16 values are sorted."""
    values = table_of(Format.NF4).values
    assert (np.diff(values) > 0).all()
    assert (values[0], values[7], values[15]) == (-1, 0, 1)


def test_fp4_table_has_a_sign_bit() -> None:
    """The upper eight codes are the lower ones with the other sign."""
    values = table_of(Format.FP4).values
    assert (values[8:] == -values[:8]).all()
    assert sorted(values[:8]) == pytest.approx([0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1])


def test_f8_table_follows_e4m3() -> None:
    """The smallest, the smallest normal and the largest number, and NaN, of the OCP 8-bit float."""
    values = table_of(Format.F8).values * np.float32(448)
    assert values[[0, 1, 8, 0x38, 0x7E]].tolist() == pytest.approx([0, 2**-9, 2**-6, 1, 448])
    assert (values[128:255] == -values[:127]).all()
    assert np.isnan(values[[0x7F, 0xFF]]).all()


def test_grid_codes_are_those_of_the_specification() -> None:
    """Runs of grid points share a code."""
    assert table_of(Format.NF4).codes.tolist() == [
        code for code in range(16) for _ in range(NF4_RUNS[code], [*NF4_RUNS, 256][code + 1])
    ]
    starts = [*FP4_RUNS.values(), 256]
    expected = [c for i, c in enumerate(FP4_RUNS) for _ in range(starts[i], starts[i + 1])]
    assert table_of(Format.FP4).codes.tolist() == expected


@pytest.mark.parametrize("fmt", FOUR_BITS)
def test_pair_tables_hold_two_codes_and_two_values(fmt: Format) -> None:
    """The first of a pair is the low byte of the index and the low nibble of the packed byte."""
    table = table_of(fmt)
    packed = table.packed_pairs[3 + 256 * 200]
    assert packed == table.codes[3] | table.codes[200] << 4
    assert table.value_pairs.view(np.float32).reshape(256, 2)[packed].tolist() == [
        table.values[table.codes[3]],
        table.values[table.codes[200]],
    ]


@pytest.mark.parametrize("fmt", FOUR_BITS)
def test_tables_cannot_be_changed(fmt: Format) -> None:
    """A constant that all threads share is read-only."""
    table = table_of(fmt)
    for array in (table.values, table.codes, table.packed_pairs, table.value_pairs):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_limits_are_the_largest_finite_values() -> None:
    """Each limit is the value just below infinity in its type."""
    assert np.finfo(np.float16).max == F16_MAX
    assert np.finfo(np.float32).max == F32_MAX
    assert np.array([0x7F7F0000], np.uint32).view(np.float32)[0] == BF16_MAX
    assert [largest(fmt) for fmt in (Format.F32, Format.BF16, Format.F16, Format.NF4)] == [
        F32_MAX,
        BF16_MAX,
        F16_MAX,
        F16_MAX,
    ]
