"""Fair turns: shares of time, order within an owner, and nothing saved up."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from mobillm.server.turns import Turns


class Clock:
    """A clock that work moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock at 0."""
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Iterator[Turns]:
    """Return turns whose thread ends with the test."""
    found = Turns("test", clock)
    yield found
    found.close()


def served(turns: Turns, clock: Clock, costs: dict[str, float], rounds: int) -> list[str]:
    """Keep each owner waiting with one piece of work, as sessions do; return who was served, in order."""
    order: list[str] = []
    left = dict.fromkeys(costs, rounds)
    gate = threading.Event()
    done = threading.Event()

    def work(owner: str) -> None:
        gate.wait(5.0)
        order.append(owner)
        clock.now += costs[owner]
        left[owner] -= 1
        if not left[owner]:
            done.set()
        elif not done.is_set():
            turns.submit(owner, functools.partial(work, owner))  # before this one is paid for

    for owner in costs:
        turns.submit(owner, functools.partial(work, owner))
    gate.set()
    assert done.wait(5.0)
    return order


def test_equal_owners_take_turns(turns: Turns, clock: Clock) -> None:
    """With equal steps nobody gets two more than another."""
    order = served(turns, clock, dict.fromkeys("abcd", 1.0), 20)
    for end in range(1, len(order)):
        counts = [order[:end].count(owner) for owner in "abcd"]
        assert max(counts) - min(counts) <= 2


def test_time_is_shared_not_steps(turns: Turns, clock: Clock) -> None:
    """Steps that take ten times as long are a tenth as many."""
    order = served(turns, clock, {"slow": 10.0, "quick": 1.0}, 100)
    assert 8 <= order.count("slow") <= 12


def test_idle_time_is_not_saved_up(turns: Turns, clock: Clock) -> None:
    """Who comes late begins where the others are, and does not hold them up."""
    served(turns, clock, {"old": 1.0}, 50)
    order = served(turns, clock, {"old": 1.0, "new": 1.0}, 20)
    assert order[:10].count("old") >= 4


def test_order_errors_and_cancelled_work(turns: Turns) -> None:
    """An owner's work stays in order; an error is its caller's; what was cancelled is not begun."""
    seen: list[int] = []
    gate = threading.Event()
    blocker = turns.submit("x", lambda: gate.wait(5.0))
    jobs: list[Future[None]] = [turns.submit("a", functools.partial(seen.append, n)) for n in range(5)]
    wrong = turns.submit("b", lambda: 1 // 0)
    assert jobs[2].cancel()
    gate.set()
    with pytest.raises(ZeroDivisionError):
        wrong.result(5.0)
    jobs[-1].result(5.0)
    assert blocker.result() is True
    assert seen == [0, 1, 3, 4]


def test_closing_does_what_waits(clock: Clock) -> None:
    """Work that was given before the end is done; none is taken after it; owners are forgotten."""
    turns = Turns("test", clock)
    seen: list[int] = []

    def work(number: int) -> None:
        seen.append(number)
        clock.now += 1

    for number in range(100):
        turns.submit(str(number), functools.partial(work, number))
    turns.close()
    turns.close()
    assert sorted(seen) == list(range(100))
    with pytest.raises(RuntimeError, match="has ended"):
        turns.submit("a", lambda: None)


def test_time_that_others_take_is_nobodys_debt() -> None:
    """What counts is the thread's processor time: who only waited goes before who has worked."""
    turns, order, gate = Turns("test"), list[str](), threading.Event()

    def wait() -> None:
        order.append("waits")
        time.sleep(0.05)

    def work() -> None:
        order.append("works")
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    second: list[Future[None]] = []

    def twice(owner: str, what: Callable[[], None]) -> None:
        second.append(turns.submit(owner, what))  # before this one is paid for
        what()

    turns.submit("gate", functools.partial(gate.wait, 5.0))
    first = [
        turns.submit("a", functools.partial(twice, "a", wait)),
        turns.submit("b", functools.partial(twice, "b", work)),
    ]
    gate.set()
    for job in first:
        job.result(5.0)
    for job in second:
        job.result(5.0)
    turns.close()
    assert order == ["waits", "works", "waits", "works"]
