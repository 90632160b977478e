"""Sessions that nobody is attached to: when their memory and their files are freed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from .session import Session

__all__ = ["Parking", "cancelled"]

logger = logging.getLogger("mobillm.server")


class Parking:
    """Parks sessions: at once when they have ended, else when their device has been away for a while.

    A device that has lost its connection is back within seconds, and finds its session as it was. One that
    never comes back, because its app was removed or it forgot the session's name, costs no memory for long.

    Args:
        sessions: all sessions, by id.
        is_attached: whether a device is attached to one.
        away: seconds for which the device of a session that waits for it may be away; None: for ever.

    """

    def __init__(
        self, sessions: Mapping[bytes, Session], is_attached: Callable[[Session], bool], away: float | None
    ) -> None:
        self._sessions = sessions
        self._is_attached = is_attached
        self._away = away
        self._due: dict[bytes, float] = {}  # when a session is to be looked at, on the loop's clock
        self._wake = asyncio.Event()
        self._now: tuple[bytes, asyncio.Task[bool]] | None = None  # what is being parked
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to park what is due."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def watch(self, session: Session) -> None:
        """Count from now on how long the device is away."""
        if self._away is not None and not session.ended:
            self._look_at(session.id, self._away)

    async def left(self, session: Session) -> None:
        """Act on a device that has left: park its session if that has ended, else count."""
        if self._is_attached(session):
            return
        if session.ended:
            await session.park()
        self.watch(session)

    def finished(self, session: Session) -> None:
        """Have a session parked whose training is over."""
        if not self._is_attached(session):
            self._look_at(session.id, 0.0)

    async def interrupt(self, session_id: bytes) -> None:
        """Leave a session alone, whose device is back or which is deleted; what is under way is undone."""
        self._due.pop(session_id, None)
        if self._now is not None and self._now[0] == session_id:
            await cancelled(self._now[1])

    async def close(self) -> None:
        """Park nothing any more."""
        await cancelled(self._sweeper)

    def _look_at(self, session_id: bytes, seconds: float) -> None:
        self._due[session_id] = asyncio.get_running_loop().time() + seconds
        self._wake.set()

    async def _sweep(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            for session_id in [one for one, due in self._due.items() if due <= clock()]:
                # One that was interrupted meanwhile is not due any more.
                if self._due.get(session_id, clock() + 1.0) <= clock():
                    await self._try(session_id)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._due.values(), default=None)):
                    await self._wake.wait()

    async def _try(self, session_id: bytes) -> None:
        """Park a session, or look at it again later: it trains, or the attempt failed."""
        session = self._sessions.get(session_id)
        del self._due[session_id]
        if session is None or self._is_attached(session):
            return
        task = asyncio.get_running_loop().create_task(session.park())
        self._now = session_id, task
        try:
            await asyncio.wait([task])
        finally:
            self._now = None
            await cancelled(task)
        if task.cancelled():
            return
        exc = task.exception()
        if exc is not None:
            logger.error("! session %s cannot be parked: %s", session_id.hex(), exc, exc_info=exc)
        if exc is not None or not task.result():
            self.watch(session)


async def cancelled(*tasks: asyncio.Task[bool] | asyncio.Task[None] | None) -> None:
    """Cancel tasks, those that there are, and wait for their end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
