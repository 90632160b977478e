"""Tests of mobillm.conformance.server_cases.states."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import states
from mobillm.protocol import FrameType
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["states"]))) >= 380


def test_the_product_is_full() -> None:
    """Each frame type in each state."""
    titles = [draft.title for draft in states.drafts()]
    for where in states._STATES:
        assert {f"{kind.name} {where}" for kind in FrameType} <= set(titles), where
    assert len(titles) == len(set(titles))
