"""Batches of arrays as packed tensors: what does not fit is named before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobillm.device.packing import pack_batch, pack_targets
from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import Format
from tests.sessions import arrays, spec

GOOD = arrays(1)
TOKENS = sum(GOOD.lengths)


def _tap(value: float, dtype: Any = np.float32) -> Any:
    tap = GOOD.taps[1].astype(dtype)
    tap[2, 5] = value
    return [GOOD.taps[0], tap]


@pytest.mark.parametrize(
    ("taps", "lengths", "targets", "match"),
    [
        (GOOD.taps[:1], GOOD.lengths, GOOD.targets, "tap 1 is 'missing'"),
        ([*GOOD.taps, GOOD.taps[0]], GOOD.lengths, GOOD.targets, "tap 2"),
        ([t[:, :8] for t in GOOD.taps], GOOD.lengths, GOOD.targets, "tap 0 is .*; expected the shape"),
        ([GOOD.taps[0], GOOD.taps[1][:-1]], GOOD.lengths, GOOD.targets, "tap 1 is .*; expected the shape"),
        ([t[0] for t in GOOD.taps], GOOD.lengths, GOOD.targets, "tap 0"),
        ([np.float32(1.0), GOOD.taps[1]], GOOD.lengths, GOOD.targets, r"tap 0 \(layer 2\)"),
        (_tap(0.0, np.float64), GOOD.lengths, GOOD.targets, r"tap 1 \(layer 4\).*float64.*convert"),
        (GOOD.taps, [], GOOD.targets, "lengths"),
        (GOOD.taps, [1, 1, 1, 1], GOOD.targets, "lengths is 'a sum of 4'"),
        (GOOD.taps, [*GOOD.lengths[:-1], 0], GOOD.targets, "lengths"),
        (GOOD.taps, [TOKENS], GOOD.targets, r"targets is \[4\]; expected the shape \[1\]"),
        (GOOD.taps, [0.5] * 4, GOOD.targets, "lengths"),
        (GOOD.taps, GOOD.lengths, [0, 1, 2, 0], "targets is 2; expected numbers from 0 to 1"),
        (GOOD.taps, GOOD.lengths, [0, -1, 1, 0], "targets is -1"),
        (GOOD.taps, GOOD.lengths, [0.5, 1, 1, 0], "targets"),
        (GOOD.taps, GOOD.lengths, ["a", "b", "c", "d"], "targets"),
        (GOOD.taps, GOOD.lengths, [], "targets"),
        (GOOD.taps, GOOD.lengths, [2**40, 0, 0, 0], "32 bits"),
    ],
)
def test_bad_input_is_named(taps: Any, lengths: Any, targets: Any, match: str) -> None:
    """Shapes, counts and ranges are checked before anything is sent."""
    with pytest.raises(ConfigError, match=match):
        pack_batch(spec(), taps, lengths, targets)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    """The tap, its layer and the position are in the error."""
    with pytest.raises(QuantizationError, match=r"tap 1 \(layer 4\) value (nan|inf|-inf) at \[2, 5\]"):
        pack_batch(spec(), _tap(value), GOOD.lengths, GOOD.targets)


def test_targets_of_each_task() -> None:
    """Whole numbers may be floats; next tokens may be left out; values must be finite."""
    assert pack_targets(spec(), [0.0, 1.0]).header.format is Format.I32
    language = spec(task="causal-lm", head="0" * 64)
    assert bytes(pack_targets(language, [1, -100]).payload) == np.array([1, -100], "<i4").tobytes()
    value = spec(task="regression", outputs=1)
    assert pack_targets(value, [1, 2]).header.format is Format.F32
    with pytest.raises(QuantizationError, match="targets"):
        pack_targets(value, [1.0, np.nan])
    with pytest.raises(ConfigError, match=r"targets is -1e\+39; expected values that fit a 32-bit float"):
        pack_targets(value, [1.0, -1e39])
