"""Credit of one stream: how many bytes and which batch the device may still send.

``docs/protocol.md``, section "Credit". Both grants are absolute, as QUIC's MAX_DATA is (RFC 9000,
section 4.1): a grant that arrives twice or late does no harm.
"""

from __future__ import annotations

__all__ = ["Credit"]


class Credit:
    """Pure arithmetic that both ends run alike.

    Attributes:
        granted: bytes that may be sent since the stream was attached.
        used: bytes that have been sent.
        last: highest batch number that may be sent.

    """

    __slots__ = ("granted", "last", "used")

    def __init__(self) -> None:
        self.granted = 0
        self.used = 0
        self.last = 0

    @property
    def available(self) -> int:
        """Bytes that may be sent now."""
        return self.granted - self.used

    def grant(self, offset: int, last: int) -> None:
        """Raise both bounds; lower figures are ignored."""
        self.granted = max(self.granted, offset)
        self.last = max(self.last, last)

    def allows(self, size: int, seq: int) -> bool:
        """Tell whether a frame of ``size`` bytes that belongs to batch ``seq`` may be sent."""
        return self.used + size <= self.granted and seq <= self.last

    def charge(self, size: int) -> None:
        """Count ``size`` bytes as sent."""
        self.used += size
