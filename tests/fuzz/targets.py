"""What must hold for any bytes: the protocol core, the readers of packed and of compressed tensors.

atheris calls them with inputs that it makes (``make fuzz``), the tests with those of the corpus.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import crc32c
import numpy as np
import zstandard

from mobillm.codec import unpack
from mobillm.errors import ConfigError, ErrorCode, MobiLLMError, RemoteProtocolError
from mobillm.formats import Format
from mobillm.kernels import reference
from mobillm.protocol import (
    HEADER_SIZE,
    Endpoint,
    Frame,
    FrameBuffer,
    TensorHeader,
    decode_message,
    decompress,
)
from tests.helpers import EndpointPair, output, wire_bytes

__all__ = ["DEVICE", "FRESH", "RAW", "TARGETS", "fuzz_compressed", "fuzz_endpoint", "fuzz_tensor", "repair"]

# The first byte of an input for the endpoint says what the rest is for.
DEVICE = 0x01  # to the device; else to the server
FRESH = 0x02  # before the handshake; else with a session attached
RAW = 0x04  # as they are; else with right lengths and checksums, which no mutation would find

LARGEST = 1 << 20  # body of a frame that comes from an endpoint
FITTED = 0x80  # in the rank's byte of an input for the reader of tensors
LARGEST_FITTED = 1 << 12
COMPARED = 512  # values up to which the slow reference is asked, too


def repair(data: bytes) -> bytes:
    """Return bytes as frames: magic, lengths inside the data and both checksums are made right."""
    out = bytearray(data)
    start = 0
    while len(out) - start >= HEADER_SIZE:
        out[start : start + 2] = b"ML"
        (body,) = struct.unpack_from(">I", out, start + 8)
        body = min(body, len(out) - start - HEADER_SIZE)
        struct.pack_into(">I", out, start + 8, body)
        end = start + HEADER_SIZE + body
        checksums = crc32c.crc32c(out[start : start + 24]), crc32c.crc32c(out[start + HEADER_SIZE : end])
        struct.pack_into(">II", out, start + 24, *checksums)
        start = end
    return bytes(out)


def fuzz_endpoint(data: bytes) -> None:
    """Feed one end of a connection, at once and in pieces; both must tell the same, and nothing may raise."""
    if len(data) < 2:
        return
    mode, step, data = data[0], data[1] or 1, data[2:]
    if not mode & RAW:
        data = repair(data)
    results = []
    for pieces in (len(data) or 1, step):
        pair = EndpointPair() if mode & FRESH else EndpointPair.attached()
        end = pair.device if mode & DEVICE else pair.server
        output(end)
        for start in range(0, len(data), pieces):
            end.receive_data(data[start : start + pieces])
        results.append(_outcome(end, len(data)))
        end.receive_eof()
        assert end.is_closed()
        assert isinstance(end.close_exc, MobiLLMError)
    assert results[0] == results[1], "how bytes are cut into pieces changes what is understood"


def _outcome(end: Endpoint, received: int) -> tuple[object, ...]:
    """Return all that an endpoint has to tell; check what holds for each of its messages and frames."""
    events = end.events_received()
    payloads = sum(len(getattr(message, "payload", b"")) for message in events)
    assert payloads <= received, "more payload than bytes"
    for message in events:
        assert _decoded(wire_bytes(message))[0] == message, "a message does not survive its own encoding"
    said = output(end)
    for frame in _frames(said):
        decode_message(frame)
    assert (end.close_exc is not None) == end.is_closed()
    return events, said, end.phase, end.dropped, type(end.close_exc), str(end.close_exc)


def _frames(data: bytes) -> list[Frame]:
    buffer = FrameBuffer(LARGEST)
    frames = list(buffer.receive_data(data))
    assert buffer.is_empty, "what an endpoint says ends in the middle of a frame"
    return frames


def _decoded(data: bytes) -> list[object]:
    return [decode_message(frame) for frame in _frames(data)]


def fuzz_tensor(data: bytes) -> None:
    """Read a packed tensor: a byte each for format, block and rank, two for each dimension, the payload.

    With the top bit of the rank's byte the payload is repeated to the right size, which is rarely found.
    """
    if len(data) < 3:
        return
    rank = data[2] % 16
    dimensions = data[3 : 3 + 2 * rank]
    payload = data[3 + len(dimensions) :]
    shape = struct.unpack(f">{len(dimensions) // 2}H", dimensions[: len(dimensions) // 2 * 2])
    try:
        header = TensorHeader(Format(data[0]), data[1], shape)
    except ValueError:
        return
    if data[2] & FITTED and header.size <= LARGEST_FITTED:
        payload = ((payload or b"\0") * header.size)[: header.size]
    try:
        values = unpack(header, payload)
    except ConfigError:
        assert header.size != len(payload), "a payload of the right size was refused"
        return
    assert header.size == len(payload), "a payload of a wrong size was read"
    assert values.shape == shape
    assert values.dtype == (np.int32 if header.format is Format.I32 else np.float32)
    if values.size <= COMPARED:
        with np.errstate(all="ignore"):  # a trailer may be infinite
            twin = reference.dequantize(payload, header.format, shape, header.block or 64)
        same = values.astype(np.float32).view(np.uint32) == twin.astype(np.float32).view(np.uint32)
        assert np.all(same | (np.isnan(values) & np.isnan(twin))), "the reference reads other values"


def fuzz_compressed(data: bytes) -> None:
    """Read a compressed tensor: two bytes for its packed size, which is not 0, then its frame."""
    if len(data) < 2:
        return
    size = int.from_bytes(data[:2], "big") or 1
    try:
        content = decompress(data[2:], size)
    except RemoteProtocolError as exc:
        if exc.code == ErrorCode.DECOMPRESS:
            return
        raise
    assert len(content) == size, "a frame of another size was read"
    again = zstandard.ZstdDecompressor().decompressobj()
    assert again.decompress(data[2:]) == content, "in pieces the frame has other content"
    assert again.eof
    assert not again.unused_data, "bytes behind the frame were taken"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "endpoint": fuzz_endpoint,
    "tensor": fuzz_tensor,
    "compressed": fuzz_compressed,
}
