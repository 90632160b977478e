"""Tests of mobillm.conformance.server_cases.metadata."""

from __future__ import annotations

import msgpack

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import metadata
from mobillm.protocol import FrameType
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["metadata"]))) >= 130


def test_carriers_are_what_they_seem() -> None:
    """The map that others are built from is right by itself."""
    assert msgpack.unpackb(metadata._ping(b"", 0)[32:]) == {"data": b"12345678"}
    assert metadata._as_pong(metadata._ping(b"", 0))[3] == FrameType.PONG
