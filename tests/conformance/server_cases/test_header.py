"""Tests of mobillm.conformance.server_cases.header."""

from __future__ import annotations

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import header
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["header"]))) >= 165


def test_every_header_byte_is_damaged_once() -> None:
    """Each byte behind the magic, and each bit of the fields that must be 0."""
    titles = {draft.title for draft in header.drafts()}
    assert {f"header byte {position} damaged" for position in range(2, 28)} <= titles
    assert {f"reserved bit {bit} set" for bit in range(16)} <= titles
    assert {f"critical flag {bit} set" for bit in range(8)} <= titles
    assert {f"magic with bit {bit} flipped" for bit in range(16)} <= titles
