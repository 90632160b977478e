"""Tests of the taps' normalisation."""

from __future__ import annotations

import torch

from mobillm.nn.tap_norm import normalise_tap
from tests.nn.tiny import sink_taps


def test_sink_tokens_do_not_dominate() -> None:
    """A sink token stays bounded and leaves the other tokens as they are."""
    tap = sink_taps(6, width=576)[0]
    out = normalise_tap(tap)
    assert float(out.abs().max()) <= 10.0
    torch.testing.assert_close(out[1:], normalise_tap(tap[1:]))
    torch.testing.assert_close(out[1:].std(1, unbiased=False), torch.ones(5), atol=1e-3, rtol=1e-3)


def test_half_types_are_raised_to_fp32() -> None:
    """The sum of squares of a sink overflows fp16, so the norm works in fp32."""
    tap = sink_taps(4)[0]
    out = normalise_tap(tap.half())
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out, normalise_tap(tap), atol=1e-2, rtol=1e-2)
