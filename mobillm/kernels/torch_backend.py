"""Quantize and dequantize torch tensors; the bytes equal those of the numpy backend.

Tensors in main memory go through :mod:`mobillm.kernels.native` where it is there, else through
:mod:`mobillm.kernels.torch_fused`; those on other devices through :mod:`mobillm.kernels.torch_blocks`.
The layout of the bytes is normative: ``docs/packed-tensors.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, QuantizationError
from ..formats import Format
from . import native, numpy_backend, torch_blocks, torch_fused
from .equalizer import SMALLEST_MEDIAN, check_equalizer, check_sample
from .equalizer import calibrate as numpy_calibrate
from .layout import Layout, Span, misfit, refusal
from .numpy_backend import Packed
from .tables import largest
from .workspace import Workspace

__all__ = ["calibrate", "dequantize", "quantize"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_STORED = {
    Format.F32: torch.float32,
    Format.F16: torch.float16,
    Format.BF16: torch.bfloat16,
    Format.I32: torch.int32,
}
_KINDS = {kind: native.KINDS[str(kind).removeprefix("torch.")] for kind in _FLOATS}
# Values that are converted or equalized at a time, in memory that is used again and again.
_CHUNK = 1 << 20
_workspace = Workspace()


def calibrate(x: torch.Tensor) -> torch.Tensor:
    """Choose the equalizer of a tap; the same numbers as :func:`mobillm.kernels.calibrate`.

    Args:
        x: float32, float16 or bfloat16 hidden states [..., width] of at least one token.

    Returns:
        float16 [width] on the device of ``x``, every factor positive.

    Raises:
        ConfigError: the type is another one, there is no value, or a channel's factor is above 65504, as
            that of a median that is not finite or above 4.29e9.

    """
    check_sample(tuple(x.shape), x.dtype)
    size = x.detach().reshape(-1, x.shape[-1]).to(torch.float32).abs()
    if size.is_cpu:  # numpy finds medians five times as fast
        return torch.from_numpy(numpy_calibrate(size.numpy()))
    median = size.median(dim=0).values.clamp_min(float(SMALLEST_MEDIAN))
    factors = median.sqrt().to(torch.float16)
    check_equalizer(factors.cpu().numpy(), len(factors))
    return factors


def quantize(
    x: torch.Tensor,
    fmt: Format,
    block: int = 64,
    *,
    equalizer: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Quantize and pack a tensor.

    Args:
        x: float32, float16 or bfloat16 values of rank 0 to 8, on any device and with any strides; int32
            for ``I32``. Gradients do not flow through.
        fmt: the packed format.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.
        equalizer: float16 factors [width] from :func:`calibrate`, by which channels are divided first;
            None divides by nothing.
        out: contiguous uint8 tensor in main memory for the result, which must not overlap ``x``; None takes
            new memory.

    Returns:
        uint8 [:func:`~mobillm.formats.packed_size`]: ``out``, or a new tensor on the device of ``x``, whose
        ``.numpy()`` costs no copy in main memory.

    Raises:
        QuantizationError: a value is NaN, infinite or too large for the format; ``out`` then holds anything.
        ConfigError: the type, the rank, the block, the equalizer or ``out`` is not one of the above.

    """
    layout = Layout.of(fmt, block, x.shape)
    accepted = (torch.int32,) if fmt is Format.I32 else _FLOATS
    if x.dtype not in accepted:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in accepted)
        seen = str(x.dtype).removeprefix("torch.")
        raise ConfigError("x.dtype", seen, f"{names} for {fmt.name.lower()}; convert it first")
    x = x.detach().resolve_neg()
    if equalizer is not None:
        check_equalizer(_factors(equalizer), layout.width, fmt)
        equalizer = torch.reciprocal(equalizer.detach().resolve_neg().to(x.device, torch.float32))
    if out is not None:
        _check_out(out, layout.size, torch.uint8, _array(x) if x.is_cpu else None)
    if layout.size == 0:
        packed = torch.empty(0, dtype=torch.uint8, device=x.device)
    elif x.is_cpu and native.can(fmt):
        packed = torch.empty(layout.size, dtype=torch.uint8) if out is None else out
        if not _encode_native(x, fmt, block, layout, equalizer, packed):
            raise _refusal(x, fmt, equalizer)
        return packed
    elif fmt.is_block:
        packed = _encode_blocks(x, fmt, layout, equalizer)
    else:
        packed = _encode_plain(x, fmt)
    return packed if out is None else out.copy_(packed)


def dequantize(
    packed: torch.Tensor | Packed,
    fmt: Format,
    shape: Sequence[int],
    block: int = 64,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    equalizer: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unpack and dequantize a packed tensor.

    Args:
        packed: a contiguous uint8 tensor on any device, a contiguous uint8 array, or bytes, of exactly
            the size that the shape asks for.
        fmt: the packed format.
        shape: axes of the tensor; an empty shape is a single value.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.
        dtype: type of the result; None means float32, or int32 for ``I32``.
        device: where to unpack and return the result; the packed bytes travel there, not the values.
            None means where ``packed`` is.
        equalizer: the factors that the tensor was quantized with, on any device, or None.
        out: contiguous tensor in main memory for the result, float32 (``I32``: int32), with as many items;
            None takes new memory. It must not overlap ``packed``. Without ``dtype`` and ``device``.

    Returns:
        ``out`` or a new tensor, as ``shape``. The content is not checked: damaged bytes may give values that
        are not finite.

    Raises:
        ConfigError: the size does not fit the shape, the rank or the block is out of range, the equalizer
            or ``out`` does not fit, or ``packed`` is a tensor of another type than uint8.

    """
    layout = Layout.of(fmt, block, shape)
    if isinstance(packed, torch.Tensor):
        if packed.dtype is not torch.uint8:
            raise ConfigError("packed.dtype", str(packed.dtype).removeprefix("torch."), "uint8")
        packed = packed.detach().resolve_neg()
        device = packed.device if device is None else device
    if out is not None:
        kind = torch.int32 if fmt is Format.I32 else torch.float32
        _check_out(out, layout.rows * layout.width, kind, _octets_here(packed))
    if native.can(fmt) and (out is not None or device is None or torch.device(device).type == "cpu"):
        array = numpy_backend.dequantize(
            packed.cpu().contiguous().numpy() if isinstance(packed, torch.Tensor) else packed,
            fmt,
            shape,
            block,
            equalizer=None if equalizer is None else _factors(equalizer),
            out=None if out is None else out.numpy(),
        )
        values = torch.from_numpy(array)
    else:
        values = _dequantize_torch(packed, fmt, shape, block, device, equalizer)
        if out is not None:
            values = out.reshape(tuple(shape)).copy_(values)
    return values if dtype is None else values.to(dtype)


def _dequantize_torch(
    packed: torch.Tensor | Packed,
    fmt: Format,
    shape: Sequence[int],
    block: int,
    device: torch.device | str | None,
    equalizer: torch.Tensor | None,
) -> torch.Tensor:
    layout = Layout.of(fmt, block, shape)
    octets = packed if isinstance(packed, torch.Tensor) else _as_tensor(packed)
    layout.check_packed(octets.numel(), fmt, block, shape)
    if equalizer is not None:
        check_equalizer(_factors(equalizer), layout.width, fmt)
    octets = octets.reshape(-1).to(octets.device if device is None else device)
    if layout.size == 0:
        kind = torch.int32 if fmt is Format.I32 else torch.float32
        return torch.empty(tuple(shape), dtype=kind, device=octets.device)
    if not fmt.is_block:
        return _decode_plain(octets, fmt).reshape(tuple(shape))
    values = _decode_blocks(octets, fmt, layout)
    if equalizer is not None:
        values.mul_(equalizer.detach().resolve_neg().to(values.device, torch.float32))
    return values.reshape(tuple(shape))


def _check_out(out: torch.Tensor, items: int, kind: torch.dtype, source: npt.NDArray[Any] | None) -> None:
    plain = out.is_cpu and out.is_contiguous() and not out.requires_grad and not out.is_neg()
    if out.dtype is not kind or out.numel() != items or not plain:
        seen, expected = (str(dtype).removeprefix("torch.") for dtype in (out.dtype, kind))
        raise misfit(out.numel(), seen, items, expected)
    if source is not None:
        numpy_backend.check_apart(out.numpy(), source)


def _factors(equalizer: torch.Tensor) -> npt.NDArray[Any]:
    if equalizer.dtype is torch.bfloat16:  # which numpy does not have
        seen = f"bfloat16 {list(equalizer.shape)}"
        raise ConfigError("equalizer", seen, "float16 [width], one factor per channel")
    factors: npt.NDArray[Any] = equalizer.detach().resolve_neg().cpu().numpy()
    return factors


def _array(x: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's memory as an array; bfloat16, which numpy does not have, as integers."""
    array: npt.NDArray[Any] = (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
    return array


def _octets_here(packed: torch.Tensor | Packed) -> npt.NDArray[np.uint8] | None:
    """Return packed bytes as an array; None when they are not in main memory."""
    if not isinstance(packed, torch.Tensor):
        return numpy_backend.octets_of(packed)
    return packed.numpy() if packed.is_cpu else None


def _as_tensor(packed: Packed) -> torch.Tensor:
    octets = numpy_backend.octets_of(packed)
    # torch has no read-only tensors and warns about an array that must not be written to.
    return torch.from_numpy(octets if octets.flags.writeable else octets.copy())


def _encode_native(
    x: torch.Tensor, fmt: Format, block: int, layout: Layout, inverse: torch.Tensor | None, out: torch.Tensor
) -> bool:
    array = _array(x.contiguous())
    factors = None if inverse is None else inverse.numpy()
    return native.encode(array, _KINDS[x.dtype], fmt, block, layout.width, factors, out.numpy())


def _encode_blocks(
    x: torch.Tensor, fmt: Format, layout: Layout, inverse: torch.Tensor | None
) -> torch.Tensor:
    values = x.reshape(layout.rows, layout.width)
    packed = (_encode_here if x.is_cpu else _encode_there)(values, fmt, layout, inverse)
    if packed is None:
        raise _refusal(x, fmt, inverse)
    return packed.reshape(-1)


def _encode_here(
    values: torch.Tensor, fmt: Format, layout: Layout, inverse: torch.Tensor | None
) -> torch.Tensor | None:
    single = len(layout.spans) == 1
    if single and inverse is None and values.dtype is torch.float32 and values.is_contiguous():
        packed = torch_fused.encode(fmt, values.reshape(-1, layout.spans[0].values), None)
        return None if packed is None else torch.from_numpy(packed)
    out = np.empty((layout.rows, layout.row_size), np.uint8)
    for rows, span, part in _parts(values, layout, inverse):
        target = out[rows, span.octets]
        if single:
            if torch_fused.encode(fmt, part, target.reshape(-1, span.record)) is None:
                return None
        else:
            records = torch_fused.encode(fmt, part, None)
            if records is None:
                return None
            target[...] = records.reshape(target.shape)
    return torch.from_numpy(out)


def _parts(
    values: torch.Tensor, layout: Layout, inverse: torch.Tensor | None
) -> Iterator[tuple[slice, Span, torch.Tensor]]:
    """Yield the values of all blocks as fp32 [blocks, n], a few rows at a time, in memory that is reused."""
    step = max(1, _CHUNK // layout.width)
    for start in range(0, layout.rows, step):
        rows = slice(start, min(start + step, layout.rows))
        for span in layout.spans:
            part = values[rows, span.columns]
            copy = torch.from_numpy(_workspace.take("part", tuple(part.shape), np.float32))
            if inverse is None:
                copy.copy_(part)
            elif part.dtype is torch.float32:
                torch.mul(part, inverse[span.columns], out=copy)
            else:
                copy.copy_(part).mul_(inverse[span.columns])
            yield rows, span, copy.reshape(-1, span.values)


def _encode_there(
    values: torch.Tensor, fmt: Format, layout: Layout, inverse: torch.Tensor | None
) -> torch.Tensor | None:
    values = values.to(torch.float32)
    if inverse is not None:
        values = values * inverse
    if not _fits(values, fmt):
        return None
    parts = []
    for span in layout.spans:
        part = values[:, span.columns].reshape(-1, span.values).contiguous()
        parts.append(torch_blocks.encode(fmt, part).reshape(layout.rows, -1))
    return _join(parts)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _fits(x: torch.Tensor, fmt: Format) -> bool:
    limit = largest(fmt)
    low, high = torch.aminmax(x)  # both are NaN if any value is
    return float(low) >= -limit and float(high) <= limit


def _refusal(x: torch.Tensor, fmt: Format, inverse: torch.Tensor | None) -> QuantizationError:
    limit = largest(fmt)
    values = x.to(torch.float32)
    fits = (values if inverse is None else values * inverse).abs() <= limit
    position = tuple(int(i) for i in (~fits).nonzero()[0])
    return refusal(fmt, limit, position, float(x[position]), equalized=inverse is not None)


def _decode_blocks(octets: torch.Tensor, fmt: Format, layout: Layout) -> torch.Tensor:
    """Return fp32 [rows, width]."""
    records = octets.reshape(layout.rows, layout.row_size)

    def one(span: Span) -> torch.Tensor:
        part = records[:, span.octets].reshape(-1, span.record)
        if part.device.type == "cpu":
            values = torch_fused.decode(fmt, part.numpy(), span.values)
        else:
            values = torch_blocks.decode(fmt, part.contiguous(), span.values)
        return values.reshape(layout.rows, -1)

    return _join([one(span) for span in layout.spans])


def _encode_plain(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    if fmt is not Format.I32 and not _fits(x, fmt):
        raise _refusal(x, fmt, None)
    return x.reshape(-1).to(_STORED[fmt], copy=True).view(torch.uint8)


def _decode_plain(octets: torch.Tensor, fmt: Format) -> torch.Tensor:
    # The copy is aligned, which a part of a received buffer need not be.
    stored = octets.clone().view(_STORED[fmt])
    return stored if fmt is Format.I32 else stored.to(torch.float32)
