"""Tests of mobillm.conformance.server_cases.batches."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.samples import tiny_batch
from mobillm.conformance.server_cases import batches
from mobillm.formats import packed_size
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["batches"]))) >= 95


def test_wrong_batches_differ_from_the_right_one() -> None:
    """A tap of another shape has the bytes that its header announces."""
    tap = batches._tap(5, 70)
    assert len(tap["payload"]) == packed_size(tap["format"], tap["block"], tap["shape"])
    assert batches._with(size=1).end() != tiny_batch(1).end()
