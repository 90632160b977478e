"""Hand packed tensors from the compute thread to the event loop, bounded in bytes."""

from __future__ import annotations

import asyncio
import collections
import threading
from typing import Generic, TypeVar

__all__ = ["Handover", "HandoverClosed"]

T = TypeVar("T")


class HandoverClosed(Exception):
    """The reader has gone; the compute thread is to stop."""


class Handover(Generic[T]):
    """A queue between one thread, which blocks when it is full, and one coroutine.

    Args:
        limit: bytes that may wait. An item larger than that is let through alone.

    Attributes:
        held: bytes that wait now.

    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._loop = asyncio.get_running_loop()
        self._items: collections.deque[tuple[T, int]] = collections.deque()
        self._room = threading.Condition()
        self._closed = False
        self._arrived = asyncio.Event()

    def put(self, item: T, size: int) -> None:
        """Add an item; called by the thread, blocks while there is no room.

        Raises:
            HandoverClosed: nobody will take it.

        """
        with self._room:
            self._room.wait_for(lambda: self._closed or not self.held or self.held + size <= self.limit)
            if self._closed:
                raise HandoverClosed
            if not self._items:
                # The reader takes all there is once it is awake: one call for each item would interrupt the
                # thread as often. Under the lock, as the loop cannot be closed since the check above then.
                self._loop.call_soon_threadsafe(self._arrived.set)
            self._items.append((item, size))
            self.held += size

    def pause(self, seconds: float) -> None:
        """Let the thread do nothing for a while.

        Raises:
            HandoverClosed: it is to stop.

        """
        with self._room:
            if self._room.wait_for(lambda: self._closed, seconds):
                raise HandoverClosed

    async def get(self) -> T:
        """Return the next item. Cancelling is safe: no item is lost."""
        while True:
            with self._room:
                if self._items:
                    item, size = self._items.popleft()
                    self.held -= size
                    self._room.notify()
                    return item
                self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Let the thread stop: what waits is dropped, and a blocked ``put`` raises."""
        with self._room:
            self._closed = True
            self._items.clear()
            self.held = 0
            self._room.notify_all()
