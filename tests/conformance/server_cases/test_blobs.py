"""Tests of mobillm.conformance.server_cases.blobs."""

from __future__ import annotations

import hashlib

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import blobs
from mobillm.protocol import Blob, FrameBuffer, decode_message
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """[W-16] All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["blobs"]))) >= 25


def test_parts_describe_the_whole() -> None:
    """A part holds the digest of all of its content."""
    frames = FrameBuffer(1 << 20)
    message = decode_message(next(frames.receive_data(blobs.part(3, 7, content=b"0123456789"))))
    assert isinstance(message, Blob)
    assert (bytes(message.payload), message.total, message.offset) == (b"3456", 10, 3)
    assert message.digest == hashlib.sha256(b"0123456789").digest()
