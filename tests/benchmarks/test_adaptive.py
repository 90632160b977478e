"""The figures of benchmarks.adaptive."""

from __future__ import annotations

import pytest

from benchmarks.adaptive import Run, Sample, fits, need
from mobillm.formats import Format


def test_what_a_link_carries() -> None:
    """180 bytes of 2 bits and 612 of 8 bits, 8 taps, 160 tokens a second."""
    assert need(Format.ASYM2, "phone") == pytest.approx(180 * 8 * 160 / 125_000)
    assert need(Format.ASYM8, "phone") == pytest.approx(612 * 8 * 160 / 125_000)
    assert [fits(rate, "phone") for rate in (1.84, 1.85, 2.6, 6.26, 6.27)] == [0, 2, 3, 7, 8]


def test_waiting_is_what_was_not_computed() -> None:
    """Times are cut at the ends of a phase; widths are averaged inside it."""
    run = Run("phone", "8 bits", busy=[(0.0, 4.0), (6.0, 11.0)])
    assert run.waited(0.0, 5.0) == pytest.approx(0.2)
    assert run.waited(5.0, 10.0) == pytest.approx(0.2)
    run.samples = [Sample(at, bits, 0.0, 0) for at, bits in ((0.0, 2), (1.0, 4), (5.0, 8))]
    assert run.bits(0.0, 5.0) == 3.0
