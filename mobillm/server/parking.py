"""Sessions that nobody is attached to: when their memory and their files are freed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .session import Session

__all__ = ["Parking"]


class Parking:
    """Parks sessions: at once when they have ended, else when their device has been away for a while.

    A device that has lost its connection is back within seconds, and finds its session as it was. One that
    never comes back, because its app was removed or it forgot the session's name, costs no memory for long.

    Args:
        is_attached: whether a device is attached to a session.
        away: seconds for which the device of a session that waits for it may be away; None: for ever.

    """

    def __init__(self, is_attached: Callable[[Session], bool], away: float | None) -> None:
        self._is_attached = is_attached
        self._away = away
        self._ended: set[asyncio.Task[None]] = set()
        self._watched: dict[bytes, asyncio.Task[None]] = {}

    def finished(self, session: Session) -> None:
        """Park a session whose training is over, in a task of its own."""
        task = asyncio.get_running_loop().create_task(self.left(session))
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)

    async def left(self, session: Session) -> None:
        """Park a session without a device, or watch it until it can be."""
        if self._is_attached(session):
            return
        if session.ended:
            await session.park()
        elif self._away is not None and session.id not in self._watched:
            task = asyncio.get_running_loop().create_task(self._watch(session, self._away))
            self._watched[session.id] = task
            task.add_done_callback(lambda _: self._watched.pop(session.id, None))

    async def _watch(self, session: Session, away: float) -> None:
        while True:
            await asyncio.sleep(away)
            async with session.attaching:  # a device that comes meanwhile finds it whole
                if self._is_attached(session) or session.ended or await session.park():
                    return

    async def forget(self, session_id: bytes) -> None:
        """End what is under way for a session."""
        await _cancelled(self._watched.get(session_id))

    async def close(self) -> None:
        """End all that is under way; what was begun of a session that has ended is done first."""
        await asyncio.gather(*self._ended)
        await _cancelled(*self._watched.values())


async def _cancelled(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
