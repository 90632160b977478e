"""Fair turns on one thread: whoever has had the least of its time goes next.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), equal weights: a session whose steps are ten
times as long gets a tenth as many of them, and does not slow the others down. Who was idle begins where the
others are; time that was not used is not saved up.

Work of one kind can be done together where that takes less time than one after the other; each owner then
pays a part of it.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

__all__ = ["Joint", "Turns"]

R = TypeVar("R")

# Who was served with others is back within milliseconds as a rule, each after its own reports and reads; the
# thread waits for them so long, but only once for who does not come back.
LINGER = 0.005
AHEAD = 1.0  # seconds that an owner may have had more than the one whose turn it is, to join


class Joint(abc.ABC, Generic[R]):
    """Work that can be done together with that of other owners.

    Args:
        kind: equal for those that can be joined.
        cost: its part of the time, compared to the others'.

    """

    def __init__(self, kind: Hashable, cost: float) -> None:
        self.kind = kind
        self.cost = cost

    @abc.abstractmethod
    def fits(self, others: Sequence[Self]) -> bool:
        """Tell whether it is faster to do it together with these than one after the other."""

    @abc.abstractmethod
    def run(self, others: Sequence[Self]) -> Sequence[R | Exception]:
        """Do it and the others'; return the results or what they raise, its own first."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    owner: str
    job: Future[Any]
    work: Callable[[], Any] | Joint[Any]

    @property
    def cost(self) -> float:
        return self.work.cost if isinstance(self.work, Joint) else 1.0


class Turns:
    """A thread and the work that waits for it.

    An owner's own work is done in the order in which it came.

    Args:
        name: of the thread.
        clock: seconds; by default the thread's own time, so that nobody pays for what other threads and
            processes took from it.
        group: most owners whose work is done together.

    """

    def __init__(self, name: str, clock: Callable[[], float] = time.thread_time, group: int = 1) -> None:
        self._clock = clock
        self._group = group
        self._changed = threading.Condition()
        self._closed = False
        # Owners with waiting work, in the order in which they began to wait.
        self._waiting: dict[str, collections.deque[_Waiting]] = {}
        self._spent: dict[str, float] = {}  # seconds; of owners that are ahead of the virtual time
        self._virtual = 0.0  # what the owner that was served last had spent before
        self._expected: dict[str, Hashable] = {}  # owners that have not come back yet, and their last kind
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, owner: str, work: Callable[[], R] | Joint[R]) -> Future[R]:
        """Have work done when it is the owner's turn.

        Raises:
            RuntimeError: the thread has ended.

        """
        job: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the thread has ended")
            self._expected.pop(owner, None)
            if owner not in self._waiting:
                self._waiting[owner] = collections.deque()
                self._spent[owner] = max(self._spent.get(owner, 0.0), self._virtual)
            self._waiting[owner].append(_Waiting(owner, job, work))
            self._changed.notify()
        return job

    def close(self) -> None:
        """Do all that waits, and end the thread; can be called more than once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._serve():
            pass  # a result, or the tensors of a batch, must not outlive its use: nothing is held here

    def _serve(self) -> bool:
        """Do what is next; False: all is done, and the thread ends."""
        taken = self._take()
        begun = [one for one in taken if one.job.set_running_or_notify_cancel()]
        if not begun:
            return bool(taken)
        start = self._clock()
        try:
            results = _do([one.work for one in begun])
        except BaseException as exc:
            self._pay(begun, start)
            for one in begun:
                one.job.set_exception(exc)
            return True
        self._pay(begun, start)
        for one, result in zip(begun, results, strict=True):
            if isinstance(one.work, Joint) and isinstance(result, Exception):
                one.job.set_exception(result)
            else:
                one.job.set_result(result)
        return True

    def _take(self) -> list[_Waiting]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            owner = min(self._waiting, key=self._spent.__getitem__)
            taken = []
            for one in [owner, *self._partners(owner)]:
                taken.append(self._waiting[one].popleft())
                if not self._waiting[one]:
                    del self._waiting[one]
            self._virtual = self._spent[owner]
            return taken

    def _partners(self, owner: str) -> list[str]:
        """Return whose work is done together with an owner's."""
        work = self._waiting[owner][0].work
        if self._group == 1 or not isinstance(work, Joint):
            return []
        kind = work.kind
        self._changed.wait_for(lambda: self._closed or self._all_back(kind), LINGER)
        self._expected = {one: of for one, of in self._expected.items() if of != kind}
        found: list[str] = []
        joined: list[Joint[Any]] = []
        for one in sorted(self._of_kind(kind), key=self._spent.__getitem__):
            near = self._spent[one] <= self._spent[owner] + AHEAD
            other = self._waiting[one][0].work
            if one == owner or not near or not isinstance(other, Joint) or not work.fits([*joined, other]):
                continue
            found.append(one)
            joined.append(other)
            if len(found) + 1 == self._group:
                break
        return found

    def _of_kind(self, kind: Hashable) -> list[str]:
        heads = ((owner, waiting[0].work) for owner, waiting in self._waiting.items())
        return [owner for owner, work in heads if isinstance(work, Joint) and work.kind == kind]

    def _all_back(self, kind: Hashable) -> bool:
        return kind not in self._expected.values() or len(self._of_kind(kind)) >= self._group

    def _pay(self, served: Sequence[_Waiting], start: float) -> None:
        with self._changed:
            each = (self._clock() - start) / sum(one.cost for one in served)
            for one in served:
                self._spent[one.owner] += each * one.cost
                if isinstance(one.work, Joint) and one.owner not in self._waiting:
                    self._expected[one.owner] = one.work.kind
            for owner in [owner for owner, spent in self._spent.items() if spent < self._virtual]:
                if owner not in self._waiting:
                    del self._spent[owner]  # it would begin at the virtual time anyway


def _do(works: Sequence[Callable[[], Any] | Joint[Any]]) -> Sequence[Any]:
    work = works[0]
    if isinstance(work, Joint):
        return work.run([other for other in works[1:] if isinstance(other, Joint)])
    return [work()]
