"""Quantize and dequantize torch tensors; the bytes equal those of the numpy backend.

Tensors in main memory go through FBGEMM's fused row-wise operators, which are part of torch, with a
block in the place of a row, and through the numpy code where there is no such operator. Tensors on
other devices go through :mod:`mobillm.kernels.torch_blocks`. The layout of the bytes is normative:
``docs/packed-tensors.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, QuantizationError
from ..formats import Format
from . import bitpack, blocks, numpy_backend, torch_blocks
from .layout import Layout, Span, code_size, refusal
from .numpy_backend import Packed
from .tables import largest

__all__ = ["dequantize", "quantize"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_STORED = {
    Format.F32: torch.float32,
    Format.F16: torch.float16,
    Format.BF16: torch.bfloat16,
    Format.I32: torch.int32,
}
# Blocks handled at a time where FBGEMM's codes are packed again: they stay in a core's own cache.
_CHUNK = 1 << 11


def quantize(x: torch.Tensor, fmt: Format, block: int = 64) -> torch.Tensor:
    """Quantize and pack a tensor.

    Args:
        x: float32, float16 or bfloat16 values of rank 0 to 8, on any device and with any strides; int32
            for ``I32``. Gradients do not flow through.
        fmt: the packed format.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.

    Returns:
        A new uint8 tensor [:func:`~mobillm.formats.packed_size`] on the device of ``x``; in main memory
        its ``.numpy()`` costs no copy.

    Raises:
        QuantizationError: a value is NaN, infinite or too large for the format.
        ConfigError: the type, the rank or the block is not one of the above.

    """
    layout = Layout.of(fmt, block, x.shape)
    accepted = (torch.int32,) if fmt is Format.I32 else _FLOATS
    if x.dtype not in accepted:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in accepted)
        seen = str(x.dtype).removeprefix("torch.")
        raise ConfigError("x.dtype", seen, f"{names} for {fmt.name.lower()}; convert it first")
    x = x.detach()
    if fmt.is_block and x.dtype is torch.bfloat16:
        x = x.to(torch.float32)
    on_cpu = x.device.type == "cpu"
    if on_cpu and fmt is Format.NF4:
        return torch.from_numpy(numpy_backend.quantize(x.numpy(), fmt, block))
    if layout.size == 0:
        return torch.empty(0, dtype=torch.uint8, device=x.device)
    if fmt is not Format.I32:
        _check_values(x, fmt)
    if not fmt.is_block:
        return _encode_plain(x, fmt)
    values = x.reshape(layout.rows, layout.width)
    parts = []
    for span in layout.spans:
        part = values[:, span.columns].reshape(-1, span.values).contiguous()
        records = _encode_fused(fmt, part) if on_cpu else torch_blocks.encode(fmt, part.to(torch.float32))
        parts.append(records.reshape(layout.rows, -1))
    return _join(parts).reshape(-1)


def dequantize(
    packed: torch.Tensor | Packed,
    fmt: Format,
    shape: Sequence[int],
    block: int = 64,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Unpack and dequantize a packed tensor.

    Args:
        packed: a contiguous uint8 tensor on any device, a contiguous uint8 array, or bytes, of exactly
            the size that the shape asks for. Bytes that cannot be written to are copied first.
        fmt: the packed format.
        shape: axes of the tensor; an empty shape is a single value.
        block: consecutive values of the last axis that share a scale: 32, 64 or 128.
        dtype: type of the result; None means float32, or int32 for ``I32``.
        device: where to unpack and return the result; the packed bytes travel there, not the values.
            None means where ``packed`` is.

    Returns:
        A new tensor of ``shape``. The content is not checked: damaged bytes may give values that are not
        finite.

    Raises:
        ConfigError: the size does not fit the shape, the rank or the block is out of range, or ``packed``
            is a tensor of another type than uint8.

    """
    layout = Layout.of(fmt, block, shape)
    octets = packed if isinstance(packed, torch.Tensor) else _as_tensor(packed)
    if octets.dtype is not torch.uint8:
        raise ConfigError("packed.dtype", str(octets.dtype).removeprefix("torch."), "uint8")
    layout.check_packed(octets.numel(), fmt, block, shape)
    octets = octets.reshape(-1).to(octets.device if device is None else device)
    if octets.device.type == "cpu" and fmt is Format.NF4:
        out = torch.from_numpy(numpy_backend.dequantize(octets.numpy(), fmt, shape, block))
    elif layout.size == 0:
        kind = torch.int32 if fmt is Format.I32 else torch.float32
        out = torch.empty(tuple(shape), dtype=kind, device=octets.device)
    elif not fmt.is_block:
        out = _decode_plain(octets, fmt).reshape(tuple(shape))
    else:
        decode = _decode_fused if octets.device.type == "cpu" else torch_blocks.decode
        out = _decode_rows(decode, octets, fmt, layout).reshape(tuple(shape))
    return out if dtype is None else out.to(dtype)


def _as_tensor(packed: Packed) -> torch.Tensor:
    octets = np.frombuffer(packed, np.uint8)
    # torch has no read-only tensors and warns about an array that must not be written to.
    return torch.from_numpy(octets if octets.flags.writeable else octets.copy())


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _check_values(x: torch.Tensor, fmt: Format) -> None:
    limit = largest(fmt)
    low, high = torch.aminmax(x)  # both are NaN if any value is
    if not (float(low) >= -limit and float(high) <= limit):
        raise _refusal(x, fmt, limit)


def _refusal(x: torch.Tensor, fmt: Format, limit: float) -> QuantizationError:
    fits = x.to(torch.float32).abs() <= limit
    position = tuple(int(i) for i in (~fits).nonzero()[0])
    return refusal(fmt, limit, position, float(x[position]))


def _encode_fused(fmt: Format, values: torch.Tensor) -> torch.Tensor:
    n = values.shape[1]
    if fmt is Format.ASYM4:
        if n % 2:  # the operator wants whole bytes
            single = values.to(torch.float32).numpy()
            return torch.from_numpy(blocks.encode(fmt, single, single.min(axis=1), single.max(axis=1)))
        records: torch.Tensor = torch.ops.quantized.embedding_bag_4bit_prepack(values)
        minimum = records.numpy()[:, -2:].view("<u2")
        negative_zero = minimum == 0x8000
        if negative_zero.any():
            minimum[negative_zero] = 0
        return records
    out = np.empty((len(values), code_size(fmt.bits, n) + fmt.trailer), np.uint8)
    for start in range(0, len(values), _CHUNK):
        rows: torch.Tensor = torch.ops.quantized.embedding_bag_byte_prepack(values[start : start + _CHUNK])
        octets = rows.numpy()
        statistics = np.ascontiguousarray(octets[:, n:]).view(np.float32)  # scale, minimum
        out[start : start + _CHUNK] = blocks.top_bits_record(
            octets[:, :n], statistics[:, 0], statistics[:, 1], fmt.bits
        )
    return torch.from_numpy(out)


def _decode_rows(
    decode: Callable[[Format, torch.Tensor, int], torch.Tensor],
    octets: torch.Tensor,
    fmt: Format,
    layout: Layout,
) -> torch.Tensor:
    records = octets.reshape(layout.rows, layout.row_size)

    def one(span: Span) -> torch.Tensor:
        part = records[:, span.octets].reshape(-1, span.record).contiguous()
        return decode(fmt, part, span.values).reshape(layout.rows, -1)

    return _join([one(span) for span in layout.spans])


def _decode_fused(fmt: Format, records: torch.Tensor, n: int) -> torch.Tensor:
    values: torch.Tensor
    if fmt in (Format.ASYM2, Format.ASYM4):
        unpack = (
            torch.ops.quantized.embedding_bag_2bit_unpack
            if fmt is Format.ASYM2
            else torch.ops.quantized.embedding_bag_4bit_unpack
        )
        values = unpack(records)[:, :n]  # the last byte may hold fewer values than fit
        return values
    octets: npt.NDArray[np.uint8] = records.numpy()
    rows = np.empty((len(octets), n + 8), np.uint8)
    size = code_size(fmt.bits, n)
    rows[:, :n] = bitpack.unpack(octets[:, :size], fmt.bits, n)
    rows[:, n:] = blocks.trailer_of(octets, size).view(np.uint8)
    values = torch.ops.quantized.embedding_bag_byte_unpack(torch.from_numpy(rows))
    return values


def _encode_plain(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    return x.reshape(-1).to(_STORED[fmt], copy=True).view(torch.uint8)


def _decode_plain(octets: torch.Tensor, fmt: Format) -> torch.Tensor:
    # The copy is aligned, which a part of a received buffer need not be.
    stored = octets.clone().view(_STORED[fmt])
    return stored if fmt is Format.I32 else stored.to(torch.float32)
