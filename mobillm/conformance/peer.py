"""A raw peer: sends any bytes, reads frames under a deadline, and notes both for the report."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

from ..errors import ErrorCode, RemoteProtocolError, describe_code
from ..protocol import (
    HEADER_SIZE,
    Ack,
    Credit,
    Error,
    FrameBuffer,
    FrameType,
    Message,
    Metrics,
    Opened,
    Ping,
    Pong,
    Reject,
    decode_message,
)
from .case import Busy, Deviation
from .wire import describe, frame

__all__ = ["Log", "Peer"]

M = TypeVar("M", bound=Message)

MAX_BODY = 4 * 1024 * 1024
MAX_LINES = 60

# What a server that holds itself to its limits may say at any time; see the specification's [E-4].
NO_ROOM = (ErrorCode.SERVER_BUSY, ErrorCode.CALM, ErrorCode.QUOTA)


class Log:
    """What was sent and what came back in one case; the middle of a long one is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Note one frame, or what happened to the connection."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """Return the lines, at most ``MAX_LINES``."""
        half = MAX_LINES // 2
        if len(self._lines) <= MAX_LINES:
            return list(self._lines)
        left_out = len(self._lines) - 2 * half
        return [*self._lines[:half], f"... {left_out} lines left out ...", *self._lines[-half:]]


class Peer:
    """Our end of a connection.

    What it reads is held against the rules that hold for every frame: sizes, checksums, fields in range,
    flags and batch numbers of 0 where nothing else is allowed, acknowledgements that do not go back.

    Args:
        reader, writer: the streams of the connection.
        log: where to note what is sent and read.
        name: of this connection in the log.
        bound: seconds that a read may take.

    Attributes:
        welcomed: whether the handshake is over, which decides between ERROR and REJECT.
        credit: what was granted on each stream so far, as offset and last.
        acks: the last acknowledgement on each stream.
        sessions: names of the sessions that were attached.
        body: of the last frame that was read, as it was on the wire.
        segment: bytes that are written at a time; None writes a frame whole.
        judge: called with each whole frame before it is read; None checks nothing more.

    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Log,
        *,
        name: str = "",
        bound: float = 10.0,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.log = log
        self.name = name
        self.bound = bound
        self.welcomed = False
        self.credit: dict[int, tuple[int, int]] = {}
        self.acks: dict[int, Ack | Opened] = {}
        self.sessions: list[bytes] = []
        self.body = b""
        self.segment: int | None = None
        self.judge: Callable[[bytes], None] | None = None
        self._frames = FrameBuffer(MAX_BODY)
        self._kept: list[Message] = []

    def abort(self) -> None:
        """Close at once."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close once everything was sent."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the other side was faster

    def half_close(self) -> None:
        """Send nothing more, and say so; what comes can still be read."""
        self.log.add(f"{self.name}> end of the stream")
        self.writer.write_eof()

    # Sending.

    async def send(self, *frames: bytes) -> None:
        """Send bytes, all in one piece; a peer that has closed is found out by the next read."""
        for data in frames:
            self.log.add(f"{self.name}> {describe(data)}")
        data = b"".join(frames)
        step = self.segment or max(1, len(data))
        try:
            for start in range(0, len(data), step):
                self.writer.write(data[start : start + step])
                await self.writer.drain()
                await asyncio.sleep(0)
        except OSError:
            self.log.add(f"{self.name}  (the connection is gone)")

    # Reading.

    async def _take(self, count: int) -> bytes:
        try:
            return await self.reader.readexactly(count)
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                raise Deviation(
                    f"the connection ended inside a frame, after {len(exc.partial)} bytes"
                ) from None
        except OSError:
            pass
        return b""

    async def read(self, bound: float | None = None) -> Message | None:
        """Return the next message; None at the end of the stream.

        Raises:
            Deviation: nothing came in time, or what came is malformed.
            Busy: the peer has no room now.

        """
        bound = self.bound if bound is None else bound
        try:
            async with asyncio.timeout(bound):
                while True:
                    header = await self._take(HEADER_SIZE)
                    if not header:
                        self.log.add(f"{self.name}< end of the stream")
                        return None
                    self.body = await self._take(min(int.from_bytes(header[8:12], "big"), MAX_BODY + 1))
                    message = self._decode(header, self.body)
                    if message is not None:
                        return message
        except TimeoutError:
            raise Deviation(f"nothing came within {bound:g} s, and the connection is still open") from None

    def _decode(self, header: bytes, body: bytes) -> Message | None:
        try:
            frames = list(self._frames.receive_data(header + body))
            messages = [decode_message(item) for item in frames]
        except RemoteProtocolError as exc:
            self.log.add(f"{self.name}< {describe(header + body)}")
            raise Deviation(f"a malformed frame came: {exc}") from None
        for message in messages:
            self.log.add(f"{self.name}< {_shown(message)}")
            if header[4:6] != b"\0\0":
                raise Deviation(
                    f"{message.type.name} came with flags {header[4:6].hex()}; expected none [F-8]"
                )
            if not message.has_seq and any(header[16:24]):
                raise Deviation(f"{message.type.name} came with a batch number; expected 0 [F-9]")
            self._note(message)
            if isinstance(message, Error | Reject) and message.code in NO_ROOM and message.retry_after:
                raise Busy(message.retry_after)
            if self.judge is not None:
                self.judge(header + body)
            return message
        return None

    def _note(self, message: Message) -> None:
        stream = message.stream
        if isinstance(message, Credit):
            offset, last = self.credit.get(stream, (0, 0))
            self.credit[stream] = max(offset, message.offset), max(last, message.last)
        elif isinstance(message, Opened):
            self.credit[stream] = 0, 0
            self.acks[stream] = message
            self.sessions.append(message.session)
        elif isinstance(message, Ack):
            last_ack = self.acks.get(stream)
            if last_ack is not None and (
                message.received < last_ack.received
                or message.durable < last_ack.durable
                or message.applied < last_ack.applied
            ):
                raise Deviation("ACK went back; its figures are cumulative [X-1]")
            self.acks[stream] = message

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Read until a condition on :attr:`credit` or :attr:`acks` holds; other messages are kept."""
        while not done():
            message = await self.read()
            if message is None:
                raise Deviation(f"expected {what}; the connection was closed")
            if isinstance(message, Error):
                raise Deviation(f"expected {what}; got {_shown(message)}")
            if not isinstance(message, Ack | Credit | Metrics):
                self._kept.append(message)

    async def expect(
        self,
        kind: type[M],
        *,
        stream: int = 0,
        where: Callable[[M], bool] = lambda _: True,
        bound: float | None = None,
    ) -> M:
        """Return the next message of a kind on a stream; others are skipped, but no error.

        Raises:
            Deviation: an error, the end of the stream or nothing came instead.

        """
        wanted = kind.__name__.upper() + (f" on stream {stream}" if stream else "")
        while True:
            message = self._kept.pop(0) if self._kept else await self.read(bound)
            if message is None:
                raise Deviation(f"expected {wanted}; the connection was closed")
            if isinstance(message, kind) and message.stream == stream and where(message):
                return message
            if isinstance(message, Error | Reject):
                raise Deviation(f"expected {wanted}; got {_shown(message)}")

    async def expect_any(self, kind: type[M]) -> M:
        """Return the next message, which must be of a kind, on whatever stream."""
        message = await self.read()
        if not isinstance(message, kind):
            got = "the end of the stream" if message is None else _shown(message)
            raise Deviation(f"expected {kind.__name__.upper()}; got {got}")
        return message

    async def refused(self, *codes: ErrorCode) -> Error | Reject:
        """See the connection refused with one of the codes, as its last frame.

        Before WELCOME the refusal of a server is REJECT. What comes on streams is skipped.
        """
        names = " or ".join(code.name for code in codes)
        kind = "ERROR" if self.welcomed else "REJECT"
        while True:
            message = await self.read()
            if message is None:
                raise Deviation(f"expected {kind} {names}; the connection was closed without it")
            if isinstance(message, Error | Reject) and not message.stream:
                break
            # A PING that came before what is refused may be answered or not.
            if not self.welcomed or not (message.stream or isinstance(message, Pong)):
                raise Deviation(f"expected {kind} {names}; got {_shown(message)}")
        if message.type.name != kind or message.code not in codes:
            raise Deviation(f"expected {kind} {names}; got {_shown(message)}")
        await self.closed()
        return message

    async def refused_on(self, stream: int, *codes: ErrorCode, seq: int = 0) -> Error:
        """See ERROR with one of the codes on a stream, for one batch or for all of it."""
        names = " or ".join(code.name for code in codes)
        wanted = f"ERROR {names} on stream {stream}" + (f" for batch {seq}" if seq else "")
        before: list[Message] = []
        while True:
            message = self._kept.pop(0) if self._kept else await self.read()
            if message is None:
                raise Deviation(f"expected {wanted}; the connection was closed")
            if isinstance(message, Error):
                if (message.stream, message.seq) != (stream, seq) or message.code not in codes:
                    raise Deviation(f"expected {wanted}; got {_shown(message)}")
                self._kept[:0] = before
                return message
            if not isinstance(message, Ack | Credit | Metrics):
                before.append(message)

    async def closed(self) -> None:
        """See the end of the stream, and nothing before it."""
        message = await self.read()
        if message is not None:
            raise Deviation(f"expected the end of the connection; got {_shown(message)}")

    async def ended(self) -> None:
        """See the end of the stream; what was under way before it is skipped, but for errors."""
        while (message := await self.read()) is not None:
            if isinstance(message, Error) and not message.stream:
                raise Deviation(f"expected the end of the connection; got {_shown(message)}")

    async def drained(self) -> None:
        """Read whatever comes until the end of the stream, and look at nothing."""
        while await self._take(1):
            pass

    async def alive(self) -> None:
        """See that the connection still works: a PING is answered, with its own bytes."""
        data = os.urandom(8)
        await self.send(frame(FrameType.PING, {"data": data}))
        pong = await self.expect(Pong)
        if pong.data != data:
            raise Deviation(f"expected PONG with {data.hex()}; got PONG with {pong.data.hex()}")

    async def silent(self, seconds: float, *kinds: type[Message]) -> None:
        """See that none of these messages comes for a while, and that the connection lives; answer PING."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    message = await self.read(3600.0)
            except TimeoutError:
                return
            if message is None or isinstance(message, (Error, *kinds)):
                what = "the end of the stream" if message is None else _shown(message)
                raise Deviation(f"expected silence for {seconds:g} s; got {what}")
            if isinstance(message, Ping):
                await self.send(frame(FrameType.PONG, {"data": message.data}))


def _shown(message: Message) -> str:
    """Describe a message for a report."""
    parts = [message.type.name]
    if message.stream:
        parts.append(f"stream {message.stream}")
    if message.seq:
        parts.append(f"seq {message.seq}")
    for name in (field.name for field in dataclasses.fields(message)):
        if name in ("stream", "seq"):
            continue
        value = getattr(message, name)
        if name == "code":
            value = describe_code(value)
        elif isinstance(value, bytes | memoryview):
            value = bytes(value[:16]).hex() if len(value) <= 32 else f"{len(value)} bytes"
        if value not in (None, "", ()):
            parts.append(f"{name} {value}")
    return " ".join(parts)
