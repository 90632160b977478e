"""Running cases: several at once, each in an environment of its own and bounded in time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from .case import Busy, Case, Deviation, NotApplicable
from .peer import Log

__all__ = ["Environment", "Result", "run_cases"]


class Environment(Protocol):
    """What a case works with.

    Attributes:
        log: what was sent and what came back.

    """

    log: Log

    async def close(self) -> None:
        """Cut everything that the case has left open."""


E = TypeVar("E", bound=Environment)

# Seconds in all that a case waits for a peer which has no room for it.
PATIENCE = 12.0


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How one case went.

    Attributes:
        case: the case.
        deviation: what was expected and what came instead; None when it passed.
        seconds: that it took.
        log: what was sent and what came back; empty when it passed.
        skipped: what the case needs and did not get; None when it was run.

    """

    case: Case[Any]
    deviation: str | None
    seconds: float
    log: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the peer did what the specification says."""
        return self.deviation is None and self.skipped is None


async def run_cases(
    cases: Sequence[Case[E]],
    make: Callable[[], E],
    *,
    jobs: int = 16,
    done: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run cases and return their results in the order of the cases.

    Args:
        cases: what to run.
        make: makes the environment of one case.
        jobs: cases at once.
        done: called with each result as it comes.

    """
    places = asyncio.Semaphore(jobs)
    results: dict[str, Result] = {}

    async def run(case: Case[E]) -> None:
        async with places:
            results[case.id] = await _run_patiently(case, make)
        done(results[case.id])

    await asyncio.gather(*(run(case) for case in cases if not case.alone))
    for case in cases:
        if case.alone:
            await run(case)
    return [results[case.id] for case in cases]


async def _run_patiently(case: Case[E], make: Callable[[], E]) -> Result:
    """Run a case again as long as the peer has no room for it."""
    waited = 0.0
    while True:
        try:
            return await _run(case, make())
        except Busy as exc:
            if waited + exc.seconds > PATIENCE:
                return Result(case, None, waited, skipped=str(exc))
            waited += exc.seconds
            await asyncio.sleep(exc.seconds)


async def _run(case: Case[E], environment: E) -> Result:
    start = time.monotonic()
    deviation = skipped = None
    try:
        async with asyncio.timeout(case.seconds):
            await case.run(environment)
    except Deviation as exc:
        deviation = str(exc)
    except Busy:
        raise
    except NotApplicable as exc:
        skipped = str(exc)
    except TimeoutError:
        deviation = f"the case did not come to an end within {case.seconds:g} s"
    except Exception as exc:  # a peer that no case foresaw must not end the suite
        deviation = f"the case itself failed: {type(exc).__name__}: {exc}"
    finally:
        await environment.close()
    log = () if deviation is None else tuple(environment.log.lines())
    return Result(case, deviation, time.monotonic() - start, log, skipped)
