"""Tests of mobillm.conformance.wire."""

from __future__ import annotations

import pytest

from mobillm.conformance.wire import describe, device_proof, frame, raw_frame, resigned, server_proof
from mobillm.errors import ErrorCode, RemoteProtocolError
from mobillm.protocol import FrameBuffer, FrameType, Ping, decode_message, encode_frame
from mobillm.protocol.auth import Transcript


def test_a_right_frame_is_that_of_the_core() -> None:
    """With and without a payload, byte for byte."""
    for payload in (None, b"payload"):
        kind = FrameType.PING if payload is None else FrameType.DATA
        expected = b"".join(bytes(part) for part in encode_frame(kind, 3, 4, b"\x80", payload))
        assert raw_frame(kind, b"\x80", payload, stream=3, seq=4) == expected


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"magic": b"XX"}, ErrorCode.PROTOCOL),
        ({"version": 2}, ErrorCode.UNSUPPORTED_VERSION),
        ({"flags": 1}, ErrorCode.PROTOCOL),
        ({"body_size": 1 << 30}, ErrorCode.FRAME_SIZE),
        ({"meta_size": 5000}, ErrorCode.LIMIT),
    ],
)
def test_one_field_can_be_wrong(changes: dict[str, int | bytes], code: ErrorCode) -> None:
    """The checksums are right all the same, so that the field is what is refused."""
    data = raw_frame(FrameType.PING, b"\x80", **changes)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError) as caught:
        list(FrameBuffer(1 << 20).receive_data(data))
    assert caught.value.code == code


def test_resigning_makes_checksums_right() -> None:
    """A frame that was changed is read again."""
    data = bytearray(frame(FrameType.PING, {"data": bytes(8)}))
    data[-1] = 7
    found = decode_message(next(FrameBuffer(4096).receive_data(resigned(bytes(data)))))
    assert isinstance(found, Ping)
    assert found.data == bytes(7) + b"\7"


def test_proofs_are_those_of_the_core() -> None:
    """Both labels, over both bodies."""
    transcript = Transcript()
    transcript.add(FrameType.HELLO, b"hello")
    transcript.add(FrameType.CHALLENGE, b"challenge")
    key = b"k" * 32
    assert device_proof(key, b"hello", b"challenge") == transcript.device_proof(key)
    assert server_proof(key, b"hello", b"challenge") == transcript.server_proof(key)


def test_descriptions() -> None:
    """Known types by name, unknown ones by number, and anything else as bytes."""
    assert describe(frame(FrameType.FINISH, stream=2, seq=5)).startswith(
        "FINISH stream 2 seq 5, 33 bytes: 4d"
    )
    assert describe(raw_frame(0x99, b"")).startswith("type 0x99 stream 0, 32 bytes")
    assert describe(b"GET /") == "bytes, 5 bytes: 47 45 54 20 2f"
    assert describe(bytes(99)).endswith("00 ...")
