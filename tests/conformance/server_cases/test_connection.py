"""Tests of mobillm.conformance.server_cases.connection."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["connection"]))) >= 40
