"""PING and PONG, how bytes are cut, and connections that live beside one another."""

from __future__ import annotations

import asyncio
import functools
import os

from ...errors import ErrorCode
from ...protocol import Finished, FrameType, Pong
from ..case import Deviation, Draft, NotApplicable
from ..samples import tiny_batch
from ..target import Lab
from ..wire import frame, raw_frame
from .stimuli import Cases, ignored

__all__ = ["drafts"]

E = ErrorCode
T = FrameType


def drafts() -> Cases:
    """Return the cases."""
    return [*_pings(), *_cuts(), *_neighbours()]


def _pings() -> Cases:
    cases: Cases = []
    for data in (bytes(8), b"\xff" * 8, b"12345678", bytes(range(8)), b"\x81\xa4data\xc4\x08"):
        cases.append(Draft("K-8", f"PING with {data.hex()}", functools.partial(_ping, data)))
    return [
        *cases,
        Draft("K-8", "thirty PINGs one after another", functools.partial(_pings_in_order, 30)),
        Draft("K-8 T-3", "PINGs and a frame that is refused in one segment", _pings_ahead_of_a_refusal),
        Draft("K-10", "a PONG that answers nothing", ignored(frame(T.PONG, {"data": bytes(8)}))),
        Draft("K-10", "a hundred such PONGs", ignored(frame(T.PONG, {"data": bytes(8), "time": 0}) * 100)),
        Draft(
            "K-10 D-67",
            "a PONG with the latest time",
            ignored(frame(T.PONG, {"data": bytes(8), "time": 2**63 - 1})),
        ),
        Draft("K-1 K-8", "PING while a session is open", _ping_with_session),
        Draft("K-27", "PING while the server trains", _ping_while_training),
        Draft("K-2 L-13", "an idle connection is not cut within 2 seconds", _idle),
    ]


async def _ping(data: bytes, lab: Lab) -> None:
    peer = await lab.open()
    await peer.send(frame(T.PING, {"data": data}))
    pong = await peer.expect(Pong)
    if pong.data != data:
        raise Deviation(f"expected PONG with {data.hex()}; got {pong.data.hex()}")


async def _pings_in_order(count: int, lab: Lab) -> None:
    peer = await lab.open()
    sent = [os.urandom(8) for _ in range(count)]
    await peer.send(*(frame(T.PING, {"data": data}) for data in sent))
    seen = [(await peer.expect(Pong)).data for _ in sent]
    if seen != sent:
        raise Deviation("expected the PONGs in the order of the PINGs; they are not")


async def _pings_ahead_of_a_refusal(lab: Lab) -> None:
    peer = await lab.open()
    sent = [os.urandom(8) for _ in range(3)]
    refused = raw_frame(0x7F, b"")  # a critical type that version 1 does not have
    await peer.send(b"".join([*(frame(T.PING, {"data": data}) for data in sent), refused]))
    seen = [(await peer.expect(Pong)).data for _ in sent]
    if seen != sent:
        raise Deviation("expected the PONGs in the order of the PINGs; they are not")
    await peer.refused(E.UNSUPPORTED)


async def _ping_with_session(lab: Lab) -> None:
    stream = await lab.attach()
    for data in tiny_batch(1).frames():
        await stream.send(data)
        await stream.peer.alive()
    await stream.acked(applied=1)


async def _ping_while_training(lab: Lab) -> None:
    stream = await lab.attach(epochs=200)
    await stream.submit(tiny_batch(1), tiny_batch(2))
    await stream.acked(received=2)
    await stream.control(T.FINISH, seq=2)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        start = loop.time()
        await stream.peer.send(frame(T.PING, {"data": bytes(8)}))
        await stream.peer.expect(Pong)
        if loop.time() - start > 2.0:
            raise Deviation(f"expected PONG at once; it took {loop.time() - start:.1f} s")


async def _idle(lab: Lab) -> None:
    peer = await lab.open()
    await peer.silent(2.0, Finished)
    await peer.alive()


def _cuts() -> Cases:
    """The same session, whatever the segments."""
    cases: Cases = []
    for size in (1, 2, 3, 7, 31, 32, 33, 64, 100, 1000):
        cases.append(Draft("T-3", f"a session in segments of {size} bytes", functools.partial(_cut, size)))
    batch = tiny_batch(1).frames()
    for index, data in enumerate(batch[2:], 2):
        for at in (1, 2, 31, 32, 33, len(data) - 1):
            title = f"frame {index + 1} of a batch in two, after {at} bytes"
            cases.append(Draft("T-3 K-24", title, functools.partial(_in_two, index, at)))
    for at in (1, 31, 32, 40):
        title = f"the end of the stream {at} bytes into COMMIT"
        cases.append(Draft("T-4 X-12", title, functools.partial(_end_inside, at)))
    return cases


async def _cut(size: int, lab: Lab) -> None:
    stream = await lab.attach()
    data = b"".join(tiny_batch(1).frames()) + frame(T.FINISH, stream=1, seq=1)
    await stream.room(len(data), 1)
    for start in range(0, len(data), size):
        stream.peer.writer.write(data[start : start + size])
        await asyncio.sleep(0)
    finished = await stream.peer.expect(Finished, stream=1)
    if finished.steps != 1:
        raise Deviation(f"expected FINISHED after 1 step; it says {finished.steps}")


async def _in_two(index: int, at: int, lab: Lab) -> None:
    stream = await lab.attach()
    for number, data in enumerate(tiny_batch(1).frames()):
        if number != index:
            await stream.send(data)
            continue
        await stream.room(len(data), 1)
        stream.used += len(data)
        await stream.peer.send(data[:at])
        await asyncio.sleep(0.05)
        await stream.peer.send(data[at:])
    await stream.acked(applied=1)


async def _end_inside(at: int, lab: Lab) -> None:
    if lab.target.tls is not None:
        raise NotApplicable("TLS has no half-closed connections here")
    stream = await lab.attach()
    batch = tiny_batch(1)
    await stream.send(*batch.data())
    await stream.peer.send(batch.end()[:at])
    stream.peer.half_close()
    await stream.peer.ended()
    back = await lab.resume(stream.opened.session)
    if back.opened.received:
        raise Deviation("expected that half a COMMIT has no effect; OPENED says received 1")


def _neighbours() -> Cases:
    return [
        Draft("K-26 E-1", "a connection that is refused does not disturb another", _refused_beside),
        Draft("E-1", "a stream that fails does not disturb another", _failed_beside),
        Draft("K-26", "a connection that is cut does not disturb another", _cut_beside),
        Draft("E-6 B-31", "a batch that fails does not disturb another stream", _batch_beside),
    ]


async def _refused_beside(lab: Lab) -> None:
    stream = await lab.attach()
    bad = await lab.open()
    await bad.send(bytes(64))
    await bad.refused(E.PROTOCOL)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _failed_beside(lab: Lab) -> None:
    peer = await lab.open()
    good, bad = await lab.attach(peer), await lab.attach(peer, number=2)
    await bad.control(T.FINISH, seq=9)
    await bad.failed(E.SCHEMA_MISMATCH)
    await good.submit(tiny_batch(1))
    await good.acked(applied=1)


async def _cut_beside(lab: Lab) -> None:
    stream = await lab.attach()
    other = await lab.attach()
    await other.send(tiny_batch(1).data()[0])
    other.peer.abort()
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _batch_beside(lab: Lab) -> None:
    peer = await lab.open()
    good, bad = await lab.attach(peer), await lab.attach(peer, number=2)
    wrong = tiny_batch(1).tensors[:2]
    for tensor in wrong:
        await bad.send(*tensor.parts(1, stream=2))
    await bad.control(T.ABORT, seq=1)
    await good.submit(tiny_batch(1))
    await good.acked(applied=1)
    await bad.submit(tiny_batch(1))
    await bad.acked(applied=1)
