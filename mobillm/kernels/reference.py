"""The packed tensors' rules, value by value: slow, plain, and what the fast backends are tested against.

Follows the numbered statements of ``docs/packed-tensors.md``. Input is not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format
from .tables import table_of

__all__ = ["dequantize", "pack_codes", "quantize", "unpack_codes"]

_F32 = np.float32
_PLAIN = {Format.F32: "<f", Format.F16: "<e", Format.I32: "<i"}


def quantize(x: npt.NDArray[Any], fmt: Format, block: int = 64) -> bytes:
    """Quantize and pack an array whose values the format can carry."""
    rows = x.reshape(-1, x.shape[-1] if x.ndim else 1) if x.size else np.empty((0, 1))
    out = b""
    for row in rows:
        if fmt is Format.BF16:
            out += b"".join(struct.pack("<H", _bf16_code(_F32(value))) for value in row)
        elif fmt in _PLAIN:
            out += b"".join(struct.pack(_PLAIN[fmt], value.item()) for value in row)
        else:
            for start in range(0, len(row), block):
                out += _encode_block([_F32(value) for value in row[start : start + block]], fmt)
    return out


def dequantize(packed: bytes, fmt: Format, shape: Sequence[int], block: int = 64) -> npt.NDArray[Any]:
    """Unpack and dequantize a packed tensor of the right size."""
    out = np.zeros(shape, np.int32 if fmt is Format.I32 else _F32)
    flat = out.reshape(-1)
    width = shape[-1] if shape else 1
    position = offset = 0
    while position < flat.size:
        if fmt.is_block:
            n = min(block, width - position % width)
            size = -(-n * fmt.bits // 8)
            end = offset + size + fmt.trailer
            flat[position : position + n] = _decode_block(packed[offset:end], fmt, n)
        else:
            n, end = 1, offset + fmt.bits // 8
            raw = packed[offset:end]
            if fmt is Format.BF16:
                flat[position] = struct.unpack("<f", b"\0\0" + raw)[0]
            else:
                flat[position] = struct.unpack(_PLAIN[fmt], raw)[0]
        position, offset = position + n, end
    return out


def pack_codes(codes: Sequence[int], bits: int) -> bytes:
    """Pack the codes of one block."""
    if bits in (2, 4, 8):
        return _stream(codes, bits)
    lane = len(codes) // 8
    out = bytearray(bits * lane)
    for j in range(lane):
        for plane, octet in enumerate(_stream(codes[j : 8 * lane : lane], bits)):
            out[plane * lane + j] = octet
    return bytes(out) + _stream(codes[8 * lane :], bits)


def unpack_codes(packed: bytes, bits: int, n: int) -> list[int]:
    """Unpack the codes of one block of ``n`` values."""
    if bits in (2, 4, 8):
        return _unstream(packed, bits, n)
    lane = n // 8
    codes = [0] * (8 * lane)
    for j in range(lane):
        codes[j::lane] = _unstream(packed[j : bits * lane : lane], bits, 8)
    return codes + _unstream(packed[bits * lane :], bits, n - 8 * lane)


def _stream(codes: Sequence[int], bits: int) -> bytes:
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


def _unstream(packed: bytes, bits: int, n: int) -> list[int]:
    number = int.from_bytes(packed, "little")
    return [number >> (i * bits) & ((1 << bits) - 1) for i in range(n)]


def _bf16_code(value: np.float32) -> int:
    bits = int(value.view(np.uint32))
    kept, dropped = bits >> 16, bits & 0xFFFF
    return kept + (dropped > 0x8000 or (dropped == 0x8000 and kept % 2 == 1))


def _f16(value: np.float32) -> np.float32:
    return _F32(struct.unpack("<e", struct.pack("<e", float(value)))[0])


def _trailer(*values: np.float32) -> bytes:
    # Adding 0.0 to the rounded value turns a negative zero into a positive one.
    return b"".join(struct.pack("<e", float(_f16(value)) + 0.0) for value in values)


def _code(value: np.float32, low: np.float32, inverse: np.float32, top: int) -> int:
    return min(max(round(float((value - low) * inverse)), 0), top)


def _encode_block(values: list[np.float32], fmt: Format) -> bytes:
    low, high = min(values), max(values)
    if not fmt.is_asym:
        absmax = max(abs(low), abs(high))
        if fmt is Format.F8:
            inverse = _F32(448) / max(absmax, _F32(2.0**-24))
            return bytes(_f8_code(value * inverse) for value in values) + _trailer(absmax)
        inverse = _F32(255) / ((absmax + absmax) + _F32(1e-8))
        grid = [_code(value, -absmax, inverse, 255) for value in values]
        return pack_codes([_nearest(fmt, point) for point in grid], 4) + _trailer(absmax)
    if fmt is Format.ASYM4:
        low = _f16(low)
        scale = _f16((high - low) / _F32(15))
        scale = scale if scale != 0 else _F32(1)
        codes = [_code(value, low, _F32(1) / scale, 15) for value in values]
        return pack_codes(codes, 4) + _trailer(scale, low)
    drop = 8 - fmt.bits
    scale = (high - low) / _F32(255)
    inverse = _F32(255) / ((high - low) + _F32(1e-8))
    codes = [_code(value, low, inverse, 255) >> drop for value in values]
    middle = low + scale * _F32((2**drop - 1) / 2)
    return pack_codes(codes, fmt.bits) + _trailer(scale * _F32(2**drop), middle)


def _nearest(fmt: Format, point: int) -> int:
    target = 0.0 if point in (127, 128) else (point - 127.5) / 127.5
    values = [float(value) for value in table_of(fmt).values]
    return min(range(16), key=lambda code: abs(values[code] - target))


def _f8_code(value: np.float32) -> int:
    # The magnitudes of the codes 0 to 126 rise; of two that are equally near, the even code wins.
    size = abs(float(value))
    codes = range(127)
    code = min(codes, key=lambda code: (abs(_f8_size(code) - size), code % 2))
    return code | (0x80 if np.signbit(value) else 0)


def _f8_size(code: int) -> float:
    exponent, fraction = code >> 3, code & 7
    return fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10)


def _decode_block(record: bytes, fmt: Format, n: int) -> list[np.float32]:
    size = len(record) - fmt.trailer
    codes = unpack_codes(record[:size], fmt.bits, n)
    trailer = [_F32(value) for (value,) in struct.iter_unpack("<e", record[size:])]
    if not fmt.is_asym:
        return [table_of(fmt).values[code] * trailer[0] for code in codes]
    return [_F32(code) * trailer[0] + trailer[1] for code in codes]
