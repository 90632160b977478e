"""Block quantization in plain torch operations, for tensors on any device.

The same steps as :mod:`mobillm.kernels.blocks`, one rounding each. Divisors are tensors on the device,
because a division by a Python number is turned into a multiplication by its reciprocal there, which
rounds differently.
"""

from __future__ import annotations

import torch

from ..formats import Format
from .bitpack import plane_parts
from .blocks import SMALLEST, top_bits
from .layout import code_size
from .tables import F8_MAX, table_of

__all__ = ["decode", "encode", "pack", "unpack"]

_SEGMENTS = 8


def encode(fmt: Format, values: torch.Tensor) -> torch.Tensor:
    """Quantize and pack blocks of equal length.

    Args:
        fmt: a block format.
        values: fp32 [blocks, n], all finite and none above the format's limit.

    Returns:
        uint8 [blocks, record], on the device of ``values``.

    """
    low, high = values.amin(dim=1), values.amax(dim=1)
    if not fmt.is_asym:
        absmax = torch.maximum(-low, high)
        return _record(_table_codes(fmt, values, absmax), absmax)
    if fmt is Format.ASYM4:
        low = _through_f16(low)
        scale = _through_f16(torch.div(high - low, _number(values, 15)))
        scale = torch.where(scale == 0, 1.0, scale)
        codes = _codes(values, low, torch.reciprocal(scale), 15)
        return _record(pack(codes, 4), scale, low)
    spread = high - low
    inverse = torch.div(_number(values, 255), spread + _number(values, 1e-8))
    codes = _codes(values, low, inverse, 255) >> (8 - fmt.bits)
    step = torch.div(spread, _number(values, 255))
    return _record(pack(codes, fmt.bits), *top_bits(step, low, fmt.bits))


def decode(fmt: Format, records: torch.Tensor, n: int) -> torch.Tensor:
    """Unpack and dequantize records of blocks of ``n`` values.

    Args:
        fmt: a block format.
        records: uint8 [blocks, record].
        n: values of one block.

    Returns:
        fp32 [blocks, n], on the device of ``records``.

    """
    size = code_size(fmt.bits, n)
    codes = unpack(records[:, :size], fmt.bits, n)
    # A clone starts at the front of its own storage, as a view of another type must.
    halves = records[:, size:].clone(memory_format=torch.contiguous_format)
    trailer = halves.view(torch.float16).to(torch.float32)
    if not fmt.is_asym:
        table = torch.tensor(table_of(fmt).values, device=records.device)
        return table[codes.to(torch.int32)] * trailer
    return codes.to(torch.float32).mul_(trailer[:, :1]).add_(trailer[:, 1:])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack rows of codes, uint8 [rows, n], into uint8 [rows, ceil(n * bits / 8)]."""
    if bits == 8:
        return codes
    if bits in (2, 4):
        return _pack_stream(codes, bits)
    lane = codes.shape[1] // _SEGMENTS
    planes = codes.new_zeros((len(codes), bits, lane))
    segments = codes[:, : _SEGMENTS * lane].reshape(len(codes), _SEGMENTS, lane)
    for plane, segment, shift in plane_parts(bits):
        part = segments[:, segment]
        planes[:, plane] |= part << shift if shift >= 0 else part >> -shift
    rest = _pack_stream(codes[:, _SEGMENTS * lane :], bits)
    return torch.cat([planes.flatten(1), rest], dim=1)


def unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """Unpack rows of codes, uint8 [rows, ceil(n * bits / 8)], into uint8 [rows, n]."""
    if bits == 8:
        return packed
    if bits in (2, 4):
        return _unpack_stream(packed, bits, n)
    lane = n // _SEGMENTS
    planes = packed[:, : bits * lane].reshape(len(packed), bits, lane)
    segments = packed.new_zeros((len(packed), _SEGMENTS, lane))
    for plane, segment, shift in plane_parts(bits):
        part = planes[:, plane]
        segments[:, segment] |= part >> shift if shift >= 0 else part << -shift
    segments &= (1 << bits) - 1
    rest = _unpack_stream(packed[:, bits * lane :], bits, n - _SEGMENTS * lane)
    return torch.cat([segments.flatten(1), rest], dim=1)


def _pack_stream(codes: torch.Tensor, bits: int) -> torch.Tensor:
    # Whole bytes for 2 and 4 bits; for other widths at most 7 codes, which fit one 64-bit word.
    n = codes.shape[1]
    group = 8 // bits if bits in (2, 4) else _SEGMENTS
    padded = torch.nn.functional.pad(codes, (0, -n % group))
    padded = padded.reshape(len(codes), padded.shape[1] // group, group)
    word = padded[:, :, 0].to(torch.int64)
    for i in range(1, group):
        word |= padded[:, :, i].to(torch.int64) << (i * bits)
    octets = [(word >> (8 * k) & 0xFF).to(torch.uint8) for k in range(group * bits // 8)]
    return torch.stack(octets, dim=2).flatten(1)[:, : code_size(bits, n)]


def _unpack_stream(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    size = 1 if bits in (2, 4) else bits
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % size))
    padded = padded.reshape(len(packed), padded.shape[1] // size, size)
    word = padded[:, :, 0].to(torch.int64)
    for k in range(1, size):
        word |= padded[:, :, k].to(torch.int64) << (8 * k)
    mask = (1 << bits) - 1
    codes = [(word >> (i * bits) & mask).to(torch.uint8) for i in range(8 * size // bits)]
    return torch.stack(codes, dim=2).flatten(1)[:, :n]


def _number(like: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _table_codes(fmt: Format, values: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    if fmt is Format.F8:
        inverse = torch.div(_number(values, F8_MAX), absmax.clamp_min(float(SMALLEST)))
        return (values * inverse[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
    inverse = torch.div(_number(values, 255), absmax + absmax + _number(values, 1e-8))
    grid = _codes(values, -absmax, inverse, 255)
    table = torch.tensor(table_of(fmt).codes, device=values.device)
    return pack(table[grid.to(torch.int32)], 4)


def _codes(values: torch.Tensor, low: torch.Tensor, inverse: torch.Tensor, top: int) -> torch.Tensor:
    scaled = (values - low[:, None]).mul_(inverse[:, None])
    return scaled.round_().clamp_(0, top).to(torch.uint8)


def _through_f16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float16).to(torch.float32)


def _record(codes: torch.Tensor, *trailer: torch.Tensor) -> torch.Tensor:
    halves = torch.stack(trailer, dim=1).to(torch.float16)
    halves = torch.where(halves == 0, 0.0, halves)  # no negative zero
    return torch.cat([codes, halves.view(torch.uint8)], dim=1)
