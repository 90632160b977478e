"""Block quantization of numpy arrays: blocks of values to records and back.

All arithmetic is in fp32 with one rounding per operation, and roundings go to even, so that every
backend that follows the same steps gives the same bytes. ``asym4`` follows FBGEMM's fused 4-bit
row-wise quantization and the other widths its 8-bit one (github.com/pytorch/FBGEMM, ``QuantUtils``),
with a block in the place of a row.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format
from . import bitpack
from .layout import code_size
from .tables import F8_MAX, table_of
from .workspace import Workspace

__all__ = ["SMALLEST", "decode", "encode", "extremes", "top_bits"]

_Floats = npt.NDArray[np.float32]
_Octets = npt.NDArray[np.uint8]

SMALLEST = np.float32(2.0**-24)  # the smallest positive fp16 number
_EPSILON = np.float32(1e-8)
_GROUP = 4
_workspace = Workspace()


def extremes(values: _Floats) -> tuple[_Floats, _Floats]:
    """Return the smallest and the largest value of each block.

    Args:
        values: fp32 [blocks, n], contiguous.

    Returns:
        Two arrays [blocks]; a block that holds NaN gives NaN in both.

    """
    # numpy reduces long contiguous vectors many times faster than short rows. Values are turned round in
    # groups of 16 bytes, which costs a quarter of turning single values.
    blocks, n = values.shape
    group = _GROUP if n % _GROUP == 0 else 1
    kind = f"V{4 * group}"
    turned = _workspace.take("turned", (n // group, blocks * group), np.float32)
    turned.view(kind)[...] = values.view(kind).T
    with np.errstate(invalid="ignore"):
        low, high = (reduce(turned, axis=0) for reduce in (np.minimum.reduce, np.maximum.reduce))
        if group == 1:
            return low, high
        lows, highs = low.reshape(blocks, group).T, high.reshape(blocks, group).T
        return functools.reduce(np.minimum, lows), functools.reduce(np.maximum, highs)


def encode(fmt: Format, values: _Floats, low: _Floats, high: _Floats, out: _Octets) -> None:
    """Quantize and pack blocks of equal length.

    Args:
        fmt: a block format.
        values: fp32 [blocks, n], contiguous, all finite and none above the format's limit.
        low: smallest value of each block, [blocks].
        high: largest value of each block, [blocks].
        out: uint8 [blocks, record], contiguous along the last axis; is written.

    """
    size = code_size(fmt.bits, values.shape[1])
    if not fmt.is_asym:
        absmax = np.maximum(-low, high)
        if fmt is Format.F8:
            out[:, :size] = _f8_codes(values, absmax)
        else:
            inverse = np.float32(255) / (absmax + absmax + _EPSILON)
            out[:, :size] = _table_codes(fmt, _codes(values, -absmax, inverse, 255))
        _store(out, size, absmax)
    elif fmt is Format.ASYM4:
        low16 = low.astype(np.float16)
        low = low16.astype(np.float32)
        scale16 = ((high - low) / np.float32(15)).astype(np.float16)
        scale16[scale16 == 0] = 1
        scale = scale16.astype(np.float32)
        codes = _codes(values, low, np.float32(1) / scale, 15)
        np.multiply(codes, 16, out=codes)  # to the upper bits; numpy shifts bytes one at a time
        bitpack.pack(codes, 4, out[:, :size])
        _store(out, size, scale16, low16)
    else:
        spread = high - low
        step = spread / np.float32(255)
        codes = _codes(values, low, np.float32(255) / (spread + _EPSILON), 255)
        bitpack.pack(codes, fmt.bits, out[:, :size])
        _store(out, size, *top_bits(step, low, fmt.bits))


def decode(fmt: Format, records: _Octets, n: int, out: _Floats) -> None:
    """Unpack and dequantize records of blocks of ``n`` values.

    Args:
        fmt: a block format.
        records: uint8 [blocks, record], contiguous along the last axis.
        n: values of one block.
        out: fp32 [blocks, n], contiguous; is written. Not finite where a trailer is not.

    """
    size = code_size(fmt.bits, n)
    trailer = np.ascontiguousarray(records[:, size:]).view("<f2").astype(np.float32)
    codes = _workspace.take("codes", (len(records), n), np.uint8)
    with np.errstate(invalid="ignore"):
        if fmt.is_asym:
            bitpack.unpack(records[:, :size], fmt.bits, codes)
            np.copyto(out, codes)
            # A code times an fp16 scale has at most 19 significant bits: the product is exact, so a fused
            # multiply-add elsewhere gives the same sum.
            out *= trailer[:, :1]
            out += trailer[:, 1:]
            return
        if fmt.bits == 4 and n % 2 == 0:
            packed = np.ascontiguousarray(records[:, :size])
            table_of(fmt).value_pairs.take(packed, out=out.view(np.int64), mode="clip")
        else:
            bitpack.unpack(records[:, :size], fmt.bits, codes)
            table_of(fmt).values.take(codes, out=out, mode="clip")
        out *= trailer


def top_bits(step: Any, low: Any, bits: int) -> tuple[Any, Any]:
    """Return scale and minimum of codes that are the highest ``bits`` bits of 8-bit codes.

    A shortened code stands for the middle of the 8-bit codes that share it.

    Args:
        step: step of the 8-bit codes; fp32, an array or a tensor.
        low: value of code 0, of the same kind.
        bits: 2 to 8.

    """
    merged = float(1 << (8 - bits))
    return step * merged, low + step * ((merged - 1) / 2)


def _codes(values: _Floats, low: _Floats, inverse: _Floats, top: int) -> _Octets:
    scaled = _workspace.take("scaled", values.shape, np.float32)
    np.subtract(values, low[:, None], out=scaled)
    np.multiply(scaled, inverse[:, None], out=scaled)
    np.rint(scaled, out=scaled)
    if top < 255:  # the 8-bit steps are made to fit, with no fp16 number in between
        np.clip(scaled, 0, top, out=scaled)
    codes = _workspace.take("codes", values.shape, np.uint8)
    np.copyto(codes, scaled, casting="unsafe")
    return codes


def _table_codes(fmt: Format, grid: _Octets) -> _Octets:
    if grid.shape[1] % 2:
        codes = np.zeros((len(grid), grid.shape[1] + 1), np.uint8)
        codes[:, :-1] = table_of(fmt).codes.take(grid)
        odd: _Octets = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
        return odd
    pairs = grid.view("<u2")
    packed = _workspace.take("packed", pairs.shape, np.uint8)
    table_of(fmt).packed_pairs.take(pairs, out=packed, mode="wrap")
    return packed


def _f8_codes(values: _Floats, absmax: _Floats) -> _Octets:
    # e4m3 has 3 bits of fraction and a bias of 7, fp32 23 and 127. Below 2**-6 it counts steps of 2**-9.
    ratio = _workspace.take("scaled", values.shape, np.float32)
    np.multiply(values, (np.float32(F8_MAX) / np.maximum(absmax, SMALLEST))[:, None], out=ratio)
    bits = ratio.view(np.uint32)
    sign: _Octets = (bits >> 24).astype(np.uint8)
    sign &= 0x80
    bits &= 0x7FFFFFFF
    # Half of the lowest kept bit, less one when that bit is 0: carries exactly when rounding goes up.
    normal = (bits + (0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3)
    steps = np.rint(ratio * np.float32(512))
    codes: _Octets = np.where(ratio < 2.0**-6, steps, normal).astype(np.uint8)
    codes |= sign
    return codes


def _store(out: _Octets, size: int, *trailer: npt.NDArray[Any]) -> None:
    halves = np.empty((len(out), len(trailer)), "<f2")
    for column, numbers in enumerate(trailer):
        halves[:, column] = numbers
    bits = halves.view("<i2")
    if bits.min() == -0x8000:  # which zero a minimum is depends on the order of the search
        bits[bits == -0x8000] = 0
    bitpack.copy_octets(halves.view(np.uint8), out[:, size:])
