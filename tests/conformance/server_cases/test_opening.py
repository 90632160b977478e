"""Tests of mobillm.conformance.server_cases.opening."""

from __future__ import annotations

import dataclasses

from mobillm.conformance import Target, select, server_suite
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["opening"]))) >= 40


def test_cases_for_two_tenants_need_two(target: Target) -> None:
    """With one tenant they are skipped, and say why."""
    alone = dataclasses.replace(target, tenants=target.tenants[:1])
    results = server_results(alone, select(server_suite(), ["O-18.*"]))
    assert [result.skipped for result in results] == [
        "the token file has one tenant; this case needs two"
    ] * len(results)
    assert len(results) >= 2
