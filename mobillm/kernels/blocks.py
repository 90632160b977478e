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
from .halves import NORMAL, halves, round_normal, store
from .layout import code_size
from .tables import F8_MAX, F16_MAX, table_of
from .workspace import Workspace

__all__ = ["SMALLEST", "decode", "encode", "extremes", "top_bits", "turn"]

_Floats = npt.NDArray[np.float32]
_Octets = npt.NDArray[np.uint8]

SMALLEST = np.float32(2.0**-24)  # the smallest positive fp16 number
_EPSILON = np.float32(1e-8)
_GROUP = 4
# Blocks that are handled side by side: a row of theirs stays in the first-level cache while it is worked on
# with their scales, and no power of two lies between rows.
_PIECE = 576
# Values that numpy copies at a time where it cannot go on in place. It would put the scales of short rows
# together in its buffer, which takes as long as the operation; those of one long row stay where they are.
_BUFFER = 512
# Added to a value below 2**22 it leaves the nearest integer, ties to even, in the lowest bits of the sum.
_ROUND = np.float32(1.5 * 2**23)
_workspace = Workspace()
# On a few thousand numbers the methods of arrays, which are written in Python, take as long again.
_least, _most = np.minimum.reduce, np.maximum.reduce


def encode(fmt: Format, values: _Floats, out: _Octets) -> bool:
    """Quantize and pack blocks of equal length.

    Args:
        fmt: a block format.
        values: fp32 [blocks, n], contiguous.
        out: uint8 [blocks, record], contiguous along the last axis; is written.

    Returns:
        False when a value is not finite or its magnitude is above 65504; ``out`` then holds anything.

    """
    before = np.setbufsize(_BUFFER)
    try:
        return _encode(fmt, values, out)
    finally:
        np.setbufsize(before)


def _encode(fmt: Format, values: _Floats, out: _Octets) -> bool:
    turned = turn(values)
    low, high = extremes(turned)
    if not (_least(low) >= -F16_MAX and _most(high) <= F16_MAX):
        return False
    if not fmt.is_asym:
        absmax = np.maximum(-low, high)
        store(out[:, code_size(fmt.bits, values.shape[1]) :], halves(absmax))
        if fmt is Format.F8:
            _turn_back(_f8_codes(turned, absmax), out[:, : values.shape[1]])
        else:
            inverse = np.float32(255) / (absmax + absmax + _EPSILON)
            _pack_table(fmt, _codes(turned, -absmax, inverse), out)
    elif fmt is Format.ASYM4:
        _encode_asym4(turned, low, high, out)
    else:
        spread = high - low
        step = spread / np.float32(255)
        codes = _codes(turned, low, np.float32(255) / (spread + _EPSILON))
        size = code_size(fmt.bits, values.shape[1])
        if fmt.bits == 8:
            _turn_back(codes, out[:, :size])
        else:
            straight = _workspace.take("codes", values.shape, np.uint8)
            _turn_back(codes, straight)
            bitpack.pack(straight, fmt.bits, out[:, :size])
        store(out[:, size:], halves(*top_bits(step, low, fmt.bits)))
    return True


def turn(values: _Floats) -> _Floats:
    """Put the values of different blocks side by side: numpy is several times faster on long vectors.

    Args:
        values: fp32 [blocks, n], contiguous.

    Returns:
        [pieces, n // g, blocks // pieces, g], where neighbours stay together in groups of *g*: 4, or 1 if 4
        does not divide *n*. Groups of 16 bytes are turned in a quarter of the time of single values. The next
        call uses the memory again.

    """
    blocks, n = values.shape
    group = _GROUP if n % _GROUP == 0 else 1
    pieces = _pieces(blocks)
    turned: _Floats = _workspace.take("turned", (pieces, n // group, blocks // pieces, group), np.float32)
    kind = f"V{4 * group}"
    source = values.view(kind).reshape(pieces, blocks // pieces, n // group)
    turned.view(kind)[..., 0] = source.transpose(0, 2, 1)
    return turned


def extremes(turned: _Floats) -> tuple[_Floats, _Floats]:
    """Return the smallest and the largest value of each block.

    Args:
        turned: fp32 [pieces, n // g, blocks // pieces, g].

    Returns:
        Two arrays [blocks]; a block that holds NaN gives NaN in at least one of them.

    """
    flat = _rows(turned)
    low, high = _workspace.take("extremes", (2, len(turned) * turned.shape[2]), np.float32)
    # Bits of numbers below zero, as unsigned, are in reverse order and above all others; those of numbers
    # above zero, as signed, are in order and above all others. Integers are compared in half of the steps,
    # as none of them is NaN; the bits of one are above infinity's in one of the two.
    _search(np.maximum, flat.view(np.uint32), low.view(np.uint32))
    _search(np.maximum, flat.view(np.int32), high.view(np.int32))
    if _most(low.view(np.int32)) >= 0 or _least(high.view(np.int32)) < 0:  # a block without one of the two
        with np.errstate(invalid="ignore"):
            _search(np.minimum, flat, low)
            _search(np.maximum, flat, high)
    return low, high


def _search(further: Any, flat: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
    """Reduce [pieces, k, blocks * g] to [pieces * blocks]."""
    group = flat.shape[0] * flat.shape[2] // len(found)
    if group == 1:
        further.reduce(flat, axis=1, out=found.reshape(len(flat), -1))
        return
    # Two buffers: halves of one would be a multiple of 4 KiB apart, where loads wait for stores.
    four = _workspace.take("four", (len(found) * group,), flat.dtype)
    two = _workspace.take("two", (len(found) * group,), flat.dtype)
    further.reduce(flat, axis=1, out=four.reshape(len(flat), -1))
    # Two of four results are not needed: steps on long vectors cost less than strides.
    further(four[:-2], four[2:], out=two[2:])
    further(two[2::_GROUP], two[3::_GROUP], out=found)


@functools.lru_cache(maxsize=64)
def _pieces(blocks: int) -> int:
    """Return into how many pieces blocks are divided: the number that makes them closest to the best size."""
    most = max(1, 2 * blocks // _PIECE)
    return min((n for n in range(1, most + 1) if blocks % n == 0), key=lambda n: abs(blocks // n - _PIECE))


def _rows(turned: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View [pieces, k, blocks, g] as [pieces, k, blocks * g]."""
    pieces, groups, blocks, group = turned.shape
    return turned.reshape(pieces, groups, blocks * group)


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


def _encode_asym4(turned: _Floats, low: _Floats, high: _Floats, out: _Octets) -> None:
    size = code_size(4, turned.shape[1] * turned.shape[3])
    base, inverse = _workspace.take("scales", (2, len(low)), np.float32)
    if not _scale_normal(low, high, base, inverse, out[:, size:]):
        _scale_any(low, high, base, inverse, out[:, size:])
    np.divide(np.float32(1), inverse, out=inverse)
    # Rounding keeps the order of the values: the codes of a block lie between those of its extremes.
    for end in (low, high):
        np.subtract(end, base, out=end)
        np.multiply(end, inverse, out=end)
    outside = not (_least(low) >= -0.5 and _most(high) < 15.5)
    codes = _codes(turned, base, inverse, 15 if outside else None)
    if turned.shape[3] == _GROUP:
        pairs = codes.view("<u2")
        word = _workspace.take("turned", pairs.shape, np.uint16)  # the values are not needed any more
        np.right_shift(pairs, 4, out=word)
        np.bitwise_or(word, pairs, out=word)
        packed = _workspace.take("straight", pairs.shape, np.uint8)
        np.copyto(packed, word, casting="unsafe")
        _turn_back(packed, out[:, :size])
    else:
        straight = _workspace.take("codes", (len(out), turned.shape[1]), np.uint8)
        _turn_back(codes, straight)
        np.multiply(straight, 16, out=straight)  # to the upper bits; numpy shifts bytes one at a time
        bitpack.pack(straight, 4, out[:, :size])


def _scale_normal(low: _Floats, high: _Floats, base: _Floats, scale: _Floats, out: _Octets) -> bool:
    """Make minima and scales of ``asym4`` where all are normal fp16 numbers and all minima are negative.

    Args:
        low: fp32 [blocks], the smallest values.
        high: fp32 [blocks], the largest.
        base: fp32 [blocks], gets what the minima in fp16 stand for.
        scale: the same of the scales.
        out: uint8 [blocks, 4], gets scale and minimum.

    Returns:
        False when some are not so; the results then hold anything.

    """
    if not _most(low) <= -NORMAL:
        return False
    trailer = out.view("<u2")
    round_normal(low, base, trailer[:, 1], negative=True)
    np.subtract(high, base, out=scale)
    np.divide(scale, np.float32(15), out=scale)
    if not _least(scale) >= NORMAL:
        return False
    round_normal(scale, scale, trailer[:, 0], negative=False)
    return True


def _scale_any(low: _Floats, high: _Floats, base: _Floats, scale: _Floats, out: _Octets) -> None:
    """Do what :func:`_scale_normal` does, in twice the time, for any extremes."""
    # Conversions to fp16 and back are half as slow on neighbours as on every other number.
    scales, minima = _workspace.take("halves", (2, len(low)), "<f2")
    minima[:] = low
    base[:] = minima
    np.subtract(high, base, out=scale)
    np.divide(scale, np.float32(15), out=scale)
    scales[:] = scale
    scale[:] = scales
    if not scale.all():
        scales[scale == 0] = 1
        scale[scale == 0] = 1
    trailer = _workspace.take("trailer", (len(low), 2), "<f2")
    trailer[:, 0], trailer[:, 1] = scales, minima
    store(out, trailer)


def _turn_back(turned: _Octets, out: _Octets) -> None:
    """Put bytes [pieces, k, blocks, g] into their blocks' order, [pieces * blocks, k * g]."""
    kind = f"<u{turned.shape[3]}"
    pieces, groups, blocks = turned.shape[:3]
    source = turned.view(kind)[..., 0].transpose(1, 0, 2)
    target = out.view(kind).reshape(pieces, blocks, groups).transpose(2, 0, 1)
    for place, group in zip(target, source, strict=True):  # faster than all in one assignment
        place[...] = group


def _codes(turned: _Floats, low: _Floats, inverse: _Floats, top: int | None = None) -> _Octets:
    """Make codes in the place of the values; they are limited to 0 to ``top`` if it is given."""
    flat, group = _rows(turned), turned.shape[3]
    for operate, of_blocks in ((np.subtract, low), (np.multiply, inverse)):
        operate(flat, _repeated(of_blocks, group).reshape(len(flat), 1, -1), out=flat)
    if top is not None:
        np.clip(turned, 0, top, out=turned)
    np.add(turned, _ROUND, out=turned)
    codes: _Octets = _workspace.take("straight", turned.shape, np.uint8)  # memory that is in the cache
    np.copyto(codes, turned.view(np.uint32), casting="unsafe")
    return codes


def _repeated(of_blocks: _Floats, group: int) -> _Floats:
    """Repeat each of [blocks] ``group`` times; the next call uses the memory again."""
    if group == 1:
        return of_blocks
    # Doubled twice, as one number of twice the size: in a third of the time of ndarray.repeat.
    two = _workspace.take("two", (len(of_blocks), 2), np.float32)
    two[:, 0] = two[:, 1] = of_blocks
    four = _workspace.take("four", (len(of_blocks), 2), np.uint64)
    four[:, 0] = four[:, 1] = two.view(np.uint64)[:, 0]
    return four.view(np.float32).reshape(-1)


def _pack_table(fmt: Format, grid: _Octets, out: _Octets) -> None:
    pieces, groups, blocks, group = grid.shape
    if group == _GROUP:
        pairs = grid.view("<u2")
        packed = _workspace.take("packed", pairs.shape, np.uint8)
        table_of(fmt).packed_pairs.take(pairs, out=packed, mode="wrap")
        _turn_back(packed, out[:, : 2 * groups])
        return
    codes = np.zeros((pieces * blocks, groups + groups % 2), np.uint8)
    straight = grid[..., 0].transpose(0, 2, 1).reshape(pieces * blocks, groups)
    codes[:, :groups] = table_of(fmt).codes.take(straight)
    out[:, : codes.shape[1] // 2] = codes[:, ::2] | codes[:, 1::2] << 4


def _f8_codes(ratio: _Floats, absmax: _Floats) -> _Octets:
    # e4m3 has 3 bits of fraction and a bias of 7, fp32 23 and 127. Below 2**-6 it counts steps of 2**-9.
    inverse: Any = np.float32(F8_MAX) / np.maximum(absmax, SMALLEST)
    flat = _rows(ratio)
    np.multiply(flat, _repeated(inverse, ratio.shape[3]).reshape(len(flat), 1, -1), out=flat)
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
