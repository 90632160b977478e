"""Tests of mobillm.conformance.server_cases.logins."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import logins
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["logins"]))) >= 20


def test_proofs_are_tried_wrong_in_many_ways() -> None:
    """No kind of wrong proof is left out."""
    titles = [draft.title for draft in logins.drafts() if "A-" in draft.statements]
    assert len(titles) == len(set(titles)) >= 20
