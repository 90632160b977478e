"""Tests of mobillm.protocol.credit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.protocol.credit import Credit


def test_nothing_is_allowed_at_first() -> None:
    """[C-7] Both figures start at 0."""
    credit = Credit()
    assert credit.available == 0
    assert not credit.allows(1, 0)
    assert credit.allows(0, 0)


def test_bounds_are_inclusive_and_independent() -> None:
    """[C-3] Exactly the granted bytes and the granted batch pass, one more does not."""
    credit = Credit()
    credit.grant(100, 2)
    assert credit.allows(100, 2)
    assert not credit.allows(101, 2)
    assert not credit.allows(100, 3)
    credit.charge(60)
    assert credit.available == 40
    assert credit.allows(40, 1)
    assert not credit.allows(41, 1)


def test_lower_grants_are_ignored_one_by_one() -> None:
    """[C-8] Each figure keeps its maximum on its own."""
    credit = Credit()
    credit.grant(100, 2)
    credit.grant(50, 5)
    assert (credit.granted, credit.last) == (100, 5)
    credit.grant(200, 1)
    assert (credit.granted, credit.last) == (200, 5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**48), st.integers(0, 2**63 - 1)), max_size=8), st.randoms())
def test_order_of_grants_does_not_matter(grants: list[tuple[int, int]], dice: object) -> None:
    """[C-2] [C-8] Late and repeated grants do no harm."""
    one, other = Credit(), Credit()
    for grant in grants:
        one.grant(*grant)
    for grant in [*reversed(grants), *grants]:
        other.grant(*grant)
    assert (one.granted, one.last) == (other.granted, other.last)
