"""How many optimizer steps a tenant may take in a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """Spreads the steps of each tenant over time; a step that is early waits.

    Args:
        steps: a minute, of all sessions of one tenant; 0 bounds nothing.
        clock: seconds.

    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / steps if steps else 0.0
        self._clock = clock
        self._next: dict[str, float] = {}  # when the tenant's next step is due

    async def turn(self, tenant: str) -> None:
        """Wait until the tenant may take one more step."""
        if not self._interval:
            return
        now = self._clock()
        due = max(now, self._next.get(tenant, now))
        self._next[tenant] = due + self._interval
        if due > now:
            await asyncio.sleep(due - now)
