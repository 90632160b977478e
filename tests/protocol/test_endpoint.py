"""Tests of mobillm.protocol.endpoint: conversations, refusals, ends and streams."""

from __future__ import annotations

from typing import Any

import pytest

from mobillm.errors import (
    ConnectionClosedError,
    ConnectionClosedOK,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    MobiLLMError,
    RemoteProtocolError,
)
from mobillm.options import Limits
from mobillm.protocol import (
    Bye,
    Credit,
    Data,
    Detach,
    Error,
    Eval,
    FrameType,
    Goaway,
    Metrics,
    Open,
    Opened,
    Phase,
    Ping,
    Pong,
    Pull,
    Weights,
)
from tests.helpers import (
    SESSION,
    EndpointPair,
    closing,
    example,
    examples,
    make_batch,
    make_data,
    make_spec,
    output,
    raw_frame,
    wire_bytes,
)

# Whole conversations.


def conversation(chunk: int | None) -> EndpointPair:
    """Run a session with two streams from OPEN to DETACH and BYE."""
    pair = EndpointPair.attached(chunk)
    pair.device.send(Open(stream=2, spec=make_spec().to_map()))
    pair.pump()
    pair.server.send(Opened(stream=2, session=SESSION, epoch=1))
    pair.server.send(Credit(stream=2, offset=1 << 20, last=9))
    pair.pump()
    long = make_batch(1, stream=2, size=30_000, part=9_000)
    for one, other in zip(make_batch(1), long, strict=False):
        pair.device.send(one)
        pair.device.send(other)
    for message in long[len(make_batch(1)) :]:
        pair.device.send(message)
    pair.device.send(Ping(data=b"12345678"))
    pair.pump()
    pair.server.send(Pong(data=b"12345678", time=5))
    pair.server.send(example(FrameType.ACK))
    pair.server.send(Weights(stream=2, digest=bytes(32), total=9000, offset=0, steps=1, payload=bytes(9000)))
    for end, stream in ((pair.device, 1), (pair.server, 1), (pair.device, 2)):
        end.send(Detach(stream=stream))
        pair.pump()
    pair.device.send(Bye())
    pair.pump()
    pair.server.send(Metrics(stream=2, step=1, epoch=1))
    pair.server.send(Bye())
    pair.pump()
    return pair


@pytest.mark.parametrize("chunk", [None, 1, 13, 4096])
def test_conversation_does_not_depend_on_chunks(chunk: int | None) -> None:
    """[T-3] Whole, byte by byte and in between, the same messages arrive."""
    pair, whole = conversation(chunk), conversation(None)
    assert pair.server_events == whole.server_events
    assert pair.device_events == whole.device_events
    assert closing(pair.device) == closing(pair.server) == (ConnectionClosedOK, ErrorCode.NO_ERROR)
    assert sum(isinstance(event, Data) for event in pair.server_events) == 14


def test_payloads_are_handed_on_without_a_copy() -> None:
    """The caller's own memory goes to the transport."""
    pair = EndpointPair.attached()
    payload = bytes(1000)
    pair.device.send(make_data(1, 0, payload))
    last = pair.device.data_to_send()[-1]
    assert isinstance(last, memoryview)
    assert last.obj is payload


def test_queries_of_a_stream() -> None:
    """[C-3] [B-9] Credit, the open batch and whether uploads are legal."""
    pair = EndpointPair.opened()
    assert pair.device.credit(1) == 0
    assert not pair.device.is_uploading(1)
    pair.attach(credit=make_data().frame_size())
    assert pair.device.is_uploading(1)
    assert pair.device.can_send(make_data())
    pair.device.send(make_data())
    assert pair.device.credit(1) == 0
    assert pair.device.credit_used(1) == make_data().frame_size()
    assert not pair.device.can_send(make_data(1, 1))
    assert pair.device.batch_summary(1)[:2] == (1, 8)


# Refusals.


def test_send_before_the_handshake_is_over() -> None:
    """[S-7] The error says what is missing."""
    with pytest.raises(LocalProtocolError, match="PING cannot be sent: the handshake is not over"):
        EndpointPair().device.send(Ping(data=bytes(8)))


def test_send_after_the_end() -> None:
    """[S-7] The error says why it is over."""
    pair = EndpointPair.opened()
    pair.device.fail(ErrorCode.INTERNAL, "disk on fire")
    with pytest.raises(LocalProtocolError, match="disk on fire"):
        pair.device.send(Ping(data=bytes(8)))


def test_sent_bodies_have_a_limit() -> None:
    """[H-6] [H-17] [L-3] [F-22] The server's figure bounds both directions, and is inclusive."""
    pair = EndpointPair.attached(limits=Limits(frame=16384, chunk=8192))
    room = 16384 - (make_data(1, 0, bytes(4)).frame_size() - 32 - 4) - 2
    pair.device.send(make_data(1, 0, bytes(room // 4 * 4)))
    with pytest.raises(LocalProtocolError) as caught:
        pair.device.send(make_data(1, 1, bytes(16384)))
    assert caught.value.code is ErrorCode.FRAME_SIZE
    pair.pump()
    assert pair.server.phase is Phase.OPEN
    pair.server.receive_data(wire_bytes(make_data(1, 1, bytes(16384))))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.FRAME_SIZE)


def test_map_limit_is_a_local_error() -> None:
    """[M-26] [L-1] A map beyond 4 KiB is refused before anything is queued."""
    pair = EndpointPair.opened()
    for spec in ({"x": "y" * 5000}, {"x": "\ud800"}):
        with pytest.raises(LocalProtocolError) as caught:
            pair.device.send(Open(stream=1, spec=spec))
        assert caught.value.code is ErrorCode.LIMIT
    assert output(pair.device) == b""
    pair.attach()


def test_stream_numbers_have_a_limit() -> None:
    """[O-1] [O-13] [L-7] The largest number passes; one more is refused on both ends."""
    pair = EndpointPair.opened(limits=Limits(streams=2))
    pair.attach(2)
    with pytest.raises(LocalProtocolError) as caught:
        pair.device.send(Open(stream=3, session=SESSION))
    assert caught.value.code is ErrorCode.LIMIT
    pair.server.receive_data(wire_bytes(Open(stream=3, session=SESSION)))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.LIMIT)


def test_credit_is_enforced_on_the_wire() -> None:
    """[C-10] The first frame over the credit closes the connection."""
    pair = EndpointPair.opened()
    pair.attach(credit=100)
    pair.server.receive_data(wire_bytes(make_data(1, 0, bytes(100))))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.FLOW_CONTROL)
    pair.pump()
    assert closing(pair.device) == (ConnectionClosedError, ErrorCode.FLOW_CONTROL)


def test_lower_credit_is_ignored_on_the_wire() -> None:
    """[C-8] A CREDIT that arrives late takes nothing back."""
    pair = EndpointPair.opened()
    pair.attach(credit=1000, last=5)
    pair.server.send(Credit(stream=1, offset=10, last=1))
    pair.pump()
    assert pair.device.credit(1) == pair.server.credit(1) == 1000
    pair.device.send(make_data(5))


def test_after_a_refusal_nothing_is_read() -> None:
    """Neither the rest of the same bytes nor what comes later; memory stays small.

    [F-7] [F-26] [E-2] [E-7] [S-12]
    """
    pair = EndpointPair.opened()
    ping = wire_bytes(Ping(data=bytes(8)))
    pair.server.receive_data(ping + b"junk" * 8 + ping)
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.PROTOCOL)
    assert [event.type for event in pair.server.events_received()] == [FrameType.PING]
    refusal = output(pair.server)
    for _ in range(50):
        pair.server.receive_data(ping * 100)
    assert pair.server.events_received() == []
    assert output(pair.server) == b""
    assert pair.server.get_buffer().nbytes <= 8192
    pair.server.receive_eof()
    pair.server.fail(ErrorCode.INTERNAL, "again")
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.PROTOCOL)
    pair.device.receive_data(refusal)
    assert closing(pair.device) == (ConnectionClosedError, ErrorCode.PROTOCOL)
    assert output(pair.device) == b""


def test_bytes_after_the_closing_frame_are_dropped() -> None:
    """[E-2] [E-7] What follows an ERROR or a BYE in the same segment has no effect."""
    pair = EndpointPair.opened()
    pair.device.receive_data(wire_bytes([Error(code=28), Ping(data=bytes(8))]))
    assert [event.type for event in pair.device.events_received()] == [FrameType.ERROR]
    assert closing(pair.device) == (ConnectionClosedError, 28)


def test_a_ping_can_be_answered_in_its_place() -> None:
    """[K-8] The PONG comes before the answer to what followed the PING; then the PING is no event."""
    pair = EndpointPair.opened()
    server = pair.server
    server.on_ping = lambda ping: server.send(Pong(data=ping.data))
    ping = wire_bytes(Ping(data=b"12345678"))
    server.receive_data(ping + raw_frame(FrameType.HELLO, {}))
    assert server.events_received() == []
    said = output(server)
    assert said.startswith(wire_bytes(Pong(data=b"12345678")))
    assert server.is_closed()
    assert len(said) > len(ping)  # the refusal came after it


def test_what_is_dropped_unread_is_counted() -> None:
    """[K-29] [V-3] [S-5] Unknown optional frames, and uncharged ones of a failed stream, until the end."""
    pair = EndpointPair.attached()
    pair.server.send(Error(stream=1, code=28))
    late = wire_bytes([make_data(), Eval(stream=1), Pull(stream=1)])  # DATA is charged
    pair.server.receive_data(raw_frame(0x80, b"") * 2 + late)
    assert pair.server.events_received() == []
    assert pair.server.dropped == 4
    pair.server.fail(ErrorCode.INTERNAL, "the end")
    pair.server.receive_data(raw_frame(0x80, b"") + late)
    assert pair.server.dropped == 4


def test_long_payloads_have_something_to_take_out_at_their_end_only() -> None:
    """A transport need not look for messages while a long payload arrives."""
    pair = EndpointPair.attached()
    data = wire_bytes(make_data(1, 0, bytes(20000)))
    told = []
    while data:
        into = pair.server.get_buffer()
        count = min(len(into), len(data), 5000)
        into[:count] = data[:count]
        data = data[count:]
        told.append((pair.server.buffer_updated(count), len(pair.server.events_received())))
    assert told == [(False, 0)] * 4 + [(True, 1)]


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.type.name)
def test_truncation_at_each_byte_then_eof(message: Any) -> None:
    """[T-4] A frame that was cut off is dropped, and the end is known to be early."""
    data = wire_bytes(message)
    for cut in {*range(1, 48), len(data) // 2, len(data) - 1} & set(range(len(data))):
        pair = EndpointPair.attached()
        pair.server.receive_data(data[:cut])
        assert pair.server.events_received() == []
        pair.server.receive_eof()
        assert closing(pair.server) == (ConnectionClosedError, None)
        assert pair.server.close_exc is not None
        assert "middle of a frame" in str(pair.server.close_exc)


# Ends.


def test_goodbye() -> None:
    """[K-4] [K-6] [K-17] [K-18] BYE by both: the server may still acknowledge in between."""
    pair = EndpointPair.attached()
    pair.device.send(Bye())
    pair.pump()
    assert pair.server.phase is pair.device.phase is Phase.CLOSING
    pair.server.send(example(FrameType.ACK))
    pair.server.send(Bye())
    pair.pump()
    assert [event.type for event in pair.device_events] == [FrameType.ACK, FrameType.BYE]
    for end, who in ((pair.device, "the peer"), (pair.server, "we")):
        assert closing(end) == (ConnectionClosedOK, ErrorCode.NO_ERROR)
        assert str(end.close_exc).endswith(f"{who} said goodbye")


def test_goodbye_of_the_server_alone() -> None:
    """[K-6] [K-19] It closes at once."""
    pair = EndpointPair.opened()
    pair.server.send(Bye())
    pair.pump()
    assert closing(pair.device) == closing(pair.server) == (ConnectionClosedOK, ErrorCode.NO_ERROR)


def eof(pair: EndpointPair) -> None:
    """Deliver everything, then the end of both directions."""
    pair.pump()
    pair.device.receive_eof()
    pair.server.receive_eof()


def test_eof_without_a_goodbye() -> None:
    """[K-23] It is an error for both."""
    pair = EndpointPair.opened()
    eof(pair)
    for end in (pair.device, pair.server):
        assert closing(end) == (ConnectionClosedError, None)
        assert "without a goodbye" in str(end.close_exc)


def test_eof_during_the_handshake() -> None:
    """[T-10] It counts as a refusal and says so."""
    pair = EndpointPair()
    pair.device.receive_eof()
    assert closing(pair.device) == (ConnectionClosedError, None)
    assert "during the handshake" in str(pair.device.close_exc)


def test_eof_after_the_devices_goodbye() -> None:
    """[K-22] [K-23] The server has all it was to get; the device lacks the answer."""
    pair = EndpointPair.opened()
    pair.device.send(Bye())
    eof(pair)
    assert closing(pair.server) == (ConnectionClosedOK, ErrorCode.NO_ERROR)
    assert closing(pair.device) == (ConnectionClosedError, None)


@pytest.mark.parametrize("bye", [True, False])
@pytest.mark.parametrize(
    ("code", "expected"), [(0, ConnectionClosedOK), (24, ConnectionClosedError), (999, ConnectionClosedError)]
)
def test_end_after_goaway(code: int, expected: type[MobiLLMError], bye: bool) -> None:
    """[K-6] [K-13] [K-21] [V-6] GOAWAY's code is the reason, whether the end comes with BYE or without."""
    pair = EndpointPair.opened()
    pair.server.send(Goaway(code=28, text="first"))
    pair.server.send(Goaway(code=code, text="maintenance"))
    if bye:
        pair.server.send(Bye())
    eof(pair)
    for end in (pair.device, pair.server):
        assert closing(end) == (expected, code)
        assert str(end.close_exc).endswith("maintenance")


def test_end_after_goaway_without_text() -> None:
    """The reason has a sentence anyway."""
    pair = EndpointPair.opened()
    pair.server.send(Goaway(code=0))
    eof(pair)
    assert "announced" in str(pair.device.close_exc)


def test_error_on_stream_0() -> None:
    """[E-2] [K-20] Sent or received, with or without a seq, it closes both ends."""
    for seq in (0, 5):
        pair = EndpointPair.opened()
        pair.device.send(Error(code=ErrorCode.INTERNAL, seq=seq, text="broken"))
        pair.pump()
        assert closing(pair.device) == closing(pair.server) == (ConnectionClosedError, ErrorCode.INTERNAL)


def test_error_on_a_stream_keeps_the_connection() -> None:
    """[E-1] Other sessions go on."""
    pair = EndpointPair.attached()
    pair.attach(2)
    pair.server.send(Error(stream=1, code=ErrorCode.QUOTA))
    pair.pump()
    pair.device.send(make_data(1, stream=2))
    pair.pump()
    assert [event.stream for event in pair.server_events] == [2]
    assert pair.device.phase is Phase.OPEN


@pytest.mark.parametrize("opened", [False, True])
def test_fail(opened: bool) -> None:
    """[E-2] [E-4] [H-8] [H-19] A server that has not sent WELCOME rejects; a long text is cut."""
    pair = EndpointPair()
    if opened:
        pair.pump()
    pair.server.fail(ErrorCode.SERVER_BUSY, "x" * 600, retry_after=2)
    pair.pump()
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.SERVER_BUSY)
    if opened:
        assert closing(pair.device) == (ConnectionClosedError, ErrorCode.SERVER_BUSY)
    else:
        assert isinstance(pair.device.close_exc, HandshakeError)
        assert pair.device.close_exc.retry_after == 2
        assert pair.device.close_exc.text == "x" * 512


def test_device_fails_during_the_handshake() -> None:
    """[H-10] A device reports an ERROR, whatever the state."""
    pair = EndpointPair()
    pair.device.fail(ErrorCode.HANDSHAKE_TIMEOUT, "too slow")
    pair.pump()
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.HANDSHAKE_TIMEOUT)


# Streams.


def test_stream_number_is_used_again() -> None:
    """[O-9] [O-11] [O-34] [O-35] After DETACH by both, the number carries another session from batch 1 on."""
    pair = EndpointPair.attached()
    for _ in range(3):
        for message in make_batch(1)[:4]:
            pair.device.send(message)
        pair.device.send(Detach(stream=1))
        pair.pump()
        with pytest.raises(LocalProtocolError):
            pair.device.send(Open(stream=1, session=SESSION))
        pair.server.send(Detach(stream=1))
        pair.pump()
        pair.attach(credit=5000)
        assert pair.device.credit(1) == pair.server.credit(1) == 5000


def test_unknown_optional_frames_between_others() -> None:
    """[V-3] [V-4] [V-14] Random extensions do no harm, before WELCOME and after."""
    grease = raw_frame(0xB7, b"\x01\x02", stream=77, seq=5)
    pair = EndpointPair.opened()
    pair.server.receive_data(grease + wire_bytes(Ping(data=bytes(8))) + grease)
    assert [event.type for event in pair.server.events_received()] == [FrameType.PING]
    fresh = EndpointPair()
    fresh.to_server = lambda data: grease + data + grease
    fresh.pump()
    assert fresh.server.phase is Phase.OPEN
    fresh.server.receive_data(raw_frame(0xC7, {}))
    assert closing(fresh.server) == (RemoteProtocolError, ErrorCode.UNSUPPORTED)
