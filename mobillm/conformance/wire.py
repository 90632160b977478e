"""Frames built by hand, so that any part of one can be wrong, and the proofs of the handshake.

``docs/protocol.md``, sections "Frames" and "Authentication". Nothing here checks anything.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from typing import Any

import crc32c
import msgpack

from ..protocol import HEADER_SIZE, FrameType

__all__ = ["describe", "device_proof", "frame", "raw_frame", "resigned", "server_proof"]

FIELDS = struct.Struct(">2sBBHHIHHQ")
CHECKSUMS = struct.Struct(">II")
BIN32 = struct.Struct(">BI")
SHOWN = 48  # bytes of a frame that a report shows


def raw_frame(
    frame_type: int,
    meta: bytes,
    payload: bytes | None = None,
    *,
    stream: int = 0,
    seq: int = 0,
    magic: bytes = b"ML",
    version: int = 1,
    flags: int = 0,
    reserved: int = 0,
    body_size: int | None = None,
    meta_size: int | None = None,
    bin_header: bytes | None = None,
) -> bytes:
    """Return a frame whose checksums are right, however wrong its fields are.

    Args:
        frame_type: the type byte.
        meta: the map as it goes on the wire.
        payload: what the bin object holds; None leaves it out.
        stream: field of the header, as the next ones.
        seq: batch number.
        magic: two bytes.
        version: one byte.
        flags: low byte critical, high byte optional.
        reserved: two bytes.
        body_size: length to state; None states the true one.
        meta_size: likewise, of the map.
        bin_header: what stands before the payload; None stands for the right five bytes.

    """
    body = meta
    if payload is not None:
        body += BIN32.pack(0xC6, len(payload)) if bin_header is None else bin_header
        body += payload
    fields = FIELDS.pack(
        magic,
        version,
        frame_type,
        flags,
        stream,
        len(body) if body_size is None else body_size,
        len(meta) if meta_size is None else meta_size,
        reserved,
        seq,
    )
    return fields + CHECKSUMS.pack(crc32c.crc32c(fields), crc32c.crc32c(body)) + body


def frame(
    frame_type: int,
    values: Mapping[str, Any] | None = None,
    payload: bytes | None = None,
    *,
    stream: int = 0,
    seq: int = 0,
) -> bytes:
    """Return a frame whose map holds ``values``, whatever they are."""
    meta: bytes = msgpack.packb(dict(values or {}))
    return raw_frame(frame_type, meta, payload, stream=stream, seq=seq)


def resigned(data: bytes) -> bytes:
    """Return a frame with both checksums made right again after it was changed."""
    body = data[HEADER_SIZE:]
    return data[:24] + CHECKSUMS.pack(crc32c.crc32c(data[:24]), crc32c.crc32c(body)) + body


def _proof(label: bytes, key: bytes, hello: bytes, challenge: bytes) -> bytes:
    transcript = hashlib.sha256()
    for kind, body in ((FrameType.HELLO, hello), (FrameType.CHALLENGE, challenge)):
        transcript.update(struct.pack(">BI", kind, len(body)) + body)
    return hmac.new(key, label + transcript.digest(), "sha256").digest()


def device_proof(key: bytes, hello: bytes, challenge: bytes) -> bytes:
    """Return what AUTH has to hold, from the bodies of HELLO and CHALLENGE."""
    return _proof(b"mobillm v1 device", key, hello, challenge)


def server_proof(key: bytes, hello: bytes, challenge: bytes) -> bytes:
    """Return what WELCOME has to hold."""
    return _proof(b"mobillm v1 server", key, hello, challenge)


def describe(data: bytes) -> str:
    """Describe bytes for a report: what frame they look like, their number and the first ones."""
    name = "bytes"
    if len(data) >= HEADER_SIZE and data[:2] == b"ML":
        kind, stream, seq = data[3], int.from_bytes(data[6:8], "big"), int.from_bytes(data[16:24], "big")
        known = kind in FrameType._value2member_map_
        name = FrameType(kind).name if known else f"type 0x{kind:02x}"
        name += f" stream {stream}" + (f" seq {seq}" if seq else "")
    more = " ..." if len(data) > SHOWN else ""
    return f"{name}, {len(data)} bytes: {data[:SHOWN].hex(' ')}{more}"
