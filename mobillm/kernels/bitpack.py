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
from .workspace import Workspace

__all__ = ["copy_octets", "pack", "plane_parts", "unpack"]

_Codes = npt.NDArray[np.uint8]
_SEGMENTS = 8
# Rows handled at a time: what is made on the way stays in a core's own cache.
_CHUNK = 1 << 13
_workspace = Workspace()


def pack(codes: _Codes, bits: int, out: _Codes) -> None:
    """Pack rows of codes.

    Args:
        codes: uint8 [rows, n], contiguous along the last axis; a code is in the highest ``bits`` bits of
            its byte, what is below them is ignored.
        bits: 2 to 8.
        out: uint8 [rows, ceil(n * bits / 8)], contiguous along the last axis; is written.

    """
    if bits == 8:
        copy_octets(codes, out)
        return
    lane, rest = divmod(codes.shape[1], _SEGMENTS)
    for start in range(0, len(codes), _CHUNK):
        part, packed = codes[start : start + _CHUNK], out[start : start + _CHUNK]
        if bits in (2, 4):
            copy_octets(_pack_adjacent(part, bits)[:, : out.shape[1]], packed)
            continue
        if lane:
            _pack_planes(part[:, : _SEGMENTS * lane], bits, packed[:, : bits * lane])
        if rest:
            packed[:, bits * lane :] = _pack_stream(part[:, -rest:] >> np.uint8(8 - bits), bits)


def unpack(packed: _Codes, bits: int, out: _Codes) -> None:
    """Unpack rows of codes.

    Args:
        packed: uint8 [rows, ceil(n * bits / 8)], contiguous along the last axis.
        bits: 2 to 8.
        out: uint8 [rows, n], contiguous along the last axis; is written, with codes in the lowest bits.

    """
    if bits == 8:
        copy_octets(packed, out)
        return
    lane, rest = divmod(out.shape[1], _SEGMENTS)
    for start in range(0, len(packed), _CHUNK):
        part, codes = packed[start : start + _CHUNK], out[start : start + _CHUNK]
        if bits in (2, 4):
            copy_octets(_unpack_adjacent(part, bits)[:, : out.shape[1]], codes)
            continue
        if lane:
            _unpack_planes(part[:, : bits * lane], bits, codes[:, : _SEGMENTS * lane])
        if rest:
            codes[:, -rest:] = _unpack_stream(part[:, bits * lane :], bits, rest)


def copy_octets(source: _Codes, target: _Codes) -> None:
    """Copy rows of bytes; both are [rows, n], contiguous along the last axis."""
    # A row as one item is one memcpy; as n items it is a loop.
    whole = f"V{source.shape[1]}"
    target.view(whole)[...] = source.view(whole)


@functools.cache
def plane_parts(bits: int) -> tuple[tuple[int, int, int], ...]:
    """List which segments meet in which byte plane.

    Args:
        bits: 3, 5, 6 or 7.

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
    # The codes of one packed byte are the bytes of one word. The product puts copies of the word, each
    # shifted left by a multiple of 8 - bits, on top of one another; its highest byte is the packed one.
    mask, factor = (0xF0F0, 0x11) if bits == 4 else (0xC0C0C0C0, 0x00041041)
    source = codes.view(f"<u{per_byte}")
    word: npt.NDArray[Any] = _workspace.take("adjacent", source.shape, f"<u{per_byte}")
    np.bitwise_and(source, mask, out=word)
    np.multiply(word, factor, out=word)
    np.right_shift(word, 8 * (per_byte - 1), out=word)
    packed = _workspace.take("adjacent packed", word.shape, np.uint8)
    np.copyto(packed, word, casting="unsafe")
    return packed


def _unpack_adjacent(packed: _Codes, bits: int) -> _Codes:
    per_byte = 8 // bits
    word: npt.NDArray[Any] = _workspace.take("adjacent", packed.shape, f"<u{per_byte}")
    np.copyto(word, packed)
    shifted = _workspace.take("adjacent shifted", packed.shape, f"<u{per_byte}")
    # Each step doubles the distance between the codes of the upper and of the lower half.
    for shift, mask in ((4, 0x0F0F),) if bits == 4 else ((12, 0x000F000F), (6, 0x03030303)):
        np.left_shift(word, shift, out=shifted)
        np.bitwise_or(word, shifted, out=word)
        np.bitwise_and(word, mask, out=word)
    return word.view(np.uint8)


@functools.cache
def _moves(bits: int, size: int, packing: bool) -> tuple[tuple[tuple[int, Any, Any], ...], ...]:
    """List how each plane is made from segments, or each segment from planes.

    Args:
        bits: 3, 5, 6 or 7.
        size: bytes that are handled together, as one integer.
        packing: planes from segments of left-aligned codes; else segments from planes.

    Returns:
        For each plane or segment its moves ``(source, mask, shift)``: the mask leaves the bits that go
        there, so that the shift, to the left if positive, carries nothing into the next byte.

    """
    kind = np.dtype(f"<u{size}").type
    made: list[list[tuple[int, Any, Any]]] = [[] for _ in range(bits if packing else _SEGMENTS)]
    for plane, segment, shift in plane_parts(bits):
        start, end = (8 - bits, shift) if packing else (shift, 0)  # where bit 0 of the code is and goes
        lowest, highest = max(0, -shift), min(bits, 8 - shift)
        mask = ((1 << (highest - lowest)) - 1) << (start + lowest)
        move = kind(int.from_bytes(bytes([mask]) * size, "little")), end - start
        made[plane if packing else segment].append((segment if packing else plane, *move))
    return tuple(tuple(moves) for moves in made)


def _pack_planes(codes: _Codes, bits: int, out: _Codes) -> None:
    # Neighbouring codes of a segment are handled together, as the bytes of one integer.
    rows, lane = len(codes), codes.shape[1] // _SEGMENTS
    size = math.gcd(lane, 8)
    segments = codes.view(f"<u{size}").reshape(rows, _SEGMENTS, -1)
    _gather(segments, out.view(f"<u{size}").reshape(rows, bits, -1), _moves(bits, size, True))


def _unpack_planes(packed: _Codes, bits: int, out: _Codes) -> None:
    rows, lane = len(packed), out.shape[1] // _SEGMENTS
    size = math.gcd(lane, 8)
    planes = packed.view(f"<u{size}").reshape(rows, bits, -1)
    _gather(planes, out.view(f"<u{size}").reshape(rows, _SEGMENTS, -1), _moves(bits, size, False))


def _gather(
    source: npt.NDArray[Any], out: npt.NDArray[Any], moves: tuple[tuple[tuple[int, Any, Any], ...], ...]
) -> None:
    """Make each column of ``out`` [rows, columns, k] from columns of ``source`` [rows, columns, k]."""
    rows, columns, k = source.shape
    turned = _workspace.take("turned", (columns, k, rows), source.dtype)  # every shift runs over long vectors
    np.copyto(turned, source.transpose(1, 2, 0))
    part, whole = _workspace.take("part", (2, k, rows), source.dtype)
    for column, parts in enumerate(moves):
        into = whole
        for index, mask, shift in parts:
            np.bitwise_and(turned[index], mask, out=into)
            if shift > 0:
                np.left_shift(into, shift, out=into)
            elif shift < 0:
                np.right_shift(into, -shift, out=into)
            if into is part:
                np.bitwise_or(whole, part, out=whole)
            into = part
        np.copyto(out[:, column], whole.T)


def _pack_stream(codes: _Codes, bits: int) -> _Codes:
    # At most 7 codes of 7 bits, so one 64-bit word holds the stream of a row.
    shifts = np.arange(codes.shape[1], dtype=np.uint64) * np.uint64(bits)
    words: npt.NDArray[Any] = np.bitwise_or.reduce(codes.astype("<u8") << shifts, axis=1, keepdims=True)
    return words.astype("<u8").view(np.uint8)[:, : code_size(bits, codes.shape[1])]


def _unpack_stream(packed: _Codes, bits: int, n: int) -> _Codes:
    words = np.zeros((len(packed), 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    shifts = np.arange(n, dtype=np.uint64) * np.uint64(bits)
    codes: npt.NDArray[Any] = words.view("<u8") >> shifts & np.uint64((1 << bits) - 1)
    return codes.astype(np.uint8)
