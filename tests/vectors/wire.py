"""Frames made from the text of ``docs/protocol.md`` alone, for the golden vectors.

Nothing of the package is used here: the vectors are a second opinion.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

__all__ = ["Case", "as_json", "crc32c", "frame", "message", "payload_types", "types"]

Case = dict[str, Any]

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed

types = {
    "HELLO": 0x01, "CHALLENGE": 0x02, "AUTH": 0x03, "WELCOME": 0x04, "REJECT": 0x05, "OPEN": 0x06,
    "OPENED": 0x07, "BLOB": 0x08, "STORED": 0x09, "FINISH": 0x0A, "FINISHED": 0x0B, "EVAL": 0x0C,
    "EVALUATED": 0x0D, "PULL": 0x0E, "WEIGHTS": 0x0F, "DATA": 0x10, "COMMIT": 0x11, "ABORT": 0x12,
    "DETACH": 0x13, "ACK": 0x20, "CREDIT": 0x21, "GAP": 0x22, "METRICS": 0x23, "PING": 0x30, "PONG": 0x31,
    "ERROR": 0x40, "GOAWAY": 0x41, "BYE": 0x42,
}  # fmt: skip
payload_types = ("BLOB", "WEIGHTS", "DATA")


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(data: bytes, before: int = 0) -> int:
    """Return the CRC32C of data that follows data with the checksum ``before``."""
    crc = before ^ 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def frame(
    code: int,
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
    marker: bytes | None = None,
    damage_header: int = 0,
    damage_body: int = 0,
) -> bytes:
    """Return a frame; every keyword after ``seq`` makes it wrong in one way, with right checksums."""
    body = meta
    if payload is not None:
        body += marker if marker is not None else b"\xc6" + len(payload).to_bytes(4, "big")
        body += payload
    fields = magic + struct.pack(
        ">BBHHIHHQ",
        version,
        code,
        flags,
        stream,
        len(body) if body_size is None else body_size,
        len(meta) if meta_size is None else meta_size,
        reserved,
        seq,
    )
    sums = struct.pack(">II", crc32c(fields) ^ damage_header, crc32c(body) ^ damage_body)
    return fields + sums + body


def message(
    name: str, fields: Case | None = None, payload: bytes | None = None, *, stream: int = 0, seq: int = 0
) -> bytes:
    """Return the frame of a message: its fields in the order given, in msgpack's shortest forms."""
    return frame(types[name], msgpack.packb(fields or {}), payload, stream=stream, seq=seq)


def as_json(value: object) -> Any:
    """Return a field's value for JSON: bytes as ``{"hex": ...}``, all else as it is."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value
