"""Tests of mobillm.conformance.peer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mobillm.conformance import Deviation
from mobillm.conformance.peer import Log, Peer
from mobillm.conformance.wire import frame, raw_frame
from mobillm.errors import ErrorCode
from mobillm.protocol import Ack, FrameType, Pong
from tests.conftest import Run

PONG = frame(FrameType.PONG, {"data": b"12345678"})
ERROR = frame(FrameType.ERROR, {"code": 1})


@contextlib.asynccontextmanager
async def _peer(*answers: bytes, close: bool = True) -> AsyncIterator[Peer]:
    """Yield a peer of a server that says these bytes and closes."""
    over = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(answers))
        if not close:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    peer = Peer(reader, writer, Log(), bound=0.3)
    peer.welcomed = True
    try:
        yield peer
    finally:
        over.set()
        await peer.close()
        server.close()
        await asyncio.sleep(0.01)


def test_reading(run: Run) -> None:
    """Messages come one by one, skipped extensions not at all, and the end as None."""

    async def main() -> None:
        async with _peer(PONG, raw_frame(0x85, b"\xc1"), PONG) as peer:
            assert isinstance(await peer.read(), Pong)
            assert peer.body == PONG[32:]
            assert isinstance(await peer.expect(Pong), Pong)
            assert await peer.read() is None
            assert peer.log.lines()[-1] == "< end of the stream"

    run(main())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (PONG[:40], "inside a frame"),
        (PONG[:-1] + b"x", "malformed frame came: CRC_BODY"),
        (raw_frame(FrameType.PONG, PONG[32:], flags=0x100), "flags 0100"),
        (raw_frame(FrameType.PONG, PONG[32:], seq=1), "with a batch number"),
        (frame(FrameType.PONG), "malformed frame came: DECODE"),
    ],
)
def test_what_comes_is_checked(run_once: Run, data: bytes, text: str) -> None:
    """Whatever a case waits for, a malformed frame is a deviation."""

    async def main() -> None:
        async with _peer(data) as peer:
            with pytest.raises(Deviation, match=text):
                await peer.read()

    run_once(main())


def test_acknowledgements_do_not_go_back(run_once: Run) -> None:
    """On each stream for itself."""

    def ack(stream: int, count: int) -> bytes:
        values = {"received": count, "durable": count, "applied": count}
        return frame(FrameType.ACK, values, stream=stream)

    async def main() -> None:
        async with _peer(ack(1, 2), ack(2, 1), ack(1, 2), ack(1, 1)) as peer:
            for _ in range(3):
                assert isinstance(await peer.read(), Ack)
            with pytest.raises(Deviation, match="ACK went back"):
                await peer.read()

    run_once(main())


@pytest.mark.parametrize(
    ("answers", "close", "text"),
    [
        ((ERROR,), True, None),
        ((frame(FrameType.ACK, {"received": 0, "durable": 0, "applied": 0}, stream=1), ERROR), True, None),
        ((ERROR,), False, "nothing came within 0.3 s"),
        ((ERROR, PONG), True, "expected the end of the connection; got PONG"),
        ((frame(FrameType.ERROR, {"code": 2}),), True, "expected ERROR PROTOCOL; got ERROR code FRAME_SIZE"),
        ((frame(FrameType.REJECT, {"code": 1}),), True, "got REJECT"),
        ((), True, "closed without it"),
        ((), False, "still open"),
    ],
)
def test_refusals(run_once: Run, answers: tuple[bytes, ...], close: bool, text: str | None) -> None:
    """ERROR with the code, nothing after it, and the end; everything else is a deviation."""

    async def main() -> None:
        async with _peer(*answers, close=close) as peer:
            if text is None:
                assert (await peer.refused(ErrorCode.PROTOCOL)).code == 1
                return
            with pytest.raises(Deviation, match=text):
                await peer.refused(ErrorCode.PROTOCOL)

    run_once(main())


def test_alive_wants_its_own_pong(run_once: Run) -> None:
    """A PONG with other data does not answer our PING."""

    async def main() -> None:
        async with _peer(PONG, close=False) as peer:
            with pytest.raises(Deviation, match="expected PONG with"):
                await peer.alive()

    run_once(main())


def test_silence(run_once: Run) -> None:
    """Nothing may come for the time that was asked for."""

    async def main() -> None:
        async with _peer(close=False) as peer:
            await peer.silent(0.05, Pong)
        async with _peer(PONG, close=False) as peer:
            with pytest.raises(Deviation, match="expected silence"):
                await peer.silent(0.2, Pong)

    run_once(main())


def test_long_logs_are_cut() -> None:
    """The beginning and the end are kept."""
    log = Log()
    for number in range(100):
        log.add(str(number))
    lines = log.lines()
    assert (lines[0], lines[-1], len(lines)) == ("0", "99", 61)
    assert lines[30] == "... 40 lines left out ..."
