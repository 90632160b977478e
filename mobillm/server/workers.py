"""The server's threads: one for training, one for files. Neither torch nor a disk blocks the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .turns import Joint, Turns

__all__ = ["Workers"]

P = ParamSpec("P")
R = TypeVar("R")


class Workers:
    """Two owned threads.

    Each session has at most a few pieces of work under way, so the queues are bounded by the number of
    sessions. Training time is shared fairly among sessions; files are served as they come.

    Args:
        group: most sessions whose steps are taken together.

    Attributes:
        group: the same.

    """

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self._trainer = Turns("mobillm-train", group=group)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "mobillm-write")

    async def train(self, owner: str, work: Callable[[], R] | Joint[R]) -> R:
        """Run torch work in the training thread when it is the owner's turn.

        Args:
            owner: whose share of the thread's time it takes, a session's name.
            work: what to run; cancelling waits for it once it has begun: nothing is left half done.

        """
        return await _finished(self._trainer.submit(owner, work))

    async def write(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run file work, or decompress what is to be written, in the writing thread.

        Cancelling waits for work that has begun: nothing is left half done.
        """
        return await _finished(self._writer.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Wait for what has begun and end both threads."""
        self._trainer.close()
        self._writer.shutdown()


async def _finished(job: concurrent.futures.Future[R]) -> R:
    future = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # Only the thread's own future knows whether the work has begun.
        if not job.cancel():
            await _ended(future)
        raise


async def _ended(future: asyncio.Future[R]) -> None:
    """Wait for the end, however often that is cancelled; the outcome is dropped."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            pass  # the caller raises the first one
    if not future.cancelled():
        future.exception()
