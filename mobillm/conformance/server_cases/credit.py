"""Credit: nothing beyond what was granted, by bytes or by batch number, and what is not charged."""

from __future__ import annotations

import functools
from typing import Any

from ...errors import ErrorCode
from ...protocol import Finished, FrameType
from ..case import Deviation, Draft, NotApplicable
from ..samples import tiny_batch
from ..target import Lab, Stream
from ..wire import frame, raw_frame
from .stimuli import Cases, failed_stream

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
LARGEST_FLOOD = 256 * 1024 * 1024  # bytes of credit that a case is willing to use up


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for above in (1, 2, 100, 2**40, 2**63 - 1):
        for kind in (T.DATA, T.COMMIT):
            title = f"{kind.name} of the batch {above} beyond the last one granted"
            cases.append(Draft("C-3 C-10 L-8", title, functools.partial(_beyond_last, kind, above)))
    for kind in (T.DATA, T.BLOB):
        for over in (0, 1, 2, 1000):
            title = (
                f"{kind.name} {over} bytes over the credit"
                if over
                else f"{kind.name} to the last byte of credit"
            )
            cases.append(Draft("C-3 C-10 S-10 L-9", title, functools.partial(_to_the_byte, kind, over)))
    return [
        *cases,
        Draft("C-3", "DATA of the last batch granted", _last_batch),
        Draft("C-6", "frames that are not charged, at no credit", _uncharged),
        Draft("C-1 C-6", "control frames charge nothing", _control_is_free),
        Draft("C-7 O-11", "a stream that is attached again starts from zero", _starts_again),
        Draft("C-4 C-1", "aborted batches stay charged", _aborted_is_charged),
        Draft("C-4 C-5 C-12", "credit comes back for aborted batches", _abort_flood),
        Draft("C-5", "at least one largest frame at the start", _one_frame),
        Draft("C-5 C-12", "forty batches in a row, each within the credit", _forty),
        Draft("C-8 C-2", "credit never goes back", _never_back),
        Draft("S-10 C-10", "a batch number beyond the credit on a failed stream", _failed_number),
        Draft("V-12 C-6", "skipped frames charge nothing", _skipped_is_free),
        Draft("C-2 O-11", "each stream has credit of its own", _each_its_own),
    ]


async def _beyond_last(kind: FrameType, above: int, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.room(4096, 1)
    seq = min(stream.granted[1] + above, 2**63 - 1)
    batch = tiny_batch(seq)
    await stream.peer.send(batch.data()[0] if kind is T.DATA else batch.end())
    await stream.peer.refused(E.FLOW_CONTROL)


def _sized(stream: Stream, kind: FrameType, size: int) -> bytes:
    """Return a DATA or BLOB frame of exactly ``size`` bytes."""
    values: dict[str, Any] = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [2**24 - 1]}
    if kind is T.BLOB:
        values = {"digest": bytes(32), "total": 2**24, "offset": 0}
    seq = 1 if kind is T.DATA else 0
    empty = len(frame(kind, values, b"", stream=stream.number, seq=seq))
    return frame(kind, values, bytes(size - empty), stream=stream.number, seq=seq)


async def _to_the_byte(kind: FrameType, over: int, lab: Lab) -> None:
    """Use the credit up but for a last frame, which is as long as the rest, or longer.

    The stream has failed, so that the server reads and charges what comes but does not grant more for it.
    """
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    stream = await failed_stream(lab, peer)
    await peer.alive()
    if stream.granted[0] > LARGEST_FLOOD:
        raise NotApplicable(f"the server grants {stream.granted[0]} bytes at once")
    last = 4096
    while (room := stream.granted[0] - stream.used - last) > 0:
        # No rest may be shorter than a frame can be.
        size = room if room <= welcome.frame else min(welcome.frame, room - 1024)
        await stream.send(_sized(stream, T.DATA, size))
    await peer.alive()
    await peer.send(_sized(stream, kind, last + over))
    if over:
        await peer.refused(E.FLOW_CONTROL)
    else:
        await peer.alive()


async def _last_batch(lab: Lab) -> None:
    stream = await lab.attach()
    last = stream.granted[1]
    await stream.send(tiny_batch(last).data()[0])
    await stream.peer.alive()


async def _uncharged(lab: Lab) -> None:
    stream = await lab.attach()
    for kind in (T.EVAL, T.PULL):
        await stream.control(kind)
    await stream.control(T.ABORT, seq=stream.granted[1] + 1000)
    await stream.control(T.FINISH)
    await stream.peer.expect(Finished, stream=1)


async def _control_is_free(lab: Lab) -> None:
    stream = await lab.attach()
    before = stream.granted[0]
    for _ in range(15):
        await stream.control(T.ABORT, seq=1, text="x" * 500)
    await stream.peer.alive()
    if stream.granted[0] != before:
        raise Deviation(
            f"expected credit to stay at {before}, as ABORT is not charged; it is {stream.granted[0]}"
        )


async def _starts_again(lab: Lab) -> None:
    stream = await lab.attach()
    first = stream.granted[0]
    await stream.submit(tiny_batch(1), tiny_batch(2))
    await stream.acked(applied=2)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    if back.granted[0] > first:
        raise Deviation(f"expected credit as at first, {first} at most; it is {back.granted[0]}")


async def _aborted_is_charged(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).data())
    await stream.control(T.ABORT, seq=1)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)
    # What is charged shows in the offset that comes when nothing is held.
    await stream.room(stream.opened.received + 1, 1)
    used = stream.used
    if stream.granted[0] < used:
        raise Deviation(f"expected an offset above the {used} bytes charged; it is {stream.granted[0]}")


async def _abort_flood(lab: Lab) -> None:
    """Abort more bytes than were granted at first: credit must come back without a COMMIT."""
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    stream = await lab.attach(peer)
    at_first = stream.granted[0]
    if at_first > LARGEST_FLOOD:
        raise NotApplicable(f"the server grants {at_first} bytes at once")
    # Few ABORTs, each of a batch of many parts: a server may bound how often a batch is given up.
    part = bytes(min(welcome.frame, at_first) // 2)
    parts = max(1, min(at_first // 4, welcome.batch) // len(part))
    shape = [parts * len(part) // 4]
    while stream.used <= at_first + len(part):
        for number in range(parts):
            values: dict[str, Any] = {"tensor": 0, "offset": number * len(part)}
            if not number:
                values |= {"format": 3, "block": 0, "shape": shape}
            await stream.send(frame(T.DATA, values, part, stream=1, seq=1))
        await stream.control(T.ABORT, seq=1)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _one_frame(lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    stream = await lab.attach(peer)
    await stream.room(welcome.frame + 32, 1)


async def _forty(lab: Lab) -> None:
    stream = await lab.attach()
    for seq in range(1, 41):
        await stream.submit(tiny_batch(seq))
    await stream.acked(applied=40)


async def _never_back(lab: Lab) -> None:
    stream = await lab.attach()
    for seq in range(1, 9):
        await stream.submit(tiny_batch(seq))
        await stream.acked(applied=seq)
        if stream.granted[0] < stream.used or stream.granted[1] < seq:
            raise Deviation("expected credit that covers what was sent; it does not")


async def _failed_number(lab: Lab) -> None:
    stream = await failed_stream(lab)
    await stream.peer.send(tiny_batch(stream.granted[1] + 1).data()[0])
    await stream.peer.refused(E.FLOW_CONTROL)


async def _skipped_is_free(lab: Lab) -> None:
    stream = await lab.attach()
    extension = raw_frame(0x9F, bytes(4096), stream=1)
    for _ in range(100):
        await stream.peer.send(extension)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _each_its_own(lab: Lab) -> None:
    peer = await lab.open()
    first, second = await lab.attach(peer), await lab.attach(peer, number=2)
    for seq in (1, 2, 3):
        await first.submit(tiny_batch(seq))
    await first.acked(applied=3)
    seq = second.granted[1] + 1
    await peer.send(tiny_batch(seq).data(stream=2)[0])
    await peer.refused(E.FLOW_CONTROL)
