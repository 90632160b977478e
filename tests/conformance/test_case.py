"""Tests of mobillm.conformance.case."""

from __future__ import annotations

import pytest

from mobillm.conformance import select
from mobillm.conformance.case import Case, Draft, numbered


async def _nothing(_: None) -> None:
    pass


@pytest.fixture
def cases() -> list[Case[None]]:
    """Return five cases of two areas."""
    first = [Draft("F-3 F-1", "a", _nothing), Draft("F-3", "b", _nothing), Draft("F-31", "c", _nothing)]
    second = [Draft("F-3", "d", _nothing), Draft("M-1 F-3", "e", _nothing, 5.0)]
    return list(numbered([("framing", first), ("maps", second)]))


def test_names_follow_the_first_statement(cases: list[Case[None]]) -> None:
    """Numbers count over all areas, and every name is there once."""
    assert [case.id for case in cases] == ["F-3.1", "F-3.2", "F-31.1", "F-3.3", "M-1.1"]
    assert cases[0].statements == ("F-3", "F-1")
    assert (cases[4].area, cases[4].seconds) == ("maps", 5.0)


@pytest.mark.parametrize(
    ("patterns", "titles"),
    [
        ([], "abcde"),
        (["maps"], "de"),
        (["F-3"], "abde"),
        (["F-3.*"], "abd"),
        (["F-1", "M-*"], "ae"),
        (["F-3?"], "c"),
        (["x"], ""),
    ],
)
def test_selection(cases: list[Case[None]], patterns: list[str], titles: str) -> None:
    """By area, by id and by any of the statements; several patterns add up."""
    assert "".join(case.title for case in select(cases, patterns)) == titles
