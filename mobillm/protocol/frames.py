"""Frames: a 32-byte header, a msgpack map and, for frames that carry one, a raw payload.

``docs/protocol.md``, section "Frames". This file knows sizes and checksums, not what messages mean.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import ErrorCode, RemoteProtocolError
from .checksum import append, crc32c
from .memory import allocate

__all__ = [
    "HEADER_SIZE",
    "MAX_META",
    "PAYLOAD_HEADER_SIZE",
    "VERSION",
    "Frame",
    "FrameBuffer",
    "FrameType",
    "encode_frame",
]

VERSION = 1
MAGIC = b"ML"
FIELDS = struct.Struct(">2sBBHHIHHQ")
CRCS = struct.Struct(">II")
HEADER = struct.Struct(FIELDS.format + "II")
HEADER_SIZE = 32
MAX_META = 4096

# The payload is the one msgpack object "bin 32" after the map: 0xc6 and a big-endian length.
PAYLOAD_HEADER = struct.Struct(">BI")
PAYLOAD_HEADER_SIZE = 5
BIN32 = 0xC6

# Flags of the low byte are critical, those of the high byte may be ignored; version 1 defines none.
CRITICAL_FLAGS = 0x00FF

# Headers, maps and short payloads go through a small buffer of the connection; longer payloads are
# received where they stay. The size decides how much of a long payload is copied once (at most this).
SCRATCH_SIZE = 8192

# Bytes behind a long payload that may be received with its last ones, so that the next frame's header and map
# need no call to the system of their own. What is more of them than a header and a map is copied once.
SLACK = 256


class FrameType(enum.IntEnum):
    """Type byte of the header; 0x80-0xBF are optional extensions, 0xC0-0xFF critical ones."""

    HELLO = 0x01
    CHALLENGE = 0x02
    AUTH = 0x03
    WELCOME = 0x04
    REJECT = 0x05
    OPEN = 0x06
    OPENED = 0x07
    BLOB = 0x08
    STORED = 0x09
    FINISH = 0x0A
    FINISHED = 0x0B
    EVAL = 0x0C
    EVALUATED = 0x0D
    PULL = 0x0E
    WEIGHTS = 0x0F
    DATA = 0x10
    COMMIT = 0x11
    ABORT = 0x12
    DETACH = 0x13
    ACK = 0x20
    CREDIT = 0x21
    GAP = 0x22
    METRICS = 0x23
    PING = 0x30
    PONG = 0x31
    ERROR = 0x40
    GOAWAY = 0x41
    BYE = 0x42

    @property
    def has_payload(self) -> bool:
        """Whether frames of this type end in a payload."""
        return self in _PAYLOAD_TYPES


_PAYLOAD_TYPES = frozenset({FrameType.BLOB, FrameType.WEIGHTS, FrameType.DATA})
_TYPES = {int(t): (t, t.has_payload) for t in FrameType}  # the property would be asked for each frame
_OPTIONAL = range(0x80, 0xC0)


class Frame(NamedTuple):
    """One received frame whose sizes and checksums are right.

    Attributes:
        type: one of :class:`FrameType`.
        stream: 0 for the connection, else the stream of one session.
        seq: batch number, 0 where none applies.
        meta: the msgpack map, still encoded.
        payload: the bytes of the bin object, or None for types without one.
        size: bytes of the whole frame, header included; what credit is charged for.
        checksum: CRC32C of the payload alone.

    """

    type: FrameType
    stream: int
    seq: int
    meta: bytes
    payload: memoryview | None
    size: int
    checksum: int


def encode_frame(
    frame_type: int,
    stream: int,
    seq: int,
    meta: bytes,
    payload: bytes | memoryview | None = None,
    checksum: int | None = None,
) -> list[bytes | memoryview]:
    """Return the buffers of one frame: the header with the map, then the payload itself, uncopied.

    Args:
        frame_type: type byte.
        stream: number of the stream.
        seq: batch number.
        meta: the msgpack map.
        payload: bytes of the bin object; None for types without one.
        checksum: CRC32C of the payload; None computes it.

    """
    if payload is None:
        return [_encode_header(frame_type, stream, seq, len(meta), len(meta), crc32c(meta)) + meta]
    head = meta + PAYLOAD_HEADER.pack(BIN32, len(payload))
    own = crc32c(payload) if checksum is None else checksum
    body = append(crc32c(head), payload, own)
    first = _encode_header(frame_type, stream, seq, len(head) + len(payload), len(meta), body) + head
    # A view: asyncio slices what a socket did not take, and slices of bytes are copies.
    return [first, memoryview(payload)] if payload else [first]


def _encode_header(frame_type: int, stream: int, seq: int, body: int, meta: int, checksum: int) -> bytes:
    fields = FIELDS.pack(MAGIC, VERSION, frame_type, 0, stream, body, meta, 0, seq)
    return fields + CRCS.pack(crc32c(fields), checksum)


class FrameBuffer:
    """Turn received bytes into frames; refuse a bad header before anything is allocated for it.

    Bytes come in through :meth:`get_buffer` and :meth:`buffer_updated` (no copy for long payloads) or
    :meth:`receive_data`; frames come out of :meth:`next_frame` or by iterating, until more bytes are needed.

    Args:
        max_body: largest body accepted, in bytes.

    Attributes:
        skipped: frames of unknown optional types so far.

    """

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self.skipped = 0
        self._scratch = memoryview(bytearray(SCRATCH_SIZE))
        self._start = 0  # first unread byte of the scratch buffer
        self._end = 0  # first free byte of the scratch buffer
        self._header: _Header | None = None
        self._head: bytes | None = None  # the body in front of the payload
        self._payload: memoryview | None = None  # with the slack behind it
        self._size = 0  # bytes of the payload
        self._filled = 0  # received bytes of the payload
        self._direct = False  # whether the last buffer handed out was the payload's own

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go; never empty."""
        # Only what the scratch buffer could not hold anyway is worth a call of its own.
        if (
            self._payload is not None
            and self._start == self._end
            and self._size - self._filled >= SCRATCH_SIZE // 2
        ):
            self._direct = True
            return self._payload[self._filled :]
        self._direct = False
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SCRATCH_SIZE or self._start > SCRATCH_SIZE // 2:
            rest = self._end - self._start
            self._scratch[:rest] = bytes(self._scratch[self._start : self._end])
            self._start, self._end = 0, rest
        return self._scratch[self._end :]

    def buffer_updated(self, count: int) -> bool:
        """Take note that ``count`` bytes were written into the last buffer handed out.

        Returns:
            whether a frame may be complete now; while a long payload still arrives it is not.

        """
        if not self._direct or self._payload is None:
            self._end += count
            return True
        self._filled += count
        excess = self._filled - self._size
        if excess > 0:  # the scratch buffer is empty
            self._scratch[:excess] = self._payload[self._size : self._filled]
            self._start, self._end, self._filled = 0, excess, self._size
        return excess >= 0

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Take ``data`` in and yield the frames it completes."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            buffer = self.get_buffer()
            count = min(view.nbytes, buffer.nbytes)
            buffer[:count] = view[:count]
            view = view[count:]
            self.buffer_updated(count)
            yield from self

    def clear(self) -> None:
        """Forget what has come of the next frame."""
        self._start = self._end = 0
        self._header, self._head, self._payload = None, None, None

    @property
    def is_empty(self) -> bool:
        """Whether the last byte received was the last byte of a frame."""
        return self._header is None and self._start == self._end

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.next_frame()) is not None:
            yield frame

    def next_frame(self) -> Frame | None:
        """Return the next whole frame; None when more bytes are needed.

        Raises:
            RemoteProtocolError: the bytes break a rule.

        """
        while True:
            header = self._header
            if header is None:
                if self._end - self._start < HEADER_SIZE:
                    return None
                self._start += HEADER_SIZE  # also when it is refused: there must be room for what is dropped
                header = _Header.parse(self._scratch, self._start - HEADER_SIZE, self.max_body)
                self._header = header
            if self._head is None:
                end = self._start + header.head_size
                if end > self._end:
                    return None
                self._head = bytes(self._scratch[self._start : end])
                self._start = end
                if header.payload_size is not None:
                    self._begin_payload(header, header.payload_size)
            if self._payload is not None and not self._fill_payload(self._payload):
                return None
            frame = self._finish(header, self._head)
            if frame is not None:
                return frame

    def _begin_payload(self, header: _Header, size: int) -> None:
        assert self._head is not None
        if PAYLOAD_HEADER.unpack_from(self._head, header.meta_size) != (BIN32, size):
            raise RemoteProtocolError(
                ErrorCode.DECODE, "the map is not followed by a bin 32 object of the declared length"
            )
        self._payload = memoryview(bytearray(size)) if size < SCRATCH_SIZE else allocate(size + SLACK)
        self._size, self._filled = size, 0

    def _fill_payload(self, payload: memoryview) -> bool:
        count = min(self._size - self._filled, self._end - self._start)
        if count:
            payload[self._filled : self._filled + count] = self._scratch[self._start : self._start + count]
            self._filled += count
            self._start += count
        return self._filled == self._size

    def _finish(self, header: _Header, head: bytes) -> Frame | None:
        checksum = crc32c(head)
        payload = None
        own = 0
        if self._payload is not None:
            payload = self._payload[: self._size]
            own = crc32c(payload)
            checksum = append(checksum, payload, own)
        self._header = self._head = self._payload = None
        if checksum != header.checksum:
            raise RemoteProtocolError(ErrorCode.CRC_BODY, "the body's CRC32C is wrong")
        if header.type is None:
            self.skipped += 1
            return None  # an optional extension that this version does not know
        meta = head[: header.meta_size]
        size = HEADER_SIZE + header.body_size
        return Frame(header.type, header.stream, header.seq, meta, payload, size, own)


class _Header(NamedTuple):
    """What a header says.

    Attributes:
        head_size: bytes of the body in front of the payload.
        payload_size: bytes of the payload; None for types without one.

    """

    type: FrameType | None
    stream: int
    seq: int
    body_size: int
    meta_size: int
    checksum: int
    head_size: int
    payload_size: int | None

    @classmethod
    def parse(cls, data: memoryview, start: int, max_body: int) -> _Header:
        """Read and check the 32 bytes of ``data`` from ``start`` on."""
        magic, version, code, flags, stream, body, meta, reserved, seq, crc, checksum = HEADER.unpack_from(
            data, start
        )
        if magic != MAGIC:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "these bytes are not a MobiLLM frame (wrong magic)")
        # Nothing else of the header is trusted before its own checksum was.
        if crc32c(data[start : start + FIELDS.size]) != crc:
            raise RemoteProtocolError(ErrorCode.CRC_HEADER, "the header's CRC32C is wrong")
        if version != VERSION:
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_VERSION, f"frame version {version}; this endpoint speaks {VERSION}"
            )
        if reserved or flags & CRITICAL_FLAGS or seq >> 63:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "reserved bits of the header are set")
        if body > max_body:
            raise RemoteProtocolError(
                ErrorCode.FRAME_SIZE, f"a body of {body} bytes; the limit is {max_body}"
            )
        if meta > MAX_META:
            raise RemoteProtocolError(ErrorCode.LIMIT, f"a map of {meta} bytes; the limit is {MAX_META}")
        known = _TYPES.get(code)
        if known is None:
            return cls._unknown(code, stream, seq, body, meta, checksum)
        known_type, has_payload = known
        payload = body - meta - PAYLOAD_HEADER_SIZE if has_payload else None
        if (body != meta) if payload is None else payload < 0:
            raise RemoteProtocolError(
                ErrorCode.PROTOCOL, f"a map of {meta} bytes does not fit a body of {body} bytes"
            )
        head = body if payload is None else meta + PAYLOAD_HEADER_SIZE
        return cls(known_type, stream, seq, body, meta, checksum, head, payload)

    @classmethod
    def _unknown(cls, code: int, stream: int, seq: int, body: int, meta: int, checksum: int) -> _Header:
        if code not in _OPTIONAL:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"frame type 0x{code:02x} is not known")
        # What an optional extension carries is skipped, so it may be as long as any small frame only.
        if body > MAX_META:
            raise RemoteProtocolError(
                ErrorCode.FRAME_SIZE, f"an unknown optional frame of {body} bytes; the limit is {MAX_META}"
            )
        return cls(None, stream, seq, body, min(meta, body), checksum, body, None)
