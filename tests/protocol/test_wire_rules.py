"""Rules of the specification that need two endpoints, or bytes that no endpoint of ours would send."""

from __future__ import annotations

import msgpack
import pytest

from mobillm.errors import ConnectionClosedError, ErrorCode, RemoteProtocolError
from mobillm.protocol import (
    Abort,
    Credit,
    Error,
    Eval,
    FrameBuffer,
    FrameType,
    Goaway,
    Open,
    Opened,
    Phase,
    Ping,
    Pong,
    Weights,
    decode_message,
)
from tests.helpers import (
    SESSION,
    TENANT,
    EndpointPair,
    closing,
    example,
    examples,
    make_batch,
    make_data,
    output,
    raw_frame,
    wire_bytes,
)


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.type.name)
def test_what_is_sent_uses_no_flag_and_no_stray_seq(message: object) -> None:
    """[F-8] [F-9] [V-1] [V-7] Version 1, flags 0, reserved 0, and seq only where a batch is concerned."""
    assert hasattr(message, "encode")
    data = wire_bytes(message)  # type: ignore[arg-type]
    assert data[2] == 1
    assert data[4:6] == data[14:16] == bytes(2)
    frame_type = FrameType(data[3])
    numbered = (FrameType.DATA, FrameType.COMMIT, FrameType.ABORT, FrameType.FINISH)
    assert (int.from_bytes(data[16:24], "big") != 0) == (frame_type in numbered)


def test_a_seq_that_concerns_no_batch_is_ignored() -> None:
    """[F-28] It is not kept, and can neither be made nor sent."""
    (frame,) = FrameBuffer(4096).receive_data(raw_frame(0x30, {"data": bytes(8)}, seq=2**63 - 1))
    assert decode_message(frame) == Ping(data=bytes(8))
    with pytest.raises(ValueError, match="seq must be 0"):
        Ping(data=bytes(8), seq=1)


def test_other_forms_of_values_are_read() -> None:
    """[M-18] [M-19] Keys in any order, and integers, texts and maps in longer forms than needed."""
    long_text = b"\xdb\x00\x00\x00\x01x"
    data = b"\xdf\x00\x00\x00\x02" + b"\xa4text" + long_text + b"\xa4code" + b"\xd3" + (7).to_bytes(8, "big")
    (frame,) = FrameBuffer(4096).receive_data(raw_frame(0x40, data))
    assert decode_message(frame) == Error(code=7, text="x")


def test_malformed_before_illegal() -> None:
    """[S-8] A message that is malformed and out of turn is refused for being malformed."""
    for meta, code in ((b"\xc1", ErrorCode.DECODE), (b"\x80", ErrorCode.DECODE)):
        pair = EndpointPair()
        pair.server.receive_data(raw_frame(0x30, meta))
        assert closing(pair.server) == (RemoteProtocolError, code)
    pair = EndpointPair()
    pair.server.receive_data(raw_frame(0x30, {"data": b"short"}))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.SCHEMA_MISMATCH)


def test_skipped_frames_cost_no_credit() -> None:
    """[V-12] [V-3] An unknown optional frame on a stream without credit is no offence."""
    pair = EndpointPair.opened()
    pair.attach(credit=0)
    pair.server.receive_data(raw_frame(0xB0, b"x" * 4096, stream=1, seq=9))
    assert pair.server.credit_used(1) == 0
    assert pair.server.phase is Phase.OPEN


def test_the_proofs_do_not_cover_what_follows() -> None:
    """[A-8] [Y-1] Without TLS a middle box can change a frame and repair its checksums unseen."""
    pair = EndpointPair.opened()
    pair.to_server = lambda data: raw_frame(0x30, {"data": b"hijacked"}) if data else data
    pair.device.send(Ping(data=b"original"))
    pair.deliver_to_server()
    assert pair.server_events == [Ping(data=b"hijacked")]


def test_the_tenant_is_fixed() -> None:
    """[A-13] [H-1] A second HELLO cannot change who speaks."""
    pair = EndpointPair.opened()
    hello = {"min_version": 1, "max_version": 1, "tenant": "other", "nonce": bytes(16)}
    pair.server.receive_data(raw_frame(0x01, hello))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.PROTOCOL)
    assert pair.server.tenant == TENANT


def test_ping_by_either_side() -> None:
    """[K-1] Before and after GOAWAY, and while the connection closes."""
    for prelude in (None, Goaway(code=0), example(FrameType.BYE)):
        pair = EndpointPair.opened()
        if prelude is not None:
            (pair.server if isinstance(prelude, Goaway) else pair.device).send(prelude)
            pair.pump()
            pair.forget()
        pair.device.send(Ping(data=b"12345678"))
        pair.server.send(Ping(data=b"abcdefgh"))
        pair.pump()
        assert pair.server_events == [Ping(data=b"12345678")]
        assert pair.device_events == [Ping(data=b"abcdefgh")]
        pair.server.send(Pong(data=b"12345678"))
        pair.pump()
        assert pair.device_events[-1] == Pong(data=b"12345678")


def test_sessions_are_refused_while_draining() -> None:
    """[K-15] [K-14] [O-15] DRAINING with a time; the open batch of another session can still end."""
    pair = EndpointPair.attached()
    parts = make_batch(1)
    pair.device.send(parts[0])
    pair.server.send(Goaway(code=0, grace=9.0))
    pair.pump()
    pair.device.send(Open(stream=2, session=SESSION))
    for message in parts[1:]:
        pair.device.send(message)
    pair.pump()
    pair.server.send(Error(stream=2, code=ErrorCode.DRAINING, retry_after=9.0))
    pair.pump()
    error = pair.device_events[-1]
    assert isinstance(error, Error)
    assert error.retry_after == 9.0
    assert pair.server_events[-1] == parts[-1]
    pair.device.send(Open(stream=2, session=SESSION))
    pair.pump()
    assert pair.device.phase is Phase.DRAINING


def test_output_is_whole_frames() -> None:
    """[K-24] [F-12] What two streams and the connection say together parses frame by frame."""
    pair = EndpointPair.attached()
    pair.attach(2)
    said = []
    for one, other in zip(make_batch(1), make_batch(1, stream=2), strict=True):
        for message in (one, Ping(data=b"12345678"), other, Eval(stream=1)):
            pair.device.send(message)
            said.append(message)
    frames = list(FrameBuffer(1 << 20).receive_data(output(pair.device)))
    assert [decode_message(frame) for frame in frames] == said


def test_codes_that_no_text_names_are_protocol() -> None:
    """[E-5] [S-1] [E-1] A frame out of turn, on a stream or not, ends the connection with PROTOCOL."""
    for message in (Eval(stream=9), Abort(stream=1, seq=1), Credit(stream=1, offset=1, last=1)):
        pair = EndpointPair.opened()
        pair.server.receive_data(wire_bytes(message))
        assert closing(pair.server) == (RemoteProtocolError, ErrorCode.PROTOCOL)
        pair.deliver_to_device()
        assert closing(pair.device) == (ConnectionClosedError, ErrorCode.PROTOCOL)


def test_evaluation_and_pull_before_and_after_finish() -> None:
    """[O-32] Both are legal at any time of a session's life; a batch is not legal after FINISH."""
    pair = EndpointPair.attached()
    for message in (Eval(stream=1), example(FrameType.PULL), example(FrameType.FINISH)):
        pair.device.send(message)
    for message in (Eval(stream=1), example(FrameType.PULL)):
        pair.device.send(message)
    pair.pump()
    assert len(pair.server_events) == 5
    pair.server.receive_data(wire_bytes(make_data(2)))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.PROTOCOL)


def test_a_device_refuses_weights_of_two_moments() -> None:
    """[W-11] [W-1] Parts whose `steps` differ belong to different files."""
    pair = EndpointPair.attached()
    for offset, steps in ((0, 1), (4, 2)):
        part = Weights(stream=1, digest=bytes(32), total=8, offset=offset, steps=steps, payload=bytes(4))
        pair.device.receive_data(wire_bytes(part))
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.PROTOCOL)


def test_a_device_refuses_figures_out_of_order() -> None:
    """[X-7] OPENED cannot claim that more is durable than was received."""
    pair = EndpointPair.opened()
    pair.device.send(Open(stream=1, session=SESSION))
    pair.pump()
    fields = {"session": SESSION, "epoch": 1, "received": 1, "durable": 2}
    pair.device.receive_data(raw_frame(FrameType.OPENED, msgpack.packb(fields), stream=1))
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.SCHEMA_MISMATCH)
    assert Opened(stream=1, session=SESSION, epoch=1, received=2, durable=2).applied == 0
