"""The kinds of emulated links beside one another: the same rate within 3 %."""

from __future__ import annotations

import pytest

from benchmarks.link import Shape
from benchmarks.namespaces import has_tbf, joined, measure_namespaces, measure_relay
from benchmarks.tap import Link, available

NEAR = 0.03  # part of the rate by which two kinds may differ
SECONDS = 1.0

needs_root = pytest.mark.skipif(not available(), reason="needs root, /dev/net/tun and iproute2")


def test_tbf_alone_has_no_delay() -> None:
    """A shape that tbf cannot make is refused before anything is made."""
    with pytest.raises(ValueError, match="tap"), joined(Shape(rate=1e6, rtt=0.1)):
        pass


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("rate", [250_000.0, 1_250_000.0, 12_500_000.0])
def test_links_are_calibrated(rate: float) -> None:
    """Relay, forwarder of packets and the kernel's token bucket: each has the nominal rate within 3 %."""
    shape = Shape(rate=rate)
    found = {"relay": measure_relay(shape, SECONDS)}
    with Link(rate=rate).up() as names:
        found["tap"] = measure_namespaces(names, shape, SECONDS)
    if has_tbf():
        with joined(shape) as names:
            found["tbf"] = measure_namespaces(names, shape, SECONDS)
    for name, measured in found.items():
        assert measured == pytest.approx(rate, rel=NEAR), name


@needs_root
@pytest.mark.slow
def test_links_are_calibrated_with_a_delay() -> None:
    """With 50 ms the relay and the forwarder still have the nominal rate."""
    shape = Shape(rate=1_250_000.0, rtt=0.05)
    relay = measure_relay(shape, 2.0)
    with Link(delay=shape.rtt / 2, rate=shape.rate).up() as names:
        tap = measure_namespaces(names, shape, 2.0)
    assert relay == pytest.approx(shape.rate, rel=NEAR)
    assert tap == pytest.approx(relay, rel=NEAR)
