"""Conversion to fp16 with integers, beside numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm.kernels.halves import NORMAL, halves, round_normal, store


@pytest.mark.parametrize("negative", [False, True])
def test_round_normal_is_numpys_conversion(negative: bool) -> None:
    # Every normal fp16 number, the middle to the next one and both neighbours of that middle.
    numbers = np.arange(0x0400, 0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = numbers.view(np.uint32) + 0x1000
    values = np.concatenate([numbers, *(part.view(np.float32) for part in (middle - 1, middle, middle + 1))])
    values = np.append(values, np.float32(65504))
    assert values.min() == NORMAL
    values = -values if negative else values
    expected = values.astype(np.float16)
    rounded, bits = np.empty_like(values), np.empty((len(values), 2), np.uint16)
    round_normal(values, rounded, bits[:, 1], negative)
    assert np.array_equal(bits[:, 1], expected.view(np.uint16))
    assert np.array_equal(rounded, expected.astype(np.float32))
    round_normal(values, values, bits[:, 0], negative)
    assert np.array_equal(values, rounded)


def test_a_negative_zero_loses_its_sign() -> None:
    out = np.empty((2, 4), np.uint8)
    store(out, halves(np.array([-0.0, 1.0]), np.array([-2.0, 0.0])))
    assert out.view("<f2").tolist() == [[0.0, -2.0], [1.0, 0.0]]
    assert not np.signbit(out.view("<f2")[0, 0])
