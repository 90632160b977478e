"""Tests of mobillm.conformance.client_cases.ending."""

from __future__ import annotations

from mobillm.conformance import client_suite, select
from mobillm.conformance.client_cases import ending
from mobillm.conformance.client_cases.moments import MOMENTS
from tests.conformance.running import client_results, passing


def test_our_client_passes() -> None:
    """All cases of the area pass against this package's client; there are no less than these."""
    assert passing(client_results(select(client_suite(), ["ending"]))) >= 30


def test_every_moment_can_end_in_four_ways() -> None:
    """Closed, reset, inside a frame, and silent."""
    titles = [draft.title for draft in ending.drafts()]
    for where in MOMENTS:
        assert sum(title.endswith(where) for title in titles) == 4, where
