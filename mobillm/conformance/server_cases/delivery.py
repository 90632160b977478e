"""Exactly once: acknowledgements, duplicates, gaps, and batches sent again for other bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools

from ...errors import ErrorCode
from ...protocol import Ack, Finished, FrameType, Gap
from ..case import Deviation, Draft, Run
from ..samples import LABELS, tiny_batch
from ..target import Lab, Stream
from .stimuli import MUCH, Cases

__all__ = ["drafts"]

E = ErrorCode
T = FrameType


def drafts() -> Cases:
    """Return the cases."""
    return [*_acknowledged(), *_duplicates(), *_gaps(), *_reused(), *_after_the_last()]


def _acknowledged() -> Cases:
    cases: Cases = []
    for count in (1, 2, 5, 20):
        title = f"{count} batches are received, durable and applied"
        cases.append(Draft("X-1 X-8 X-9 X-10", title, functools.partial(_all, count)))
    return [
        *cases,
        Draft("X-8", "no acknowledgement before COMMIT", _not_before_commit),
        Draft("X-8 B-10", "no acknowledgement of an aborted batch", _not_aborted),
        Draft("X-8 B-31", "no acknowledgement of a batch that was refused", _not_refused),
        Draft("X-10 B-12", "a batch held out is applied without a step", _held_out),
        Draft("X-5 X-6", "batches on two streams are numbered for themselves", _two_streams),
        Draft("X-9 X-4", "what was durable is received at the next attachment", _durable_stays),
    ]


async def _all(count: int, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(*(tiny_batch(seq) for seq in range(1, count + 1)))
    await stream.acked(received=count, durable=count, applied=count)
    ack = stream.peer.acks[1]
    if (ack.received, ack.durable, ack.applied) != (count, count, count):
        raise Deviation(
            f"expected an ACK of {count} batches; got received {ack.received}, applied {ack.applied}"
        )


async def _never_acks(stream: Stream) -> None:
    await stream.peer.alive()
    await asyncio.sleep(0.2)
    await stream.peer.alive()
    if stream.peer.acks[stream.number].received:
        raise Deviation("expected no ACK of a batch that is not whole; received is 1")


async def _not_before_commit(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).data())
    await _never_acks(stream)
    await stream.send(tiny_batch(1).end())
    await stream.acked(received=1)


async def _not_aborted(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).data())
    await stream.control(T.ABORT, seq=1)
    await _never_acks(stream)


async def _not_refused(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(dataclasses.replace(tiny_batch(1), samples=5))
    await stream.failed(E.SCHEMA_MISMATCH, seq=1)
    await _never_acks(stream)


async def _held_out(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1, heldout=True))
    await stream.acked(applied=1)
    await stream.control(T.FINISH, seq=1)
    finished = await stream.peer.expect(Finished, stream=1)
    if finished.steps:
        raise Deviation(f"expected no step for a batch held out; FINISHED says {finished.steps}")


async def _two_streams(lab: Lab) -> None:
    peer = await lab.open()
    first, second = await lab.attach(peer), await lab.attach(peer, number=7)
    await first.submit(tiny_batch(1), tiny_batch(2))
    await second.submit(tiny_batch(1))
    await first.acked(applied=2)
    await second.acked(applied=1)
    if peer.acks[7].received != 1:
        raise Deviation(f"expected received 1 on stream 7; got {peer.acks[7].received}")


async def _durable_stays(lab: Lab) -> None:
    stream = await lab.attach()
    for seq in (1, 2, 3):
        await stream.submit(tiny_batch(seq))
        await stream.acked(durable=seq)
        stream.peer.abort()
        stream = await lab.resume(stream.opened.session)
        if stream.opened.received < seq:
            raise Deviation(f"expected received {seq} or more; OPENED says {stream.opened.received}")


def _duplicates() -> Cases:
    cases: Cases = []
    for sent, again in ((1, (1,)), (3, (1,)), (3, (3,)), (3, (1, 2, 3)), (2, (2, 2, 2)), (2, (1, 2, 1, 2))):
        title = f"batches {', '.join(map(str, again))} again after {sent}"
        cases.append(Draft("X-14 B-33 B-13", title, functools.partial(_twice, sent, again)))
    return [
        *cases,
        Draft("X-14 B-33", "a batch again before it is durable", _at_once),
        Draft("X-14 X-3", "a batch again on a new connection", _on_new_connection),
        Draft("X-14 B-12", "a batch held out again", _held_out_again),
    ]


async def _counted(stream: Stream, last: int, steps: int) -> None:
    """See how many steps were taken: a batch that was applied twice would show."""
    await stream.control(T.FINISH, seq=last)
    finished = await stream.peer.expect(Finished, stream=stream.number)
    if finished.steps != steps:
        raise Deviation(f"expected {steps} steps for {last} batches; FINISHED says {finished.steps}")


async def _twice(sent: int, again: tuple[int, ...], lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(*(tiny_batch(seq) for seq in range(1, sent + 1)))
    await stream.acked(applied=sent)
    for seq in again:
        await stream.submit(tiny_batch(seq))
        ack = await stream.peer.expect(Ack, stream=1)
        if ack.received != sent:
            raise Deviation(f"expected ACK with received {sent}; got {ack.received}")
    await _counted(stream, sent, sent)


async def _at_once(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.room(MUCH, 1)
    frames = tiny_batch(1).frames()
    stream.used += 2 * sum(map(len, frames))
    await stream.peer.send(*frames, *frames)
    await stream.acked(applied=1)
    await _counted(stream, 1, 1)


async def _on_new_connection(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1), tiny_batch(2))
    await stream.acked(durable=2)
    stream.peer.abort()
    back = await lab.resume(stream.opened.session)
    await back.submit(tiny_batch(1), tiny_batch(2), tiny_batch(3))
    await back.acked(applied=3)
    await _counted(back, 3, 3)


async def _held_out_again(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1, heldout=True), tiny_batch(2))
    await stream.acked(applied=2)
    await stream.submit(tiny_batch(1, heldout=True))
    await stream.peer.expect(Ack, stream=1)
    await _counted(stream, 2, 1)


def _gaps() -> Cases:
    cases: Cases = []
    for sent, skipped in ((0, 2), (0, 3), (0, 9), (1, 3), (2, 4), (2, 9)):
        title = f"batch {skipped} after {sent}"
        cases.append(Draft("B-32 B-13 D-57", title, functools.partial(_gap, sent, skipped)))
    return [*cases, Draft("B-32 X-5", "two gaps, then the batch that is expected", _two_gaps)]


async def _gap(sent: int, skipped: int, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(*(tiny_batch(seq) for seq in range(1, sent + 1)))
    await stream.acked(received=sent)
    await stream.submit(tiny_batch(skipped))
    gap = await stream.peer.expect(Gap, stream=1)
    if (gap.seq, gap.expected) != (skipped, sent + 1):
        raise Deviation(
            f"expected GAP of {skipped} naming {sent + 1}; got GAP of {gap.seq} naming {gap.expected}"
        )
    await stream.submit(tiny_batch(sent + 1))
    await stream.acked(applied=sent + 1)
    await _counted(stream, sent + 1, sent + 1)


async def _two_gaps(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(3), tiny_batch(2))
    for seq in (3, 2):
        gap = await stream.peer.expect(Gap, stream=1)
        if (gap.seq, gap.expected) != (seq, 1):
            raise Deviation(f"expected GAP of {seq} naming 1; got GAP of {gap.seq} naming {gap.expected}")
    await stream.submit(tiny_batch(1), tiny_batch(2), tiny_batch(3))
    await stream.acked(applied=3)


def _reused() -> Cases:
    other = {
        "other activations": tiny_batch(1, variant=5).tensors[2].payload,
        "one bit changed": _one_bit(tiny_batch(1).tensors[2].payload),
    }
    cases: Cases = []
    for title, payload in other.items():
        cases.append(Draft("X-15", f"a durable batch again with {title}", _reuse(payload, 1)))
    cases.append(
        Draft(
            "X-15", "the first of three durable batches with other bytes", _reuse(other["one bit changed"], 3)
        )
    )
    return [*cases, Draft("X-15 O-4", "the session goes on after SEQ_REUSE", _goes_on)]


def _one_bit(payload: bytes) -> bytes:
    return bytes([payload[0] ^ 1]) + payload[1:]


def _reuse(payload: bytes, sent: int) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        stream = await lab.attach()
        await stream.submit(*(tiny_batch(seq) for seq in range(1, sent + 1)))
        await stream.acked(durable=sent)
        await stream.submit(tiny_batch(1).replaced(0, payload=payload))
        await stream.failed(E.SEQ_REUSE)
        await stream.peer.alive()

    return run


async def _goes_on(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1))
    await stream.acked(durable=1)
    await stream.submit(tiny_batch(1, variant=1))
    await stream.failed(E.SEQ_REUSE)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    await back.submit(tiny_batch(2))
    await back.acked(applied=2)
    await _counted(back, 2, 2)


def _after_the_last() -> Cases:
    return [
        Draft("O-6", "a batch after FINISH of an earlier attachment", _beyond_the_last),
        Draft("X-10", f"all {LABELS} classes are trained on", _classes),
    ]


async def _beyond_the_last(lab: Lab) -> None:
    """FINISH was sent on the first attachment; the second one has not sent it, but it still counts."""
    stream = await lab.attach(epochs=300)
    await stream.submit(tiny_batch(1))
    await stream.acked(received=1)
    await stream.control(T.FINISH, seq=1)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    if back.opened.finished:
        return
    await back.submit(tiny_batch(2))
    await back.failed(E.SCHEMA_MISMATCH, E.PROTOCOL)


async def _classes(lab: Lab) -> None:
    stream = await lab.attach()
    for seq in range(1, LABELS + 1):
        await stream.submit(tiny_batch(seq))
    await stream.acked(applied=LABELS)
