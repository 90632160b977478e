"""Choose the width of each tap so that the link keeps up with the compute thread.

The writer's side measures the link, the compute thread's side how fast taps come. A tap may have as many
bytes as the link carries while one tap is computed, somewhat more while nothing waits for the link, less
while much does.
"""

from __future__ import annotations

from ..formats import Format, row_size
from ..spec import SessionSpec

__all__ = ["WidthController"]

INTERVAL = 0.1  # seconds between measurements of the link
TARGET = 0.2  # seconds of sending that may wait for the link
HORIZON = 1.0  # seconds in which a backlog beyond that is to be gone
SMOOTHING = 0.3  # share of the newest measurement in the averages
GROWTH = 1.2  # how much faster a link is taken to be with each measurement in which it was not full


class WidthController:
    """Pick one of the spec's formats for each tap; the first batch has ``codec.format``.

    A link that is not full shows only that it is at least as fast as what was sent; it is taken to be ever
    faster then, until it is full or carries the largest format. What waits because the server has no room
    is no sign of a slow link and changes nothing.

    Args:
        spec: the session; its ``codec.bits`` are not empty.

    Attributes:
        format: what was picked last.
        rate: bytes a second that the link is taken to carry; None before the first measurement.

    """

    def __init__(self, spec: SessionSpec) -> None:
        self.format = Format.parse(spec.codec.format)
        self.rate: float | None = None
        self._formats = spec.codec.formats
        self._rows = [row_size(fmt, spec.codec.block, spec.model.hidden_size) for fmt in self._formats]
        self._share = 1.0  # of the packed bytes that compression leaves
        self._pace: float | None = None  # seconds in which the rows of one token of one tap are computed
        self._full = False  # the link, at the last measurement
        self._unsent = 0
        self._last: tuple[float, int] | None = None  # time and bytes that had left at the last measurement

    def measure(self, now: float, sent: int, unsent: int) -> None:
        """Note how the link goes; called about every :data:`INTERVAL` seconds.

        Args:
            now: seconds of a monotonic clock.
            sent: bytes handed to the socket so far, over one connection.
            unsent: those of them that wait in its buffer.

        """
        left, full = sent - unsent, unsent > 0
        before, self._last = self._last, (now, left)
        # What went out counts only if the buffer was never seen empty: else it is not the link that is slow.
        was_full, self._full, self._unsent = self._full, full, unsent
        if before is None or now <= before[0] or left < before[1]:
            return
        found = (left - before[1]) / (now - before[0])
        if full and was_full:
            self.rate = found if self.rate is None else self.rate + SMOOTHING * (found - self.rate)
        elif not full and self._pace is not None:
            # A link that is not full carries what there is now, at least. Twice what the largest format
            # needs is as good as any higher rate, and is forgotten sooner.
            needed = self._share * self._rows[self._formats.index(self.format)] / self._pace
            known = needed if self.rate is None else self.rate
            self.rate = min(max(found, known * GROWTH), 2 * self._rows[-1] / self._pace)

    def computed(self, seconds: float, tokens: int, taps: int) -> None:
        """Note how long a batch took to compute, waiting for the link not counted."""
        pace = seconds / (tokens * taps)
        self._pace = pace if self._pace is None else self._pace + SMOOTHING * (pace - self._pace)

    def packed(self, size: int, sent: int) -> None:
        """Note how many bytes of a packed tap are sent."""
        self._share += SMOOTHING * (sent / size - self._share)

    def choose(self, queued: int) -> Format:
        """Return the format of the next tap.

        Args:
            queued: bytes of taps that wait in front of the socket.

        """
        if self.rate is not None and self._pace is not None:
            backlog = (queued + self._unsent) / max(self.rate, 1.0) if self._full else 0.0
            room = self.rate * self._pace * (1.0 + (TARGET - backlog) / HORIZON) / self._share
            fitting = [fmt for fmt, row in zip(self._formats, self._rows, strict=True) if row <= room]
            self.format = fitting[-1] if fitting else self._formats[0]
        return self.format
