"""Tests of mobillm.conformance.client_cases.traffic."""

from __future__ import annotations

from mobillm.conformance import client_suite, select
from tests.conformance.running import client_results, passing


def test_our_client_passes() -> None:
    """[X-20] All cases of the area pass against this package's client; there are no less than these."""
    assert passing(client_results(select(client_suite(), ["traffic"]))) >= 95
