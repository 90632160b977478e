"""Keep computing to a part of the time, so that a device stays cool and usable beside it."""

from __future__ import annotations

from ..errors import ConfigError

__all__ = ["Duty"]


class Duty:
    """Account of computing and idle time.

    Args:
        share: part of the time that may be computed in, above 0 to 1.

    Raises:
        ConfigError: it is not.

    """

    def __init__(self, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError("duty", share, "above 0 to 1")
        self._rest = 1.0 / share - 1.0  # seconds of rest for one of computing
        self._owed = 0.0

    def owed(self, computed: float) -> float:
        """Return the seconds of rest that are due, with ``computed`` seconds since the last idle time."""
        return self._owed + computed * self._rest

    def idle(self, computed: float, seconds: float) -> None:
        """Note an idle time after some computing; what is more than was due is not kept for later."""
        self._owed = max(0.0, self.owed(computed) - seconds)
