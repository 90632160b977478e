"""Tests of mobillm.conformance.server_cases.tensors."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import tensors
from mobillm.formats import Format
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["tensors"]))) >= 200


def test_every_format_has_three_sizes() -> None:
    """Too long, too short and exactly right, in every packed format."""
    titles = [draft.title for draft in tensors.drafts()]
    for fmt in Format:
        for what in ("a byte too long", "a byte too short", "exactly right"):
            assert any(title.startswith(fmt.name.lower()) and title.endswith(what) for title in titles), fmt
