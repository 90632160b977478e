"""How many frames that cause work a device may send: token buckets over a monotonic clock.

DATA, COMMIT and BLOB are not among them: credit bounds those. ``docs/protocol.md``, section "Limits".
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..protocol import Abort, Blob, Commit, Data, Eval, Message, Open, Ping, Pull

__all__ = ["CHARGED", "Budget", "TokenBucket"]

Clock = Callable[[], float]

# Frames a second, and how many may come at once. A device that does its work stays far below all of them.
CONTROL = (100.0, 400.0)  # every frame that is not charged
RATES: dict[type[Message], tuple[float, float]] = {
    Ping: (5.0, 50.0),
    Abort: (10 / 60, 20.0),
    Eval: (2.0, 60.0),
    Pull: (2.0, 60.0),
    Open: (2.0, 128.0),  # all streams at once, twice; each OPEN ends with one DETACH at most
}
CHARGED = (Data, Commit, Blob)

# A ping beyond its rate is answered and forgiven once; the second one within this many seconds is not.
STRIKE_MEMORY = 60.0


class TokenBucket:
    """A bucket of tokens that fills at a constant rate.

    Args:
        rate: tokens a second.
        burst: tokens in a full bucket; it starts full.
        clock: seconds that never go back.

    """

    __slots__ = ("_burst", "_clock", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled = clock()

    def take(self, count: int = 1) -> bool:
        """Take tokens if there are enough; tell whether there were."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def refill(self) -> None:
        """Make it full."""
        self._tokens = self._burst


class Budget:
    """The frames that one connection may still send.

    Args:
        clock: seconds that never go back.

    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._control = TokenBucket(*CONTROL, clock)
        self._buckets: dict[type[Message], TokenBucket] = {}
        self._strike: float | None = None

    def spend(self, message: Message) -> str | None:
        """Take a received message into account.

        Returns:
            which frames are too many, for the peer; None when they are not.

        """
        if isinstance(message, CHARGED):
            return None
        if not self._control.take():
            return "control frames"
        kind = type(message)
        if kind not in RATES:
            return None
        if kind not in self._buckets:
            self._buckets[kind] = TokenBucket(*RATES[kind], self._clock)
        if self._buckets[kind].take() or (kind is Ping and self._forgive()):
            return None
        return f"{message.type.name} frames"

    def spend_dropped(self, count: int) -> str | None:
        """Take received frames into account that were dropped unread; returns what :meth:`spend` does."""
        return None if self._control.take(count) else "frames that are only dropped"

    def _forgive(self) -> bool:
        now = self._clock()
        first = self._strike is None or now - self._strike > STRIKE_MEMORY
        self._strike = now
        if first:
            self._buckets[Ping].refill()
        return first
