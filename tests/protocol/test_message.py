"""Tests of mobillm.protocol.message."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest

from mobillm.errors import ErrorCode, RemoteProtocolError
from mobillm.protocol import (
    HEADER_SIZE,
    Ack,
    Blob,
    Bye,
    Error,
    Evaluated,
    FrameBuffer,
    FrameType,
    Message,
    Metrics,
    Open,
    Ping,
    decode_message,
)
from tests.helpers import examples, raw_frame, wire_bytes


def decode(data: bytes) -> Message:
    """Decode the one message of a frame."""
    (frame,) = FrameBuffer(1 << 20).receive_data(data)
    return decode_message(frame)


def refusal(data: bytes) -> RemoteProtocolError:
    """Return the refusal of a frame's message."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.type.name)
def test_round_trip(message: Message) -> None:
    """[M-3] Each message comes back as it was, and knows its size beforehand."""
    data = wire_bytes(message)
    assert decode(data) == message
    assert message.frame_size() == len(data)


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.type.name)
def test_defaults_may_be_left_out(message: Message) -> None:
    """[M-4] [M-6] What has a default may be missing, what has none must be there."""
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    outside = {"stream", "seq", "payload"}
    payload: Any = values.get("payload")
    for field in dataclasses.fields(message):
        if field.name in outside or (message.type is FrameType.DATA and field.default is None):
            continue
        rest = {k: v for k, v in values.items() if k not in outside and k != field.name and v is not None}
        data = raw_frame(message.type, rest, payload, stream=message.stream, seq=message.seq)
        if field.default is dataclasses.MISSING:
            error = refusal(data)
            assert error.code is ErrorCode.DECODE
            assert error.text == f"{message.type.name} lacks {field.name}"
        elif field.name == "session":
            assert refusal(data).code is ErrorCode.SCHEMA_MISMATCH
        elif field.name in ("received", "durable"):
            pass  # OPENED's figures depend on one another: test_session has them
        else:
            assert getattr(decode(data), field.name) == field.default


def test_unknown_keys_are_ignored_unless_critical() -> None:
    """[V-2] [V-8] [V-14] A random key does no harm, a critical one is refused."""
    values: dict[str, object] = {"data": bytes(8)}
    assert decode(raw_frame(FrameType.PING, {**values, "grease": [1, {"x": 2}]})) == Ping(data=bytes(8))
    assert refusal(raw_frame(FrameType.PING, {**values, "!grease": 1})).code is ErrorCode.UNSUPPORTED


def test_keys_outside_the_map_are_ignored_inside() -> None:
    """[M-17] stream, seq and payload in the map do not replace those of the frame."""
    values: dict[str, object] = {"digest": bytes(32), "total": 4, "offset": 0}
    spoof: dict[str, object] = {"stream": 9, "seq": 9, "payload": b"evil"}
    blob = decode(raw_frame(FrameType.BLOB, {**values, **spoof}, b"good", stream=1))
    assert isinstance(blob, Blob)
    assert (blob.stream, blob.seq, bytes(blob.payload)) == (1, 0, b"good")


def test_wrong_type_is_a_schema_mismatch_that_names_the_field() -> None:
    """[M-5] [M-7] The text names message, field and rule, not the value."""
    error = refusal(raw_frame(FrameType.PING, {"data": "secret"}))
    assert error.code is ErrorCode.SCHEMA_MISMATCH
    assert error.text == "PING.data must be 8 bytes"


def test_nil_is_absent_for_optional_fields_only() -> None:
    """[M-25] nil and absence mean the same where a field is optional."""
    assert decode(raw_frame(FrameType.ERROR, {"code": 1, "retry_after": None})) == Error(code=1)
    assert refusal(raw_frame(FrameType.ERROR, {"code": 1, "text": None})).code is ErrorCode.SCHEMA_MISMATCH


def test_whole_numbers_may_come_as_integers() -> None:
    """[M-21] A number is a float or an integer, as some msgpack libraries write 2.0 as 2."""
    message = decode(raw_frame(FrameType.ERROR, {"code": 1, "retry_after": 2}))
    assert message == Error(code=1, retry_after=2.0)
    assert wire_bytes(Error(code=1, retry_after=2))
    assert decode(wire_bytes(Evaluated(stream=1, steps=1, samples=1, values={"n": np.float64(0.5)})))


def test_enum_members_are_integers_on_the_wire() -> None:
    """An ErrorCode and the integer make the same bytes."""
    assert wire_bytes(Error(code=ErrorCode.INTERNAL)) == wire_bytes(Error(code=28))


def test_construction_checks_every_field() -> None:
    """A message that exists is valid; stream and seq are checked too."""
    for values in ({"stream": 65536}, {"stream": -1}, {"seq": -1}, {"seq": 2**63}, {"data": b""}):
        with pytest.raises(ValueError, match="must be"):
            Ping(**{"data": bytes(8), **values})  # type: ignore[arg-type]


def test_map_beyond_4_kib_is_refused_before_sending() -> None:
    """[M-26] [L-1] Fields inside their bounds can still be too long together."""
    message = Metrics(stream=1, step=1, epoch=1, spans=((2**62,) * 4,) * 64)
    assert message.frame_size() < 4096
    big = Open(stream=1, spec={str(i): "x" * 100 for i in range(64)})
    for call in (big.frame_size, big.encode):
        with pytest.raises(ValueError, match="OPEN: a map of"):
            call()


@pytest.mark.parametrize(
    "payload",
    [
        np.zeros(4, np.float32).data,
        np.zeros((2, 2), np.uint8).data,
        memoryview(bytes(8))[::2],
        bytearray(4),
        "text",
        None,
    ],
)
def test_payload_must_be_bytes_whose_length_is_its_size(payload: Any) -> None:
    """A view of floats, of several dimensions or with gaps would be charged wrongly."""
    with pytest.raises(ValueError, match=r"BLOB\.payload must be bytes"):
        Blob(stream=1, digest=bytes(32), total=16, offset=0, payload=payload)


def test_payload_may_be_a_view_of_bytes() -> None:
    """A flat view of bytes is taken as it is."""
    view = np.arange(4, dtype=np.uint8).data
    blob = Blob(stream=1, digest=bytes(32), total=4, offset=0, payload=view)
    assert decode(wire_bytes(blob)) == Blob(
        stream=1, digest=bytes(32), total=4, offset=0, payload=bytes(view)
    )


def test_messages_are_immutable_and_keyword_only() -> None:
    """Nobody changes a message after it was checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Bye().seq = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Ack(1, 1, 1)  # type: ignore[call-arg]


def test_an_empty_map_is_one_byte() -> None:
    """A message without fields is a header and an empty map."""
    assert wire_bytes(Bye())[HEADER_SIZE:] == msgpack.packb({})
