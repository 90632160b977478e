"""Tests of mobillm.conformance.client_cases.roles."""

from __future__ import annotations

from mobillm.conformance import client_suite, select
from mobillm.conformance.client_cases import roles
from mobillm.protocol import FrameType
from tests.conformance.running import client_results, passing


def test_our_client_passes() -> None:
    """All cases of the area pass against this package's client; there are no less than these."""
    assert passing(client_results(select(client_suite(), ["roles"]))) >= 190


def test_illegal_types_are_all_there() -> None:
    """Each frame type in each state, but for what is legal."""
    assert len(roles.drafts()) == sum(len(FrameType) - len(state[3]) for state in roles._STATES.values())
