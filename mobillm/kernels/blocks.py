"""Block quantization of numpy arrays: blocks of values to records and back.

All arithmetic is in fp32 with one rounding per operation, and roundings go to even, so that every
backend that follows the same steps gives the same bytes. ``asym4`` follows FBGEMM's fused 4-bit
row-wise quantization and the other widths its 8-bit one (github.com/pytorch/FBGEMM, ``QuantUtils``),
with a block in the place of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format
from . import bitpack
from .layout import code_size
from .tables import NF4_MIDPOINTS, NF4_VALUES

__all__ = ["decode", "encode", "extremes", "top_bits_record", "trailer_of"]

_Floats = npt.NDArray[np.float32]
_Octets = npt.NDArray[np.uint8]

_EPSILON = np.float32(1e-8)


def extremes(values: _Floats) -> tuple[_Floats, _Floats]:
    """Return the smallest and the largest value of each block.

    Args:
        values: fp32 [blocks, n].

    Returns:
        Two arrays [blocks]; a block that holds NaN gives NaN in both.

    """
    # numpy reduces long contiguous vectors several times faster than short rows.
    columns = np.ascontiguousarray(values.T)  # [n, blocks]
    with np.errstate(invalid="ignore"):
        return columns.min(axis=0), columns.max(axis=0)


def encode(fmt: Format, values: _Floats, low: _Floats, high: _Floats) -> _Octets:
    """Quantize and pack blocks of equal length.

    Args:
        fmt: a block format.
        values: fp32 [blocks, n], all finite and none above the format's limit.
        low: smallest value of each block, [blocks].
        high: largest value of each block, [blocks].

    Returns:
        uint8 [blocks, record].

    """
    if fmt is Format.NF4:
        return _encode_nf4(values, low, high)
    if fmt is Format.ASYM4:
        return _encode_asym4(values, low, high)
    spread = high - low
    scale = spread / np.float32(255)
    inverse = np.float32(255) / (spread + _EPSILON)
    return top_bits_record(_codes(values, low, inverse, 255), scale, low, fmt.bits)


def decode(fmt: Format, records: _Octets, n: int) -> _Floats:
    """Unpack and dequantize records of blocks of ``n`` values.

    Args:
        fmt: a block format.
        records: uint8 [blocks, record], contiguous along the last axis.
        n: values of one block.

    Returns:
        fp32 [blocks, n]. Not finite where a trailer is not.

    """
    size = code_size(fmt.bits, n)
    codes = bitpack.unpack(records[:, :size], fmt.bits, n)
    trailer = trailer_of(records, size)
    with np.errstate(invalid="ignore"):
        if fmt is Format.NF4:
            return NF4_VALUES.take(codes) * trailer
        values = codes.astype(np.float32)
        # A code times an fp16 scale has at most 19 significant bits: the product is exact, so a fused
        # multiply-add elsewhere gives the same sum.
        values *= trailer[:, :1]
        values += trailer[:, 1:]
    return values


def top_bits_record(codes: _Octets, scale: _Floats, low: _Floats, bits: int) -> _Octets:
    """Keep the top bits of 8-bit codes and pack them.

    A shortened code stands for the middle of the 8-bit codes that share it, which the stored scale and
    minimum express.

    Args:
        codes: 8-bit codes [blocks, n].
        scale: step of the 8-bit codes, [blocks].
        low: value of code 0, [blocks].
        bits: 2, 3, 5, 6 or 8.

    Returns:
        uint8 [blocks, record].

    """
    if bits == 8:
        return _record(codes, scale, low)
    merged = np.float32(1 << (8 - bits))
    middle = low + scale * (merged / 2 - np.float32(0.5))
    return _record(bitpack.pack(codes >> np.uint8(8 - bits), bits), scale * merged, middle)


def trailer_of(records: _Octets, size: int) -> _Floats:
    """Read the fp16 numbers that follow ``size`` bytes of codes, as fp32 [blocks, 1 or 2]."""
    halves = np.ascontiguousarray(records[:, size:]).view("<f2")
    return halves.astype(np.float32)


def _encode_asym4(values: _Floats, low: _Floats, high: _Floats) -> _Octets:
    low = _through_f16(low)
    scale = _nonzero(_through_f16((high - low) / np.float32(15)))
    codes = _codes(values, low, np.float32(1) / scale, 15)
    return _record(bitpack.pack(codes, 4), scale, low)


def _encode_nf4(values: _Floats, low: _Floats, high: _Floats) -> _Octets:
    absmax = _nonzero(_through_f16(np.maximum(-low, high)))
    ratio = values * (np.float32(1) / absmax)[:, None]
    codes = np.zeros(values.shape, np.uint8)
    above = np.empty(values.shape, np.bool_)
    for midpoint in NF4_MIDPOINTS:
        np.greater(ratio, midpoint, out=above)
        codes += above.view(np.uint8)
    return _record(bitpack.pack(codes, 4), absmax)


def _codes(values: _Floats, low: _Floats, inverse: _Floats, top: int) -> _Octets:
    scaled = values - low[:, None]
    scaled *= inverse[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, top, out=scaled)
    return scaled.astype(np.uint8)


def _through_f16(values: _Floats) -> _Floats:
    return values.astype(np.float16).astype(np.float32)


def _nonzero(scale: _Floats) -> _Floats:
    return np.where(scale == 0, np.float32(1), scale)


def _record(codes: _Octets, *trailer: _Floats) -> _Octets:
    halves: npt.NDArray[Any] = np.stack(trailer, axis=1).astype("<f2").view("<u2")
    halves[halves == 0x8000] = 0  # which zero a minimum is depends on the order of the search
    return np.concatenate([codes, halves.view(np.uint8)], axis=1)
