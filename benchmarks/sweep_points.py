"""The points of a sweep, and about how long they take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from mobillm.formats import Format, row_size

__all__ = ["BITS", "FORMATS", "QUICK_SIZES", "RATES", "Estimate", "Point", "full", "grid", "quick"]

FORMATS = {2: "asym2", 3: "asym3", 4: "asym4", 6: "asym6", 8: "asym8", 16: "f16"}
BITS = tuple(FORMATS)
RATES = (2, 10, 50, 200)  # Mbit/s
NEAR = 20  # milliseconds, a round trip where that is not what varies
OPENING = 1.5  # seconds of a session
TOKENS = 23  # of a message, on average
STEP = 4.0  # tokens that the device computes in the time of training on one sample
QUICK_SIZES = (24, 12, 6)  # messages of a point of the quick sweep, for machines of less and less speed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of the sweep.

    Attributes:
        bits: of a value.
        rate: Mbit/s of the link; 0 is no link between the two.
        rtt: milliseconds of a round trip.
        taps: tapped layers.
        tokens: which are sent.
        side: kind of the side network.
        train, heldout: samples.
        epochs: passes.
        batch: samples of a batch.

    """

    bits: int
    rate: float
    rtt: float = NEAR
    taps: str = "every:4"
    tokens: str = "all"
    side: str = "ladder"
    train: int = 48
    heldout: int = 0
    epochs: int = 1
    batch: int = 8

    @property
    def key(self) -> str:
        """Name of the point."""
        return "/".join(str(value) for value in dataclasses.astuple(self))

    @property
    def sent(self) -> int:
        """Tokens of each layer that are sent, about."""
        samples = self.train + self.heldout
        return samples if self.tokens == "last" else samples * TOKENS

    def seconds(self, forward: float) -> float:
        """Return about how long the point takes where a forward pass has so many tokens a second."""
        layers = {"all": 30, "every:4": 8, "every:8": 4}.get(self.taps, 1)
        size = self.sent * layers * row_size(Format.parse(FORMATS[self.bits]), 64, 576)
        link = size * 8 / (self.rate * 1e6) if self.rate else 0.0
        device = (self.train + self.heldout) * TOKENS / forward
        return OPENING + max(link, device) + self.train * self.epochs * STEP / forward


class Estimate:
    """How long points take: by the speed of a forward pass, put right by those that are done.

    Args:
        forward: tokens a second.

    """

    def __init__(self, forward: float) -> None:
        self._forward = forward
        self._expected = self._took = 0.0

    def note(self, point: Point, seconds: float) -> None:
        """Note how long a point took."""
        self._expected += point.seconds(self._forward)
        self._took += seconds

    def seconds(self, points: Iterable[Point]) -> float:
        """Return about how long points take."""
        factor = self._took / self._expected if self._took else 1.0
        return factor * sum(point.seconds(self._forward) for point in points)


def grid(bits: Sequence[int], rates: Sequence[float]) -> list[Point]:
    """Return a point for each width at each rate."""
    return [Point(bits=one, rate=rate) for one, rate in itertools.product(bits, rates)]


def full() -> list[Point]:
    """Return the points of the full sweep."""
    trips = [Point(bits=4, rate=10, rtt=rtt) for rtt in (0, 50, 200)]
    taps = [Point(bits=4, rate=10, taps=taps) for taps in ("30", "every:8", "all")]
    tokens = [Point(bits=4, rate=10, side="parallel", tokens=tokens) for tokens in ("all", "last")]
    trained: dict[str, Any] = {"rate": 0, "rtt": 0, "train": 512, "heldout": 400, "epochs": 4, "batch": 32}
    quality = [Point(bits=bits, **trained) for bits in BITS]
    quality += [Point(bits=4, taps=taps, **trained) for taps in ("30", "every:8")]
    quality += [Point(bits=4, side="parallel", tokens=tokens, **trained) for tokens in ("all", "last")]
    return [*grid(BITS, RATES), *trips, *taps, *tokens, *quality]


def quick(size: int = QUICK_SIZES[0]) -> list[Point]:
    """Return the points of the quick sweep, with so many messages each."""
    timed = [
        Point(bits=bits, rate=rate, train=size) for bits, rate in itertools.product((2, 4, 16), (10, 50))
    ]
    more = [
        Point(bits=4, rate=10, train=size, side="parallel", tokens="last"),
        Point(bits=4, rate=10, train=size, taps="30"),
        Point(bits=4, rate=0, rtt=0, train=4 * size, heldout=2 * size, batch=16),
    ]
    return [*timed, *more]
