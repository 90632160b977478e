"""Fair turns: shares of time, order within an owner, and nothing saved up."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Self

import pytest

from mobillm.server import turns as turns_module
from mobillm.server.turns import Joint, Turns


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


class Step(Joint[str]):
    """Work that notes with whom it was done."""

    def __init__(
        self, name: str, log: list[list[str]], clock: Clock, cost: float = 1.0, most: int = 9
    ) -> None:
        super().__init__(name[0], cost)
        self.name = name
        self._log = log
        self._clock = clock
        self._most = most

    def fits(self, others: Sequence[Self]) -> bool:
        """Tell whether there is room."""
        return len(others) < self._most

    def run(self, others: Sequence[Self]) -> Sequence[str | Exception]:
        """Note it; a name with an exclamation mark is an error."""
        names = [self.name, *(other.name for other in others)]
        self._log.append(names)
        self._clock.now += 1.0
        return [ValueError(name) if name.endswith("!") else name for name in names]


def held(turns: Turns) -> threading.Event:
    """Keep the thread busy until the event is set."""
    gate, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait(5.0)

    turns.submit("gate", hold)
    assert begun.wait(5.0)
    return gate


def test_work_of_one_kind_is_done_together(clock: Clock) -> None:
    """At most as many as asked for, of one kind, and none where it does not fit; errors are each one's."""
    turns, log = Turns("test", clock, group=3), list[list[str]]()
    gate = held(turns)
    names = ["a1", "b1", "a2!", "a3", "a4", "b2"]
    jobs = [turns.submit(name, Step(name, log, clock, most=1 if name[0] == "b" else 9)) for name in names]
    jobs[3].cancel()
    plain = turns.submit("plain", lambda: "plain")
    gate.set()
    assert plain.result(5.0) == "plain"
    turns.close()
    assert log == [["a1", "a2!"], ["b1"], ["a4"], ["b2"]]
    assert [job.result(0) for job in jobs if job not in (jobs[2], jobs[3])] == ["a1", "b1", "a4", "b2"]
    with pytest.raises(ValueError, match="a2!"):
        jobs[2].result(0)


def test_alone_by_default(turns: Turns, clock: Clock) -> None:
    """Nothing is done together unless it is asked for."""
    log: list[list[str]] = []
    gate = held(turns)
    jobs = [turns.submit(name, Step(name, log, clock)) for name in ("a1", "a2")]
    gate.set()
    assert [job.result(5.0) for job in jobs] == ["a1", "a2"]
    assert log == [["a1"], ["a2"]]


def test_each_pays_its_part(clock: Clock) -> None:
    """Who is three quarters of the common work pays three quarters of its time."""
    turns, log, order = Turns("test", clock, group=2), list[list[str]](), list[str]()
    gate = held(turns)
    for name, cost in (("a1", 3.0), ("a2", 1.0)):
        turns.submit(name, Step(name, log, clock, cost))

    def work(owner: str) -> None:
        order.append(owner)
        clock.now += 0.3

    for _ in range(3):
        for owner in ("a1", "a2"):
            turns.submit(owner, functools.partial(work, owner))
    gate.set()
    turns.close()
    assert log == [["a1", "a2"]]
    assert order == ["a2", "a2", "a1", "a2", "a1", "a1"]


def test_who_is_far_ahead_does_not_join(clock: Clock) -> None:
    """Common work is no way around fair shares."""
    turns, log = Turns("test", clock, group=2), list[list[str]]()
    gate = held(turns)

    def long() -> None:
        clock.now += 5.0

    turns.submit("a1", long)
    turns.submit("a1", Step("a1", log, clock))
    for _ in range(2):
        turns.submit("a2", Step("a2", log, clock))
    gate.set()
    turns.close()
    assert log == [["a2"], ["a2"], ["a1"]]


def test_the_thread_waits_a_little_for_who_comes_back(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was served is back in a moment; who is not is waited for once only."""
    monkeypatch.setattr(turns_module, "LINGER", 2.0)
    turns, log = Turns("test", clock, group=2), list[list[str]]()
    turns.submit("a1", Step("a1", log, clock)).result(5.0)
    jobs = [turns.submit("a2", Step("a2", log, clock))]
    with pytest.raises(TimeoutError):  # the thread has taken nothing: a1 may come back
        jobs[0].result(0.05)
    jobs.append(turns.submit("a1", Step("a1", log, clock)))
    assert [job.result(1.0) for job in jobs] == ["a2", "a1"]
    assert len(log) == 2
    monkeypatch.setattr(turns_module, "LINGER", 0.01)
    turns.submit("a2", Step("a2", log, clock)).result(1.0)
    monkeypatch.setattr(turns_module, "LINGER", 60.0)
    turns.submit("a2", Step("a2", log, clock)).result(1.0)
    turns.close()
