"""Fair turns on one thread: whoever has had the least of its time goes next.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), equal weights: a session whose steps are ten
times as long gets a tenth as many of them, and does not slow the others down. Who was idle begins where the
others are; time that was not used is not saved up.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Turns"]

R = TypeVar("R")


class Turns:
    """A thread and the work that waits for it.

    An owner's own work is done in the order in which it came.

    Args:
        name: of the thread.
        clock: seconds; by default the thread's own time, so that nobody pays for what other threads and
            processes took from it.

    """

    def __init__(self, name: str, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        # Owners with waiting work, in the order in which they began to wait.
        self._waiting: dict[str, collections.deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._spent: dict[str, float] = {}  # seconds; of owners that are ahead of the virtual time
        self._virtual = 0.0  # what the owner that was served last had spent before
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, owner: str, work: Callable[[], R]) -> Future[R]:
        """Have work done when it is the owner's turn.

        Raises:
            RuntimeError: the thread has ended.

        """
        job: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the thread has ended")
            if owner not in self._waiting:
                self._waiting[owner] = collections.deque()
                self._spent[owner] = max(self._spent.get(owner, 0.0), self._virtual)
            self._waiting[owner].append((job, work))
            self._changed.notify()
        return job

    def close(self) -> None:
        """Do all that waits, and end the thread; can be called more than once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (item := self._take()) is not None:
            owner, job, work = item
            if not job.set_running_or_notify_cancel():
                continue
            start = self._clock()
            try:
                result = work()
            except BaseException as exc:
                self._pay(owner, start)
                job.set_exception(exc)
            else:
                self._pay(owner, start)
                job.set_result(result)
            del item, job, work  # a result, or the tensors of a batch, must not outlive its use

    def _take(self) -> tuple[str, Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            owner = min(self._waiting, key=lambda one: self._spent[one])
            job, work = self._waiting[owner].popleft()
            if not self._waiting[owner]:
                del self._waiting[owner]
            self._virtual = self._spent[owner]
            return owner, job, work

    def _pay(self, owner: str, start: float) -> None:
        with self._changed:
            self._spent[owner] += self._clock() - start
            for one in [one for one, spent in self._spent.items() if spent < self._virtual]:
                if one not in self._waiting:
                    del self._spent[one]  # it would begin at the virtual time anyway
