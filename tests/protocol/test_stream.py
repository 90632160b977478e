"""Tests of mobillm.protocol.stream."""

from __future__ import annotations

import pytest

from mobillm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from mobillm.options import Limits
from mobillm.protocol import (
    Abort,
    Blob,
    Commit,
    Credit,
    Detach,
    Error,
    Finish,
    FrameType,
    Message,
    Metrics,
    Open,
    Opened,
    Role,
    StreamPhase,
    Weights,
)
from mobillm.protocol.stream import Stream
from tests.helpers import SESSION, example, make_batch, make_data

SIZE = 1 << 20


class StreamPair:
    """The two ends of a stream, without bytes in between."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.device = Stream(1, Role.DEVICE, limits or Limits())
        self.server = Stream(1, Role.SERVER, limits or Limits())

    def up(self, message: Message) -> bool:
        """Send from the device to the server; tell whether it is to be acted on."""
        self.device.sent(message, message.frame_size())
        return self.server.received(message, message.frame_size())

    def down(self, message: Message) -> bool:
        """Send from the server to the device."""
        self.server.sent(message, message.frame_size())
        return self.device.received(message, message.frame_size())

    def attach(self, credit: int = SIZE, last: int = 100, *, finished: bool = False) -> None:
        """Attach a session and grant credit."""
        assert self.up(Open(stream=1, session=SESSION))
        assert self.down(Opened(stream=1, session=SESSION, epoch=1, finished=finished))
        assert self.down(Credit(stream=1, offset=credit, last=last))

    def phases(self) -> set[StreamPhase]:
        """Return the phases of both ends."""
        return {self.device.phase, self.server.phase}


def attached(credit: int = SIZE, last: int = 100) -> StreamPair:
    """Return a pair with a session."""
    pair = StreamPair()
    pair.attach(credit, last)
    return pair


def refused_by_server(pair: StreamPair, message: Message, code: ErrorCode) -> None:
    """Check that the server refuses a message."""
    with pytest.raises(RemoteProtocolError) as caught:
        pair.server.received(message, message.frame_size())
    assert caught.value.code is code


def refused_by_device(pair: StreamPair, message: Message, code: ErrorCode) -> None:
    """Check that the device refuses to send a message, and that nothing changes."""
    before = (pair.device.phase, pair.device.credit.used, pair.device.batch.summary())
    with pytest.raises(LocalProtocolError) as caught:
        pair.device.sent(message, message.frame_size())
    assert caught.value.code is code
    assert (pair.device.phase, pair.device.credit.used, pair.device.batch.summary()) == before


def test_whole_batches_are_charged_alike_on_both_ends() -> None:
    """[C-1] [C-6] DATA, COMMIT and BLOB cost their whole frame, ABORT and the rest nothing."""
    pair = attached()
    total = 0
    for message in [*make_batch(1), example(FrameType.BLOB)]:
        assert pair.up(message)
        total += message.frame_size()
        assert pair.device.credit.used == pair.server.credit.used == total
    for message in (
        Abort(stream=1, seq=7),
        example(FrameType.EVAL),
        example(FrameType.PULL),
        Finish(stream=1),
    ):
        assert pair.up(message)
    assert pair.server.credit.used == total


def test_first_byte_beyond_the_credit_is_refused() -> None:
    """The exact size passes, one byte less credit does not; a refused send charges nothing.

    [C-3] [C-10] [C-11]
    """
    message = make_data()
    pair = attached(message.frame_size() - 1)
    assert not pair.device.has_credit(message, message.frame_size())
    refused_by_device(pair, message, ErrorCode.FLOW_CONTROL)
    refused_by_server(pair, message, ErrorCode.FLOW_CONTROL)
    assert pair.down(Credit(stream=1, offset=message.frame_size(), last=0))
    assert pair.device.has_credit(message, message.frame_size())
    assert pair.up(message)
    refused_by_device(pair, make_data(1, 1), ErrorCode.FLOW_CONTROL)


def test_batch_number_beyond_the_credit_is_refused() -> None:
    """[C-3] [C-9] [C-10] The last batch passes, the next does not; a BLOB belongs to no batch."""
    pair = attached(last=2)
    refused_by_device(pair, make_data(3), ErrorCode.FLOW_CONTROL)
    refused_by_server(pair, make_data(3), ErrorCode.FLOW_CONTROL)
    assert pair.up(make_data(2))
    assert pair.up(Blob(stream=1, digest=bytes(32), total=1, offset=0, payload=b"x"))


def test_nothing_is_granted_before_credit_came() -> None:
    """[C-7] Right after OPENED both figures are 0."""
    pair = StreamPair()
    pair.up(Open(stream=1, session=SESSION))
    pair.down(Opened(stream=1, session=SESSION, epoch=1))
    refused_by_device(pair, make_data(), ErrorCode.FLOW_CONTROL)
    refused_by_server(pair, example(FrameType.BLOB), ErrorCode.FLOW_CONTROL)


def test_aborted_batches_stay_charged() -> None:
    """[C-4] [B-10] ABORT frees the number, not the credit."""
    pair = attached(last=1)
    for expected in (1, 2, 3):
        assert pair.up(make_data(1))
        assert pair.up(Abort(stream=1, seq=1))
        assert pair.server.credit.used == expected * make_data(1).frame_size()
        assert pair.server.batch.seq == 0


def test_refused_parts_change_nothing_on_the_sending_side() -> None:
    """[S-7] [C-11] After a refusal the right part can still be sent."""
    pair = attached()
    assert pair.up(make_data(1, 0, bytes(4), values=2))
    refused_by_device(pair, make_data(2), ErrorCode.PROTOCOL)
    refused_by_device(pair, make_data(1, 0, bytes(8), offset=4), ErrorCode.SCHEMA_MISMATCH)
    refused_by_device(pair, make_data(1, 1), ErrorCode.SCHEMA_MISMATCH)
    refused_by_device(pair, Finish(stream=1, seq=0), ErrorCode.PROTOCOL)
    commit = Commit(stream=1, seq=1, tensors=1, size=8, checksum=0, samples=1)
    refused_by_device(pair, commit, ErrorCode.SCHEMA_MISMATCH)
    assert pair.up(make_data(1, 0, bytes(4), offset=4))
    assert pair.device.batch.summary() == pair.server.batch.summary()


def test_broken_batches_are_refused_by_the_receiver() -> None:
    """[B-18] [B-20] [B-24] [B-26] [W-1] [O-23] The receiver checks what the sender should have checked."""
    refused_by_server(attached(), make_batch(1)[-1], ErrorCode.PROTOCOL)
    refused_by_server(attached(), make_data(1, 0, bytes(4), offset=4), ErrorCode.PROTOCOL)
    refused_by_server(attached(), make_data(1, 0, bytes(9), values=2), ErrorCode.SCHEMA_MISMATCH)
    refused_by_server(attached(), make_data(1, 0, values=2**30), ErrorCode.LIMIT)
    middle = Blob(stream=1, digest=bytes(32), total=9, offset=1, payload=b"x")
    refused_by_server(attached(), middle, ErrorCode.PROTOCOL)
    pair = attached()
    pair.up(make_data())
    refused_by_server(pair, Finish(stream=1, seq=0), ErrorCode.PROTOCOL)


def test_limits_come_from_the_options() -> None:
    """[L-5] [L-6] [W-2] Batch and blob limits are those of the endpoint."""
    pair = StreamPair(Limits(batch=16384, blob=16384))
    pair.attach()
    refused_by_server(pair, make_data(1, 0, values=4097), ErrorCode.LIMIT)
    blob = Blob(stream=1, digest=bytes(32), total=16385, offset=0, payload=b"x")
    refused_by_server(pair, blob, ErrorCode.LIMIT)
    weights = Weights(stream=1, digest=bytes(32), total=16385, offset=0, steps=1, payload=b"x")
    with pytest.raises(RemoteProtocolError) as caught:
        pair.device.received(weights, weights.frame_size())
    assert caught.value.code is ErrorCode.LIMIT
    with pytest.raises(LocalProtocolError):
        pair.server.sent(weights, weights.frame_size())


def test_a_blob_goes_up_while_weights_come_down() -> None:
    """[W-6] [W-12] The two files, and the open batch, do not disturb one another."""
    pair = attached()
    for offset in (0, 1, 2):
        assert pair.up(Blob(stream=1, digest=b"b" * 32, total=3, offset=offset, payload=b"x"))
        assert pair.down(Weights(stream=1, digest=b"w" * 32, total=3, offset=offset, steps=1, payload=b"y"))
        assert pair.up(make_data(1, offset))


def test_error_of_one_batch_leaves_the_stream() -> None:
    """[S-4] [E-6] With a seq the stream goes on, without one it has failed."""
    pair = attached()
    pair.up(make_data(1))
    assert pair.down(Error(stream=1, seq=1, code=ErrorCode.NON_FINITE))
    assert pair.phases() == {StreamPhase.ATTACHED}
    assert pair.up(make_data(1, 1))
    assert pair.down(Error(stream=1, code=ErrorCode.INTERNAL))
    assert pair.phases() == {StreamPhase.FAILED}


def test_error_of_one_batch_is_not_the_devices_to_send() -> None:
    """[S-4] Only the server reports errors of batches, and only where it may report errors."""
    error = Error(stream=1, seq=1, code=28)
    refused_by_device(attached(), error, ErrorCode.PROTOCOL)
    refused_by_server(attached(), error, ErrorCode.PROTOCOL)
    pair = attached()
    pair.down(Error(stream=1, code=28))
    with pytest.raises(RemoteProtocolError):
        pair.device.received(error, error.frame_size())
    with pytest.raises(LocalProtocolError):
        StreamPair().server.sent(error, error.frame_size())


def test_error_with_a_number_while_opening_refuses_the_session() -> None:
    """[S-9] [O-15] In OPENING there is no batch that the error could be about."""
    pair = StreamPair()
    pair.up(Open(stream=1, session=SESSION))
    assert pair.down(Error(stream=1, seq=3, code=ErrorCode.SESSION_UNKNOWN))
    assert pair.phases() == {StreamPhase.IDLE}
    pair.attach()


def test_opened_that_is_finished() -> None:
    """[O-26] A session whose training is over takes no more batches."""
    pair = StreamPair()
    pair.attach(finished=True)
    assert pair.phases() == {StreamPhase.FINISHING}
    refused_by_device(pair, make_data(), ErrorCode.PROTOCOL)
    assert pair.up(example(FrameType.PULL))


def test_training_may_end_before_this_attachment_sent_finish() -> None:
    """[O-27] An earlier attachment sent FINISH; both ends agree, even if a second FINISH crosses."""
    pair = attached()
    finished = example(FrameType.FINISHED)
    assert pair.down(finished)
    assert pair.phases() == {StreamPhase.ATTACHED}
    pair.server.sent(finished, 40)
    assert pair.up(Finish(stream=1, seq=3))
    assert pair.device.received(finished, 40)
    assert pair.phases() == {StreamPhase.FINISHING}


def test_late_frames_after_a_failure_are_ignored_but_charged() -> None:
    """[S-5] [S-10] The server reads what was under way: no events, no batch rules, but credit holds."""
    pair = attached()
    pair.server.sent(Error(stream=1, code=28), 40)
    late: list[Message] = [make_data(5, 0, bytes(4), offset=4), make_batch(9)[-1], example(FrameType.BLOB)]
    used = 0
    for message in late:
        assert not pair.server.received(message, message.frame_size())
        used += message.frame_size()
    assert not pair.server.received(Finish(stream=1, seq=9), 40)
    assert pair.server.credit.used == used
    refused_by_server(pair, make_data(101), ErrorCode.FLOW_CONTROL)
    assert pair.server.received(Detach(stream=1), 40)
    assert pair.server.phase is StreamPhase.DETACHING


def test_late_frames_after_detach_are_ignored() -> None:
    """[S-6] [O-36] The device reads what was under way, whatever order its parts are in."""
    pair = attached()
    pair.device.sent(Detach(stream=1), 40)
    late: list[Message] = [
        Weights(stream=1, digest=bytes(32), total=9, offset=5, steps=1, payload=b"x"),
        Metrics(stream=1, step=1, epoch=1),
        Error(stream=1, code=28),
        Error(stream=1, seq=1, code=28),
        Credit(stream=1, offset=2 * SIZE, last=500),
    ]
    for message in late:
        assert not pair.device.received(message, message.frame_size())
        assert pair.device.phase is StreamPhase.DETACHING
    assert pair.device.received(Detach(stream=1), 40)
    assert pair.device.phase is StreamPhase.IDLE


def test_error_and_detach_cross() -> None:
    """[O-9] [S-5] [S-11] The device leaves while the server reports a failure: both end in IDLE."""
    pair = attached()
    error, leave = Error(stream=1, code=28), Detach(stream=1)
    pair.server.sent(error, 40)
    pair.device.sent(leave, 40)
    assert not pair.device.received(error, 40)
    assert pair.server.received(leave, 40)
    assert pair.down(Detach(stream=1))
    assert pair.phases() == {StreamPhase.IDLE}


def test_a_number_that_is_used_again_starts_from_zero() -> None:
    """[O-11] Credit, the open batch and open files of the last session are gone."""
    pair = attached(last=50)
    pair.up(make_data(3, 0, bytes(4), values=9))
    pair.up(Blob(stream=1, digest=bytes(32), total=9, offset=0, payload=b"x"))
    pair.down(Weights(stream=1, digest=bytes(32), total=9, offset=0, steps=1, payload=b"x"))
    pair.up(Detach(stream=1))
    pair.down(Detach(stream=1))
    pair.attach(1000, 1)
    for end in (pair.device, pair.server):
        assert (end.credit.granted, end.credit.used, end.credit.last) == (1000, 0, 1)
        assert end.batch.summary() == (0, 0, 0)
    assert pair.up(make_data(1))
    assert pair.up(Blob(stream=1, digest=b"n" * 32, total=2, offset=0, payload=b"x"))
    assert pair.down(Weights(stream=1, digest=b"n" * 32, total=2, offset=0, steps=1, payload=b"x"))
