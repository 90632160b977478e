"""Rows 18 to 28 of the fault table: frames that are wrong, cut, or out of place."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from mobillm.conformance.peer import Peer
from mobillm.conformance.samples import spec, tiny_batch, valid
from mobillm.conformance.wire import frame, raw_frame, resigned
from mobillm.errors import ErrorCode, RemoteProtocolError
from mobillm.protocol import Data, Error, FrameBuffer, FrameType, Goaway, Pong
from mobillm.server.batch import BatchBuilder
from tests.conftest import Run
from tests.faults.proxy import Faults, between, first, proxied
from tests.faults.scene import BATCHES, Scene, eventually, rest, scene, send, undisturbed, uplink_to
from tests.faults.weights import require_same
from tests.transport.wire import pair

PING = frame(FrameType.PING, {"data": b"12345678"})
LIMIT = 1 << 20  # of a body

BAD: dict[str, tuple[bytes, ErrorCode]] = {
    "magic": (resigned(b"XL" + PING[2:]), ErrorCode.PROTOCOL),
    "header checksum": (PING[:24] + bytes([PING[24] ^ 1]) + PING[25:], ErrorCode.CRC_HEADER),
    "header bit": (PING[:9] + bytes([PING[9] ^ 0x40]) + PING[10:], ErrorCode.CRC_HEADER),
    "map beyond body": (
        raw_frame(FrameType.PING, b"\x80", meta_size=100, body_size=50),
        ErrorCode.PROTOCOL,
    ),
    "payload type without payload": (
        raw_frame(FrameType.DATA, b"\x80", stream=1, seq=1, body_size=3),
        ErrorCode.PROTOCOL,
    ),
    "reserved field": (raw_frame(FrameType.PING, PING[32:], reserved=1), ErrorCode.PROTOCOL),
    "critical flag": (raw_frame(FrameType.PING, PING[32:], flags=1), ErrorCode.PROTOCOL),
    "batch number": (raw_frame(FrameType.PING, PING[32:], seq=1 << 63), ErrorCode.PROTOCOL),
    "DATA on stream 0": (valid(FrameType.DATA, stream=0), ErrorCode.PROTOCOL),
    "one too long": (raw_frame(FrameType.PING, PING[32:], body_size=LIMIT + 1), ErrorCode.FRAME_SIZE),
    "longest": (raw_frame(FrameType.PING, PING[32:], body_size=2**32 - 1), ErrorCode.FRAME_SIZE),
    "version": (raw_frame(FrameType.PING, PING[32:], version=9), ErrorCode.UNSUPPORTED_VERSION),
    "unknown type": (raw_frame(0x7F, b"\x80"), ErrorCode.UNSUPPORTED),
    "critical type": (raw_frame(0xC1, b"\x80"), ErrorCode.UNSUPPORTED),
    "critical key": (frame(FrameType.PING, {"data": b"12345678", "!new": 1}), ErrorCode.UNSUPPORTED),
}


async def refused(stage: Scene, data: bytes, code: ErrorCode) -> Error:
    """Send bytes that must be refused, with a good PING after them that must not be answered."""
    peer = await stage.lab.open()
    await peer.send(data, PING)
    error = await peer.refused(code)
    assert isinstance(error, Error)
    peer.abort()
    return error


@pytest.mark.parametrize("kind", ["magic", "header checksum", "header bit", "version"])
def test_row_18_header(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A header that is wrong ends the connection; the next magic is not looked for; one line in the log."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            caplog.set_level(logging.INFO, "mobillm")
            caplog.clear()
            await refused(stage, *BAD[kind])
            await eventually(lambda: stage.server.connections == 1)
            ends = [record for record in caplog.records if record.message.startswith(("x ", "! "))]
            assert len(ends) == 1, [record.message for record in ends]
            assert BAD[kind][1].name in ends[0].message

    run_once(main())


@pytest.mark.parametrize("kind", ["one too long", "longest"])
def test_row_19_length(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """A length beyond the limit is refused from the header, before anything is allocated."""
    data, code = BAD[kind]

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.open()
            await peer.send(data[:32])
            await peer.refused(code)

    run_once(main())
    buffer = FrameBuffer(LIMIT)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            list(buffer.receive_data(data[:32]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "kind",
    [
        "map beyond body",
        "payload type without payload",
        "reserved field",
        "critical flag",
        "batch number",
        "DATA on stream 0",
    ],
)
def test_row_20_fields_of_the_header(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """Lengths that contradict each other, reserved bits and a stream that cannot be are refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await refused(stage, *BAD[kind])

    run_once(main())


@pytest.mark.parametrize("offset", [700, 1111, 2600])
def test_row_21_body_checksum(run_once: Run, tmp_path: pathlib.Path, offset: int) -> None:
    """A bit turned on the way is seen; the device comes back, sends again, and nothing differs."""

    async def main() -> None:
        expected = await undisturbed()
        async with (
            scene(tmp_path) as stage,
            proxied(stage.address, first(Faults(corrupt=offset, seed=offset))) as proxy,
        ):
            uplink = uplink_to(proxy.address)
            await uplink.start()
            await send(uplink, 1, BATCHES)
            require_same(await rest(uplink), expected)
            assert uplink.losses == 1
            assert stage.log_of(uplink.id) == list(range(1, BATCHES + 1))

    run_once(main())


def test_row_21_body_checksum_code(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The refusal says CRC_BODY, and the batch has no effect."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1))
            *parts, commit = tiny_batch(2).frames()
            data = bytearray(parts[-1])
            data[-1] ^= 1
            await stream.peer.send(*parts[:-1], bytes(data), commit)
            await stream.peer.refused(ErrorCode.CRC_BODY)
            again = await stage.lab.resume(stream.opened.session)
            assert again.opened.received == 1

    run_once(main())


async def truncate(stage: Scene, end: Callable[[Peer], None], step: int) -> None:
    """Cut the bytes of a batch at every ``step``-th byte, and go on with the session after each cut."""
    stream = await stage.lab.attach()
    session = stream.opened.session
    await stream.submit(tiny_batch(1))
    await stream.acked(durable=1)
    stream.peer.abort()
    data = b"".join(tiny_batch(2).frames())
    for count in range(0, len(data), step):
        stream = await stage.lab.resume(session)
        assert stream.opened.received == 1
        await stream.peer.send(data[:count])
        end(stream.peer)
        if count % (7 * step):
            stream.peer.abort()
    stream = await stage.lab.resume(session)
    await stream.submit(tiny_batch(2))
    await stream.acked(applied=2)
    await eventually(lambda: stage.server.connections == 2)  # ours and the neighbour's
    assert stage.log_of(session) == [1, 2]


ENDS: dict[str, Callable[[Peer], None]] = {"FIN": Peer.half_close, "RST": Peer.abort}


@pytest.mark.parametrize("end", ENDS)
def test_row_22_truncation(run_once: Run, tmp_path: pathlib.Path, end: str) -> None:
    """A batch that is cut off anywhere leaves nothing behind."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await truncate(stage, ENDS[end], 13)

    run_once(main())


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_row_22_truncation_at_every_byte(tmp_path: pathlib.Path, end: str) -> None:
    """The same at each byte."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await truncate(stage, ENDS[end], 1)

    asyncio.run(main())


def test_row_22_truncated_login(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A login that is cut off anywhere leaves nothing behind."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            hello = raw_frame(FrameType.HELLO, stage.lab.hello())
            for count in range(0, len(hello), 5):
                peer = await stage.lab.connect()
                await peer.send(hello[:count])
                peer.half_close()
                await peer.ended()
                peer.abort()
            await eventually(lambda: stage.server.connections == 1)

    run_once(main())


def test_row_23_single_bytes(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Single bytes in both directions: the same weights."""

    async def main() -> None:
        expected = await undisturbed()
        single = between(Faults(slice=1), Faults(slice=7))
        async with scene(tmp_path) as stage, proxied(stage.address, single) as proxy:
            uplink = uplink_to(proxy.address)
            await uplink.start()
            await send(uplink, 1, BATCHES)
            require_same(await rest(uplink), expected)
            assert uplink.losses == 0

    run_once(main())


def test_row_23_all_at_once(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Many frames in one write: each has its effect."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            batches = [part for seq in range(1, 6) for part in tiny_batch(seq).frames()]
            await stream.peer.send(b"".join([PING, *batches, PING]))
            await stream.acked(applied=5)
            await stream.peer.expect(Pong)
            await stream.peer.expect(Pong)
            assert stage.log_of(stream.opened.session) == [1, 2, 3, 4, 5]

    run_once(main())


def test_row_24_unknown_but_optional(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Unknown optional types, flags and keys are ignored."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.open(extra={"a": [1, 2]}, caps=["unheard of"])
            values = {"spec": spec(later={"x": 1}), "new": [None]}
            await peer.send(
                raw_frame(0x80, b"anything"),
                raw_frame(0xBF, b"\xc1" * 4096, flags=0xFF00, stream=9, seq=7),
                raw_frame(FrameType.PING, PING[32:], flags=0x0100),
                frame(FrameType.OPEN, values, stream=1),
            )
            await peer.expect(Pong)
            stream = await stage.lab.opened(peer, 1)
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)

    run_once(main())


@pytest.mark.parametrize("kind", ["unknown type", "critical type", "critical key"])
def test_row_25_unknown_and_critical(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """What an endpoint has to understand and does not is refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await refused(stage, *BAD[kind])

    run_once(main())


def test_row_26_empty_data(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A part without a byte is refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            values = {"tensor": 1001, "offset": 0, "format": 3, "block": 0, "shape": [2]}
            await stream.peer.send(frame(FrameType.DATA, values, b"", stream=1, seq=1))
            await stream.peer.refused(ErrorCode.SCHEMA_MISMATCH)

    run_once(main())


def test_row_26_flood_of_small_frames(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Frames that carry nothing have a budget; beyond it the peer is told to be calm."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = (await stage.lab.attach()).peer
            for _ in range(40):
                await peer.send(raw_frame(0x80, b"") * 100)
                await asyncio.sleep(0)
            await calm(peer)

    run_once(main())


def test_row_26_parts_of_one_byte() -> None:
    """A batch in parts of one byte each takes about the memory of its bytes, not of an object for each."""
    builder = BatchBuilder()
    count = 20_000

    def add(offset: int) -> None:
        head = {"format": 3, "block": 0, "shape": (count // 4,)} if not offset else {}
        part: Any = {"stream": 1, "seq": 1, "tensor": 1001, "offset": offset, **head}
        builder.add(Data(**part, payload=memoryview(bytearray(1))))

    for offset in range(3000):  # the interpreter's own free lists fill up once
        add(offset)
    builder.clear()
    tracemalloc.start()
    try:
        for offset in range(count):
            add(offset)
        assert tracemalloc.get_traced_memory()[0] < 4 * count + (1 << 16)
    finally:
        tracemalloc.stop()


async def calm(peer: Peer) -> None:
    """See the connection end with CALM, announced by GOAWAY or ERROR."""
    while (message := await peer.read()) is not None:
        if isinstance(message, Goaway | Error) and message.code == ErrorCode.CALM and not message.stream:
            await peer.drained()
            return
    raise AssertionError("the connection ended without CALM")


def test_row_27_wrong_state(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Each type of frame that an open connection without a session does not allow."""
    allowed = (FrameType.OPEN, FrameType.PING, FrameType.PONG, FrameType.ERROR, FrameType.BYE)

    async def main() -> None:
        async with scene(tmp_path) as stage:
            for kind in FrameType:
                if kind not in allowed:
                    on_zero = kind < FrameType.OPEN or kind >= FrameType.PING
                    await refused(stage, valid(kind, stream=0 if on_zero else 1), ErrorCode.PROTOCOL)

    run_once(main())


@pytest.mark.parametrize("kind", ["DATA after FINISH", "DATA after BYE", "OPEN twice", "FINISH in a batch"])
def test_row_27_wrong_time(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """Frames that are allowed, but not any more or not again."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1))
            data, finish = tiny_batch(2).data()[0], frame(FrameType.FINISH, stream=1, seq=1)
            frames = {
                "DATA after FINISH": [finish, data],
                "DATA after BYE": [frame(FrameType.BYE), data],
                "OPEN twice": [valid(FrameType.OPEN)],
                "FINISH in a batch": [data, finish],
            }
            await stream.peer.send(*frames[kind])
            if kind == "DATA after BYE":
                # The server may already have said goodbye and closed.
                await stream.peer.drained()
            else:
                await stream.peer.refused(ErrorCode.PROTOCOL)

    run_once(main())


def test_row_28_cancelled_read(run: Run) -> None:
    """A read that is cancelled in the middle of a frame loses nothing: the next one is in step."""

    async def main() -> None:
        async with pair() as (near, far):
            await asyncio.sleep(0)
            big = Goaway(code=0, text="x" * 500, grace=1.0)
            transport = far._transport
            assert transport is not None
            far.endpoint.send(big)
            data = b"".join(bytes(part) for part in far.endpoint.data_to_send())
            for cut in range(1, len(data), 50):
                transport.write(data[:cut])
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await near.recv()
                transport.write(data[cut:])
                async with asyncio.timeout(2.0):
                    assert await near.recv() == big
            near.ping()
            await eventually(lambda: near.keepalive.round_trip is not None)

    run(main())
