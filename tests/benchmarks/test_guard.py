"""What the regression guard calls a change."""

from __future__ import annotations

from benchmarks.guard import compare

BASELINE = {
    "efficiency.device_bound": {"value": 0.99, "spread": 0.01},
    "serial_over_pipelined.link_bound": {"value": 1.5, "spread": 0.2},
    "device_over_bare": {"value": 1.02, "spread": 0.0},
    "gone": {"value": 1.0, "spread": 0.0},
}


def test_within_the_spread_nothing_moved() -> None:
    """Neither within the spread that was measured nor within 2 %; new keys and old ones are left out."""
    found = {
        "efficiency.device_bound": 0.975,
        "serial_over_pipelined.link_bound": 1.31,
        "device_over_bare": 1.04,
        "new": 3.0,
    }
    assert compare(BASELINE, found) == []


def test_better_and_worse() -> None:
    """For most ratios larger is better, for the device's overhead it is not."""
    found = {
        "efficiency.device_bound": 0.9,
        "serial_over_pipelined.link_bound": 1.8,
        "device_over_bare": 1.2,
    }
    assert compare(BASELINE, found) == [
        ("device_over_bare", 1.02, 1.2, True),
        ("efficiency.device_bound", 0.99, 0.9, True),
        ("serial_over_pipelined.link_bound", 1.5, 1.8, False),
    ]
