"""The width of taps under a link of known rate, simulated step by step."""

from __future__ import annotations

import pytest

from mobillm.device.width import INTERVAL, WidthController
from mobillm.formats import Format, row_size
from mobillm.spec import CodecSpec
from tests.sessions import WIDTH, spec

SPEC = spec(codec=CodecSpec(format="asym4", block=32, bits=(2, 3, 4, 6, 8)))
TOKENS, TAPS = 100, 2
BATCH = 0.5  # seconds to compute


class Link:
    """A device whose taps go over a link of some rate; time is counted, not waited for."""

    def __init__(self, controller: WidthController) -> None:
        self.controller = controller
        self.now = 0.0
        self.sent = 0
        self.unsent = 0.0
        self.chosen: list[Format] = []

    def run(self, seconds: float, rate: float) -> list[Format]:
        """Compute for some time over a link of ``rate`` bytes a second; return the formats."""
        self.chosen = []
        end = self.now + seconds
        step = BATCH / TAPS / 10
        taps = 0
        while self.now < end:
            for _ in range(10):
                self.now += step
                self.unsent = max(0.0, self.unsent - rate * step)
                if int(self.now / INTERVAL) != int((self.now - step) / INTERVAL):
                    self.controller.measure(self.now, self.sent, round(self.unsent))
            taps += 1
            fmt = self.controller.choose(0)
            self.chosen.append(fmt)
            size = TOKENS * row_size(fmt, 32, WIDTH)
            self.sent += size
            self.unsent += size
            if taps % TAPS == 0:
                self.controller.computed(BATCH, TOKENS, TAPS)
        return self.chosen

    def need(self, fmt: Format) -> float:
        """Return the rate that a format needs."""
        return TAPS * TOKENS * row_size(fmt, 32, WIDTH) / BATCH


def test_the_first_batch_has_the_format_of_the_spec() -> None:
    """Nothing is known yet: the width is that of the spec, every time."""
    controller = WidthController(SPEC)
    assert [controller.choose(0), controller.choose(10**9)] == [Format.ASYM4, Format.ASYM4]


@pytest.mark.parametrize("fmt", SPEC.codec.formats)
def test_the_largest_width_that_fits(fmt: Format) -> None:
    """On a link that is a little faster than a format needs, most taps have it, and little waits."""
    link = Link(WidthController(SPEC))
    link.run(10.0, 1e9)
    rate = 1.05 * link.need(fmt)
    link.run(5.0, rate)
    chosen = link.run(30.0, rate)
    assert sorted(chosen)[len(chosen) // 2] == fmt
    assert link.unsent / rate < 0.7


def test_steps_of_the_link() -> None:
    """Down within two seconds, up again within three; a link that is far too slow gets the smallest."""
    link = Link(WidthController(SPEC))
    assert link.run(3.0, 1e9)[-1] == Format.ASYM8
    slow = 1.1 * link.need(Format.ASYM2)
    link.run(2.0, slow)
    assert set(link.run(1.0, slow)) == {Format.ASYM2}
    link.run(3.0, 1e9)
    assert set(link.run(1.0, 1e9)) == {Format.ASYM8}
    link.run(2.0, slow / 10)
    assert set(link.run(1.0, slow / 10)) == {Format.ASYM2}


def test_a_backlog_goes() -> None:
    """What waits already is sent within a few seconds, by taps that are smaller than the link could carry."""
    link = Link(WidthController(SPEC))
    rate = 1.05 * link.need(Format.ASYM4)
    link.run(10.0, rate)
    link.unsent += 3 * rate
    link.sent += round(3 * rate)
    link.run(6.0, rate)
    assert link.unsent / rate < 1.5


def test_a_server_without_room_changes_nothing() -> None:
    """What waits in front of an empty socket does not wait for the link."""
    link = Link(WidthController(SPEC))
    link.run(3.0, 1e9)
    assert link.controller.choose(10**12) == Format.ASYM8


def test_a_server_that_starts_slowly() -> None:
    """A link over which nothing goes yet is not taken to be slow."""
    controller = WidthController(SPEC)
    controller.computed(BATCH, TOKENS, TAPS)
    for tick in range(20):
        controller.measure(tick * INTERVAL, 0, 0)
        assert controller.choose(10**6) >= Format.ASYM4
    assert controller.choose(10**6) == Format.ASYM8


def test_another_connection() -> None:
    """Counts that begin anew are no measurement."""
    controller = WidthController(SPEC)
    controller.measure(1.0, 1000, 10)
    controller.measure(2.0, 2000, 10)
    assert controller.rate == 1000.0
    controller.measure(3.0, 50, 10)
    assert controller.rate == 1000.0
