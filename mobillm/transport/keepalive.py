"""Whether the peer is still there: when to ask it, and when to take it for dead."""

from __future__ import annotations

import os
import time

from ..options import Timeouts
from ..protocol import Ping, Pong

__all__ = ["Keepalive"]


class Keepalive:
    """Silence and PINGs of one connection; docs/protocol.md, "Keepalive".

    It keeps no timer and reads no clock for silence: who owns it says what time it is.

    Args:
        timeouts: bounds of silence.
        now: time at which the connection began, in seconds of any clock.

    Attributes:
        last_read: when the last byte was read.
        round_trip: seconds between the last PING and its PONG; None before the first.
        clock_offset: what to add to our monotonic clock to get the peer's, in seconds, from the PONG
            with the shortest round trip; None when the peer does not tell.

    """

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._silence, self._reply = timeouts.keepalive, timeouts.keepalive_reply
        self.last_read = now
        self.round_trip: float | None = None
        self.clock_offset: float | None = None
        self._best_round_trip = float("inf")
        self._under_way: tuple[bytes, float] | None = None
        self._ahead = 0  # bytes sent on this connection before the PING
        self._left = 0  # how many of its bytes had left when we looked last

    def ping(self, sent: int, left: int) -> Ping | None:
        """Return the PING to be sent now; None while one is unanswered.

        Args:
            sent: bytes sent on this connection so far.
            left: how many of them have left; those of TLS may count here, and make the PING seem to leave a
                little too early.

        """
        if self._under_way is not None:
            return None
        self._under_way = (os.urandom(8), time.monotonic())
        self._ahead, self._left = sent, left
        return Ping(data=self._under_way[0])

    def measure(self, message: Pong) -> None:
        """Take an answer's figures; one to nothing is ignored."""
        if self._under_way is None or self._under_way[0] != message.data:
            return
        now = time.monotonic()
        sent, self._under_way = self._under_way[1], None
        self.round_trip = now - sent
        if message.time is not None and self.round_trip < self._best_round_trip:
            self._best_round_trip = self.round_trip
            self.clock_offset = message.time / 1e6 - (sent + now) / 2

    def idle(self, now: float) -> float:
        """Return for how many seconds nothing has been read."""
        return now - self.last_read

    def is_due(self, now: float) -> bool:
        """Tell whether the peer is to be asked."""
        return self._silence is not None and self.idle(now) >= self._silence

    def gives_up(self, now: float, left: int) -> bool:
        """Tell whether the peer is to be taken for dead.

        On a slow link a PING waits behind what was sent before it. While the network goes on to take that,
        the peer cannot know of the PING; it then gets the time to answer it again.

        Args:
            now: the time.
            left: bytes of the connection that have left.

        """
        if self._silence is None or self._reply is None or self.idle(now) < self._silence + self._reply:
            return False
        before, self._left = self._left, left
        return before >= min(left, self._ahead)

    def wait(self, now: float) -> float | None:
        """Return seconds until it is to be looked at again; None: never."""
        if self._silence is None:
            return None
        idle = self.idle(now)
        if idle < self._silence:
            return self._silence - idle
        if self._reply is None:
            return self._silence
        rest = self._silence + self._reply - idle
        return rest if rest > 0 else self._reply
