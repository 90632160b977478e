"""Tests of mobillm.conformance.server_cases.packing."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """[B-35] to [B-40] [B-43] [X-18] All cases of the area pass against this package's server."""
    assert passing(server_results(target, select(server_suite(), ["packing"]))) >= 40
