"""Tests of mobillm.conformance.server_cases.types."""

from __future__ import annotations

import re

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import types
from mobillm.protocol import FrameType
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["types"]))) >= 250


def test_every_type_has_a_case() -> None:
    """All 256 values of the type byte but those that are assigned."""
    titles = " ".join(draft.title for draft in types.drafts())
    seen = {int(found, 16) for found in re.findall(r"type 0x(..)\b", titles)}
    assert seen == set(range(256)) - {int(kind) for kind in FrameType}
