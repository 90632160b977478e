"""One conformance case: a stimulus, the exact reaction that is right, and the statements it proves."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

__all__ = ["Busy", "Case", "Deviation", "Draft", "NotApplicable", "numbered", "select"]

E = TypeVar("E")
Run = Callable[[E], Awaitable[None]]


class Deviation(Exception):
    """The peer did something else than the specification says; the text names both."""


class NotApplicable(Exception):
    """The case needs what is not there, a second tenant, say; the text says what."""


class Busy(Exception):
    """The peer has no room now and says when to try again; the case is run again after that.

    Args:
        seconds: to wait.

    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the peer asks to come back after {self.seconds:g} s"


@dataclasses.dataclass(frozen=True, slots=True)
class Draft(Generic[E]):
    """A case before it has a number.

    Attributes:
        statements: ids it proves, separated by blanks; the first one gives the case its name.
        title: the stimulus, in a few words.
        run: what to do in a fresh environment; raises :exc:`Deviation`.
        seconds: bound of the whole case.
        alone: whether it runs after the others and beside none, since a server may then hold all of us off
            for a while, as after a failed login.

    """

    statements: str
    title: str
    run: Run[E]
    seconds: float = 20.0
    alone: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Case(Generic[E]):
    """A case of a suite.

    Attributes:
        id: its name, such as ``F-3.2``: the first statement it proves, and a number.
        area: module of the suite it belongs to, such as ``credit``.
        statements: ids of the statements that a failure breaks.
        title: the stimulus, in a few words.
        run: what to do in a fresh environment.
        seconds: bound of the whole case.
        alone: whether it runs after the others and beside none.

    """

    id: str
    area: str
    statements: tuple[str, ...]
    title: str
    run: Run[E]
    seconds: float
    alone: bool = False


def numbered(areas: Iterable[tuple[str, Iterable[Draft[E]]]]) -> Iterator[Case[E]]:
    """Give each draft its name; the cases that begin with the same statement are numbered from 1."""
    counts: dict[str, int] = {}
    for area, drafts in areas:
        for draft in drafts:
            ids = tuple(draft.statements.split())
            counts[ids[0]] = counts.get(ids[0], 0) + 1
            name = f"{ids[0]}.{counts[ids[0]]}"
            yield Case(name, area, ids, draft.title, draft.run, draft.seconds, draft.alone)


def select(cases: Sequence[Case[E]], patterns: Sequence[str]) -> list[Case[E]]:
    """Return the cases that a pattern names: an area, a case's id, or a statement; ``*`` and ``?`` match.

    Args:
        cases: what to choose from.
        patterns: none selects all.

    """
    if not patterns:
        return list(cases)

    def wanted(case: Case[E]) -> bool:
        names = (case.id, case.area, *case.statements)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return [case for case in cases if wanted(case)]
