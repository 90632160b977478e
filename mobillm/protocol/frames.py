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
_TYPES = {int(t): t for t in FrameType}
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
    :meth:`receive_data`; frames come out by iterating. The iterator ends when more bytes are needed.

    Args:
        max_body: largest body accepted, in bytes.

    """

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self.skipped = 0
        self._scratch = bytearray(SCRATCH_SIZE)
        self._view = memoryview(self._scratch)
        self._start = 0  # first unread byte of the scratch buffer
        self._end = 0  # first free byte of the scratch buffer
        self._header: _Header | None = None
        self._meta: bytes | None = None
        self._payload: bytearray | None = None
        self._filled = 0  # received bytes of the payload
        self._direct = False  # whether the last buffer handed out was the payload's own

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go; never empty."""
        if self._payload is not None and self._start == self._end:
            # Only what the scratch buffer could not hold anyway is worth a call of its own.
            missing = len(self._payload) - self._filled
            if missing >= SCRATCH_SIZE // 2:
                self._direct = True
                return memoryview(self._payload)[self._filled :]
        self._direct = False
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SCRATCH_SIZE or self._start > SCRATCH_SIZE // 2:
            rest = self._end - self._start
            self._scratch[:rest] = self._scratch[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> bool:
        """Take note that ``count`` bytes were written into the last buffer handed out.

        Returns:
            whether a frame may be complete now; while a long payload still arrives it is not.

        """
        if self._direct and self._payload is not None:
            self._filled += count
            return self._filled == len(self._payload)
        self._end += count
        return True

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
        self._header, self._meta, self._payload = None, None, None

    @property
    def is_empty(self) -> bool:
        """Whether the last byte received was the last byte of a frame."""
        return self._header is None and self._start == self._end

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._next()) is not None:
            yield frame

    def _take(self, count: int) -> bytes | None:
        if self._end - self._start < count:
            return None
        data = bytes(self._view[self._start : self._start + count])
        self._start += count
        return data

    def _next(self) -> Frame | None:
        while True:
            if self._header is None:
                data = self._take(HEADER_SIZE)
                if data is None:
                    return None
                self._header = _Header.parse(data, self.max_body)
            header = self._header
            if self._meta is None:
                self._meta = self._take(header.head_size)
                if self._meta is None:
                    return None
                self._begin_payload(header, self._meta)
            if not self._fill_payload():
                return None
            frame = self._finish(header, self._meta)
            if frame is not None:
                return frame

    def _begin_payload(self, header: _Header, head: bytes) -> None:
        if header.payload_size is None:
            return
        marker, size = PAYLOAD_HEADER.unpack_from(head, header.meta_size)
        if marker != BIN32 or size != header.payload_size:
            raise RemoteProtocolError(
                ErrorCode.DECODE, "the map is not followed by a bin 32 object of the declared length"
            )
        self._payload = bytearray(size)
        self._filled = 0

    def _fill_payload(self) -> bool:
        payload = self._payload
        if payload is None:
            return True
        count = min(len(payload) - self._filled, self._end - self._start)
        if count:
            payload[self._filled : self._filled + count] = self._view[self._start : self._start + count]
            self._filled += count
            self._start += count
        return self._filled == len(payload)

    def _finish(self, header: _Header, head: bytes) -> Frame | None:
        checksum = crc32c(head)
        payload = None
        own = 0
        if self._payload is not None:
            own = crc32c(self._payload)
            checksum = append(checksum, self._payload, own)
            payload = memoryview(self._payload)
        self._header, self._meta, self._payload = None, None, None
        if checksum != header.checksum:
            raise RemoteProtocolError(ErrorCode.CRC_BODY, "the body's CRC32C is wrong")
        if header.type is None:
            self.skipped += 1
            return None  # an optional extension that this version does not know
        meta = head[: header.meta_size]
        size = HEADER_SIZE + header.body_size
        return Frame(header.type, header.stream, header.seq, meta, payload, size, own)


class _Header(NamedTuple):
    type: FrameType | None
    stream: int
    seq: int
    body_size: int
    meta_size: int
    checksum: int
    payload_size: int | None

    @property
    def head_size(self) -> int:
        """Bytes of the body in front of the payload."""
        if self.payload_size is None:
            return self.body_size
        return self.meta_size + PAYLOAD_HEADER_SIZE

    @classmethod
    def parse(cls, data: bytes, max_body: int) -> _Header:
        magic, version, code, flags, stream, body, meta, reserved, seq = FIELDS.unpack_from(data)
        crc, checksum = CRCS.unpack_from(data, FIELDS.size)
        if magic != MAGIC:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "these bytes are not a MobiLLM frame (wrong magic)")
        # Nothing else of the header is trusted before its own checksum was.
        if crc32c(data[: FIELDS.size]) != crc:
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
        if known is None and code not in _OPTIONAL:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"frame type 0x{code:02x} is not known")
        payload = None
        if known is not None and known.has_payload:
            payload = body - meta - PAYLOAD_HEADER_SIZE
        if (payload is not None and payload < 0) or (payload is None and known is not None and body != meta):
            raise RemoteProtocolError(
                ErrorCode.PROTOCOL, f"a map of {meta} bytes does not fit a body of {body} bytes"
            )
        if known is None:
            return cls._unknown(stream, seq, body, meta, checksum)
        return cls(known, stream, seq, body, meta, checksum, payload)

    @classmethod
    def _unknown(cls, stream: int, seq: int, body: int, meta: int, checksum: int) -> _Header:
        # What an optional extension carries is skipped, so it may be as long as any small frame only.
        if body > MAX_META:
            raise RemoteProtocolError(
                ErrorCode.FRAME_SIZE, f"an unknown optional frame of {body} bytes; the limit is {MAX_META}"
            )
        return cls(None, stream, seq, body, min(meta, body), checksum, None)
