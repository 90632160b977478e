"""Tests of mobillm.conformance.server_cases.credit."""

from __future__ import annotations

import argparse
from typing import Any

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import credit
from mobillm.protocol import FrameType
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["credit"]))) >= 25


def test_frames_have_the_size_asked_for() -> None:
    """To the byte, as the cases at the edge of the credit need."""
    stream: Any = argparse.Namespace(number=1)
    for kind in (FrameType.DATA, FrameType.BLOB):
        for size in (1024, 4096, 5097):
            assert len(credit._sized(stream, kind, size)) == size
