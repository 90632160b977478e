"""Quantize and dequantize numpy arrays, in C where :mod:`mobillm.kernels.native` is there, else in numpy.

The layout of the bytes is normative: ``docs/packed-tensors.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, QuantizationError
from ..formats import Format
from . import blocks, native
from .equalizer import check_equalizer, reciprocal
from .layout import Layout, misfit, refusal
from .tables import largest
from .workspace import Workspace, aligned

__all__ = ["Equalizer", "Packed", "check_apart", "dequantize", "octets_of", "quantize"]

Packed = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
Equalizer = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]

# Values handled at a time: few enough that temporaries stay in the caches, and with a power of two
# the groups of a block would compete for the same lines of the first-level cache.
_CHUNK = 27 << 14
_OCTET, _INTEGER, _FLOAT = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.float32)
_KINDS = {np.dtype(name): native.KINDS[name] for name in ("float32", "float16")}
_workspace = Workspace()


def quantize(
    x: npt.NDArray[Any],
    fmt: Format,
    block: int = 64,
    *,
    equalizer: Equalizer | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Quantize and pack an array.

    Args:
        x: float32 or float16 values of rank 0 to 8, in any memory order; int32 for ``I32``.
        fmt: the packed format.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.
        equalizer: float16 factors [width] from :func:`~mobillm.kernels.calibrate`, by which channels are
            divided first; None divides by nothing.
        out: contiguous uint8 array for the result, which must not overlap ``x``; None takes new memory.

    Returns:
        uint8 [:func:`~mobillm.formats.packed_size`]: ``out``, or a new array.

    Raises:
        QuantizationError: a value is NaN, infinite or too large for the format; ``out`` then holds anything.
        ConfigError: the type, the rank, the block, the equalizer or ``out`` is not one of the above.

    """
    layout = Layout.of(fmt, block, x.shape)
    accepted = (_INTEGER,) if fmt is Format.I32 else tuple(_KINDS)
    if x.dtype not in accepted:
        names = " or ".join(kind.name for kind in accepted)
        raise ConfigError(
            "x.dtype", str(x.dtype), f"{names} for {fmt.name.lower()}; convert the values first"
        )
    if equalizer is not None:
        check_equalizer(equalizer, layout.width, fmt)
    packed = _memory(out, (layout.size,), _OCTET, x)
    inverse = None if equalizer is None else reciprocal(equalizer)
    if layout.size == 0:
        pass
    elif native.can(fmt):
        values = np.ascontiguousarray(x)
        if not native.encode(values, _KINDS[x.dtype], fmt, block, layout.width, inverse, packed):
            raise _refusal(x, fmt, largest(fmt), inverse)
    elif fmt.is_block:
        _quantize_blocks(x, fmt, layout, inverse, packed.reshape(layout.rows, layout.row_size))
    else:
        packed[...] = _quantize_plain(x, fmt)
    return packed


def dequantize(
    packed: Packed,
    fmt: Format,
    shape: Sequence[int],
    block: int = 64,
    *,
    equalizer: Equalizer | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Unpack and dequantize a packed tensor.

    Args:
        packed: bytes, or a contiguous uint8 array, of exactly the size that the shape asks for.
        fmt: the packed format.
        shape: axes of the tensor; an empty shape is a single value.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.
        equalizer: the factors that the tensor was quantized with, or None.
        out: contiguous array for the result, with as many items, which must not overlap ``packed``; None
            takes new memory.

    Returns:
        ``out`` or a new array, as ``shape``; int32 for ``I32``, else float32. The content is not checked:
        damaged bytes may give values that are not finite.

    Raises:
        ConfigError: ``packed`` holds something else than bytes, the size does not fit the shape, the rank or
            the block is out of range, or the equalizer or ``out`` does not fit.

    """
    layout = Layout.of(fmt, block, shape)
    if equalizer is not None:
        check_equalizer(equalizer, layout.width, fmt)
    octets = octets_of(packed)
    layout.check_packed(octets.size, fmt, block, shape)
    factors = None if equalizer is None else equalizer.astype(np.float32)
    values = _memory(out, tuple(shape), _INTEGER if fmt is Format.I32 else _FLOAT, octets)
    if layout.size == 0:
        pass
    elif native.can(fmt):
        native.decode(octets, fmt, block, layout.width, factors, values)
    elif fmt.is_block:
        table = values.reshape(layout.rows, layout.width)
        records = octets.reshape(layout.rows, layout.row_size)
        for rows in _row_chunks(layout):
            _decode_rows(fmt, layout, records[rows], table[rows])
            if factors is not None:
                table[rows] *= factors
    else:
        values[...] = _dequantize_plain(octets, fmt).reshape(shape)
    return values


def octets_of(packed: Packed) -> npt.NDArray[np.uint8]:
    """View packed bytes as a flat array.

    Raises:
        ConfigError: ``packed`` is no buffer, has gaps, or holds items of another type.

    """
    buffer: Any = packed  # numpy's types do not say that an array is a buffer
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError):  # no buffer, or one that Python cannot describe
        raise ConfigError("packed", type(packed).__name__, "bytes or a contiguous uint8 array") from None
    if view.format != "B" or not view.c_contiguous:
        gaps = "" if view.c_contiguous else ", not contiguous"
        seen = f"{type(packed).__name__} of items {view.format!r}{gaps}"
        raise ConfigError("packed", seen, "bytes or a contiguous uint8 array")
    return np.frombuffer(packed, np.uint8)


def check_apart(out: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    """Refuse memory for a result whose addresses reach into those of the input.

    Raises:
        ConfigError: they do.

    """
    if np.may_share_memory(out, source):
        raise ConfigError("out", "memory of the input", "memory that does not overlap the input's")


def _memory(
    out: npt.NDArray[Any] | None, shape: tuple[int, ...], kind: np.dtype[Any], source: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    if out is None:
        return aligned(math.prod(shape) * kind.itemsize).view(kind).reshape(shape)
    if (
        out.dtype != kind
        or out.size != math.prod(shape)
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise misfit(out.size, str(out.dtype), math.prod(shape), kind.name)
    check_apart(out, source)
    return out.reshape(shape)


def _decode_rows(fmt: Format, layout: Layout, records: npt.NDArray[np.uint8], out: Floats) -> None:
    for span in layout.spans:
        part = records[:, span.octets].reshape(-1, span.record)
        if len(layout.spans) == 1:
            blocks.decode(fmt, part, span.values, out.reshape(-1, span.values))
            continue
        target = out[:, span.columns]
        values = _workspace.take("values", (len(part), span.values), np.float32)
        blocks.decode(fmt, part, span.values, values)
        target[...] = values.reshape(target.shape)


def _row_chunks(layout: Layout) -> list[slice]:
    if layout.size == 0:
        return []
    step = max(1, _CHUNK // layout.width)
    return [slice(start, min(start + step, layout.rows)) for start in range(0, layout.rows, step)]


def _quantize_blocks(
    x: npt.NDArray[Any], fmt: Format, layout: Layout, inverse: Floats | None, out: npt.NDArray[np.uint8]
) -> None:
    values = x.reshape(layout.rows, layout.width)
    for rows in _row_chunks(layout):
        for span in layout.spans:
            part = _part(values[rows, span.columns], None if inverse is None else inverse[span.columns])
            part = part.reshape(-1, span.values)
            target = out[rows, span.octets]
            records = target.reshape(-1, span.record)  # a copy where the short blocks lie between
            if not blocks.encode(fmt, part, records):
                raise _refusal(x, fmt, largest(fmt), inverse)
            if len(layout.spans) > 1:
                target[...] = records.reshape(target.shape)


def _part(values: npt.NDArray[Any], inverse: Floats | None) -> Floats:
    if inverse is None and values.dtype == np.float32 and values.flags.c_contiguous:
        return values
    part: Floats = _workspace.take("part", values.shape, np.float32)
    if inverse is None:
        np.copyto(part, values)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values, inverse, out=part)
    return part


def _quantize_plain(x: npt.NDArray[Any], fmt: Format) -> npt.NDArray[np.uint8]:
    if fmt is Format.I32:
        return np.array(x, "<i4", order="C").reshape(-1).view(np.uint8)
    limit = largest(fmt)
    with np.errstate(invalid="ignore"):
        low, high = float(x.min()), float(x.max())  # both are NaN if any value is
    if not (low >= -limit and high <= limit):
        raise _refusal(x, fmt, limit, None)
    if fmt is Format.F16:
        return np.array(x, "<f2", order="C").reshape(-1).view(np.uint8)
    single = np.array(x, "<f4", order="C").reshape(-1)
    if fmt is Format.F32:
        return single.view(np.uint8)
    bits = single.view("<u4")
    # Half of the lowest kept bit, less one when that bit is 0: carries exactly when rounding goes up.
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16).astype("<u2").view(np.uint8)


def _dequantize_plain(octets: npt.NDArray[np.uint8], fmt: Format) -> npt.NDArray[Any]:
    if fmt is Format.I32:
        return octets.view("<i4").astype(np.int32)
    if fmt is Format.F32:
        return octets.view("<f4").astype(np.float32)
    if fmt is Format.F16:
        return octets.view("<f2").astype(np.float32)
    return (octets.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _refusal(x: npt.NDArray[Any], fmt: Format, limit: float, inverse: Floats | None) -> QuantizationError:
    values = np.asarray(x, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.abs(values if inverse is None else values * inverse) <= limit
    position = tuple(int(i) for i in np.unravel_index(int(np.argmin(fits)), values.shape))
    return refusal(fmt, limit, position, float(values[position]), equalized=inverse is not None)
