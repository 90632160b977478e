"""Packing of small codes into bytes, for numpy arrays.

The order of the bits is normative: ``docs/packed-tensors.md``, section "Codes".
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .layout import code_size

__all__ = ["pack", "plane_parts", "unpack"]

_Codes = npt.NDArray[np.uint8]
_SEGMENTS = 8


def pack(codes: _Codes, bits: int) -> _Codes:
    """Pack rows of codes.

    Args:
        codes: uint8 [rows, n], contiguous along the last axis, each code below ``2**bits``.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        uint8 [rows, ceil(n * bits / 8)]; for 8 bits ``codes`` itself.

    """
    if bits == 8:
        return codes
    if bits in (2, 4):
        return _pack_adjacent(codes, bits)
    lane = codes.shape[1] // _SEGMENTS
    rest = codes.shape[1] - _SEGMENTS * lane
    parts = []
    if lane:
        parts.append(_pack_planes(codes[:, : _SEGMENTS * lane], bits, lane))
    if rest:
        parts.append(_pack_stream(codes[:, -rest:], bits))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def unpack(packed: _Codes, bits: int, n: int) -> _Codes:
    """Unpack rows of codes.

    Args:
        packed: uint8 [rows, ceil(n * bits / 8)], contiguous along the last axis.
        bits: 2, 3, 4, 5, 6 or 8.
        n: codes of one row.

    Returns:
        uint8 [rows, n]; for 8 bits ``packed`` itself.

    """
    if bits == 8:
        return packed
    if bits in (2, 4):
        return _unpack_adjacent(packed, bits)[:, :n]
    lane = n // _SEGMENTS
    rest = n - _SEGMENTS * lane
    parts = []
    if lane:
        parts.append(_unpack_planes(packed[:, : bits * lane], bits, lane))
    if rest:
        parts.append(_unpack_stream(packed[:, bits * lane :], bits, rest))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


@functools.cache
def plane_parts(bits: int) -> tuple[tuple[int, int, int], ...]:
    """List which segments meet in which byte plane.

    Args:
        bits: 3, 5 or 6.

    Returns:
        Triples ``(plane, segment, shift)``: bit 0 of the segment's code is bit ``shift`` of the
        plane's byte. A negative shift means that the code began in the plane before.

    """
    return tuple(
        (plane, segment, segment * bits - 8 * plane)
        for plane in range(bits)
        for segment in range(_SEGMENTS)
        if -bits < segment * bits - 8 * plane < 8
    )


def _pack_adjacent(codes: _Codes, bits: int) -> _Codes:
    per_byte = 8 // bits
    if codes.shape[1] % per_byte:
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte)))
    # The codes of one packed byte are the bytes of one word; shifts gather them in its lowest byte.
    word: npt.NDArray[Any] = codes.view(f"<u{per_byte}")
    word = word | word >> 4 if bits == 4 else word | word >> 6 | word >> 12 | word >> 18
    return word.astype(np.uint8)


def _unpack_adjacent(packed: _Codes, bits: int) -> _Codes:
    word: npt.NDArray[Any] = packed.astype(f"<u{8 // bits}")
    if bits == 4:
        word = (word | word << 4) & 0x0F0F
    else:
        word = (word | word << 12) & 0x000F000F
        word = (word | word << 6) & 0x03030303
    return word.view(np.uint8)


def _each_byte(size: int, mask: int) -> int:
    return int.from_bytes(bytes([mask]) * size, "little")


def _pack_planes(codes: _Codes, bits: int, lane: int) -> _Codes:
    # Neighbouring codes of a segment are handled together, as the bytes of one integer; the mask keeps
    # a shift from carrying bits into the next byte.
    size = math.gcd(lane, 8)
    rows = len(codes)
    segments = codes.reshape(rows, _SEGMENTS, lane).view(f"<u{size}").swapaxes(0, 1)
    segments = np.ascontiguousarray(segments)  # [8, rows, lane / size]: every shift runs over long vectors
    planes = np.zeros((bits, *segments.shape[1:]), segments.dtype)
    for plane, segment, shift in plane_parts(bits):
        part = segments[segment]
        if shift < 0:
            part = (part >> -shift) & _each_byte(size, (1 << (bits + shift)) - 1)
        elif shift + bits > 8:
            part = (part & _each_byte(size, 0xFF >> shift)) << shift
        else:
            part = part << shift
        planes[plane] |= part
    return np.ascontiguousarray(planes.swapaxes(0, 1)).view(np.uint8).reshape(rows, bits * lane)


def _unpack_planes(packed: _Codes, bits: int, lane: int) -> _Codes:
    size = math.gcd(lane, 8)
    rows = len(packed)
    planes = np.ascontiguousarray(packed).reshape(rows, bits, lane).view(f"<u{size}").swapaxes(0, 1)
    planes = np.ascontiguousarray(planes)  # [bits, rows, lane / size]
    segments = np.zeros((_SEGMENTS, *planes.shape[1:]), planes.dtype)
    for plane, segment, shift in plane_parts(bits):
        part = planes[plane]
        if shift < 0:
            part = (part & _each_byte(size, (1 << (bits + shift)) - 1)) << -shift
        else:
            part = (part >> shift) & _each_byte(size, (1 << min(bits, 8 - shift)) - 1)
        segments[segment] |= part
    return np.ascontiguousarray(segments.swapaxes(0, 1)).view(np.uint8).reshape(rows, _SEGMENTS * lane)


def _pack_stream(codes: _Codes, bits: int) -> _Codes:
    # At most 7 codes of 6 bits, so one 64-bit word holds the stream of a row.
    shifts = np.arange(codes.shape[1], dtype=np.uint64) * np.uint64(bits)
    words: npt.NDArray[Any] = np.bitwise_or.reduce(codes.astype("<u8") << shifts, axis=1, keepdims=True)
    return words.astype("<u8").view(np.uint8)[:, : code_size(bits, codes.shape[1])]


def _unpack_stream(packed: _Codes, bits: int, n: int) -> _Codes:
    words = np.zeros((len(packed), 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    shifts = np.arange(n, dtype=np.uint64) * np.uint64(bits)
    codes: npt.NDArray[Any] = words.view("<u8") >> shifts & np.uint64((1 << bits) - 1)
    return codes.astype(np.uint8)
