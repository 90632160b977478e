"""Tests of mobillm.conformance.runner."""

from __future__ import annotations

import asyncio

from mobillm.conformance import Case, Deviation, NotApplicable, Result, run_cases
from mobillm.conformance.peer import Log
from tests.conftest import Run


class _Place:
    """An environment that counts how many there are at once."""

    open = 0
    most = 0

    def __init__(self) -> None:
        self.log = Log()
        _Place.open += 1
        _Place.most = max(_Place.most, _Place.open)

    async def close(self) -> None:
        _Place.open -= 1


async def _passes(place: _Place) -> None:
    place.log.add("x")
    await asyncio.sleep(0.01)


async def _deviates(place: _Place) -> None:
    place.log.add("> this")
    raise Deviation("expected this; got that")


async def _skips(_place: _Place) -> None:
    raise NotApplicable("no tenants")


async def _hangs(_place: _Place) -> None:
    await asyncio.sleep(3600)


async def _crashes(_place: _Place) -> None:
    raise KeyError("x")


def test_each_outcome(run: Run) -> None:
    """Results come in the order of the cases, each case is bounded, and no crash ends the suite."""
    works = (_passes, _deviates, _skips, _hangs, _crashes, *[_passes] * 5)
    cases = [Case(str(number), "x", ("F-1",), "t", work, 0.1) for number, work in enumerate(works)]
    seen: list[Result] = []

    async def main() -> list[Result]:
        _Place.most = 0
        return await run_cases(cases, _Place, jobs=3, done=seen.append)

    results = run(main())
    assert [result.case for result in results] == cases
    assert len(seen) == len(cases)
    assert [result.passed for result in results] == [True, *[False] * 4, *[True] * 5]
    assert [result.deviation for result in results[:5]] == [
        None,
        "expected this; got that",
        None,
        "the case did not come to an end within 0.1 s",
        "the case itself failed: KeyError: 'x'",
    ]
    assert results[2].skipped == "no tenants"
    assert results[1].log == ("> this",)
    assert results[0].log == ()
    assert (_Place.open, _Place.most) == (0, 3)
