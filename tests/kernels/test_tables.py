from __future__ import annotations

import numpy as np
import pytest

from mobillm.formats import Format
from mobillm.kernels.tables import BF16_MAX, F16_MAX, F32_MAX, NF4_MIDPOINTS, NF4_VALUES, largest


def test_nf4_table_rises_from_minus_one_to_one_through_an_exact_zero() -> None:
    """The table is sorted, as the search by midpoints needs."""
    assert len(NF4_VALUES) == 16
    assert (np.diff(NF4_VALUES) > 0).all()
    assert (NF4_VALUES[0], NF4_VALUES[7], NF4_VALUES[15]) == (-1, 0, 1)


def test_nf4_midpoints_lie_between_their_neighbours() -> None:
    """Rounding to fp32 keeps every midpoint strictly between two values."""
    assert NF4_MIDPOINTS.dtype == np.float32
    assert ((NF4_VALUES[:-1] < NF4_MIDPOINTS) & (NF4_VALUES[1:] > NF4_MIDPOINTS)).all()


@pytest.mark.parametrize("table", [NF4_VALUES, NF4_MIDPOINTS])
def test_tables_cannot_be_changed(table: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    """A constant that all threads share is read-only."""
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


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
