"""Block quantization of torch tensors in main memory, by FBGEMM's fused row-wise operators.

The operators are part of torch. A block takes the place of a row. The 8-bit one gives rows of codes
followed by an fp32 scale and an fp32 minimum; formats that it does not know are made from its codes.

None of the operators tells of NaN: one comes back as an ordinary number. A sum over the values does, and
costs a third of a search for the smallest and the largest value. The limit of the values follows from the
trailers that the operator has written.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..formats import Format
from . import bitpack, blocks
from .layout import code_size
from .tables import F8_MAX, F16_MAX, table_of
from .workspace import Workspace

__all__ = ["CHUNK", "decode", "encode"]

# Blocks handled at a time, which bounds the memory of the operator's rows; fewer where a table is looked
# up, whose indices are larger than the values.
CHUNK = 1 << 15
_TABLE_CHUNK = 1 << 13

_Octets = npt.NDArray[np.uint8]
_workspace = Workspace()
_ops = torch.ops.quantized


def encode(fmt: Format, values: torch.Tensor, out: _Octets | None) -> _Octets | None:
    """Quantize and pack blocks of equal length.

    Args:
        fmt: a block format.
        values: fp32 [blocks, n], contiguous.
        out: uint8 [blocks, record], contiguous along the last axis, for the records; None asks for new
            memory.

    Returns:
        ``out`` or a new array; None when a value is not finite or its magnitude is above 65504.

    """
    n = values.shape[1]
    if fmt is Format.ASYM4 and n % 2 == 0:  # the operator wants whole bytes
        return _encode_asym4(values, out)
    if out is None:
        out = np.empty((len(values), code_size(fmt.bits, n) + fmt.trailer), np.uint8)
    step = CHUNK if fmt.is_asym else _TABLE_CHUNK
    for start in range(0, len(values), step):
        part, records = values[start : start + step], out[start : start + step]
        if fmt is Format.ASYM4:
            fine = blocks.encode(fmt, part.numpy(), records)
        elif fmt.is_asym:
            fine = _encode_top_bits(fmt, part, records)
        else:
            fine = _encode_table(fmt, part, records)
        if not fine:
            return None
    return out


def decode(fmt: Format, records: _Octets, n: int) -> torch.Tensor:
    """Unpack and dequantize records of blocks of ``n`` values.

    Args:
        fmt: a block format.
        records: uint8 [blocks, record], contiguous along the last axis.
        n: values of one block.

    Returns:
        fp32 [blocks, n]; not finite where a trailer is not.

    """
    values: torch.Tensor
    if fmt in (Format.ASYM2, Format.ASYM4):
        unpack = _ops.embedding_bag_2bit_unpack if fmt is Format.ASYM2 else _ops.embedding_bag_4bit_unpack
        values = unpack(_tensor(np.ascontiguousarray(records)))
        return values[:, :n]  # the last byte may hold fewer values than fit
    if not fmt.is_asym:
        return _decode_table(fmt, records, n)
    size = code_size(fmt.bits, n)
    trailer = _trailer_of(records, size)
    rows = _workspace.take("rows", (len(records), n + 8), np.uint8)
    bitpack.unpack(records[:, :size], fmt.bits, rows[:, :n])
    bitpack.copy_octets(trailer.numpy().view(np.uint8), rows[:, n:])
    values = _ops.embedding_bag_byte_unpack(_tensor(rows))
    return values


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    # torch has no read-only tensors and warns about an array that must not be written to.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _fits(values: torch.Tensor, bounded: bool) -> bool:
    """Tell whether all values are finite and within the limit.

    Args:
        values: the values.
        bounded: whether the trailers show that all values but NaN are within the limit.

    """
    if bounded and math.isfinite(float(values.sum())):
        return True
    low, high = torch.aminmax(values)  # both are NaN if any value is
    return float(low) >= -F16_MAX and float(high) <= F16_MAX


def _encode_asym4(values: torch.Tensor, out: _Octets | None) -> _Octets | None:
    records: _Octets = _ops.embedding_bag_4bit_prepack(values).numpy()
    trailer = _workspace.take("trailer", (len(records), 4), np.uint8)
    bitpack.copy_octets(records[:, -4:], trailer)
    signed = trailer.view("<i2")  # scale and minimum, as the bits of fp16 numbers
    if signed.min() == -0x8000:  # a negative zero
        minimum = records[:, -2:].view("<u2")
        minimum[minimum == 0x8000] = 0
    # 0x6800 is 2048: a block ends below 2048 + 15 * 2048. 0xF800 is -32768.
    bounded = signed.max() < 0x6800 and trailer.view("<u2").max() < 0xF800
    if not _fits(values, bool(bounded)):
        return None
    if out is None:
        return records
    bitpack.copy_octets(records, out)
    return out


def _encode_top_bits(fmt: Format, values: torch.Tensor, out: _Octets) -> bool:
    n = values.shape[1]
    size = code_size(fmt.bits, n)
    rows: _Octets = _ops.embedding_bag_byte_prepack(values).numpy()
    statistics = _workspace.take("statistics", (len(rows), 2), np.float32)
    bitpack.copy_octets(rows[:, n:], statistics.view(np.uint8))
    # A block ends at its minimum plus 255 steps; one step more makes up for rounding.
    bounded = statistics.min() >= -F16_MAX and statistics.max() <= F16_MAX / 257
    if not _fits(values, bool(bounded)):
        return False
    if fmt.bits < 8:
        statistics[:, 0], statistics[:, 1] = blocks.top_bits(statistics[:, 0], statistics[:, 1], fmt.bits)
    _store(out, size, torch.from_numpy(statistics))
    # Packing whole rows, with what follows the codes, needs no gathering first.
    bitpack.pack(rows if fmt.bits == 2 and n % 4 == 0 else rows[:, :n], fmt.bits, out[:, :size])
    return True


def _encode_table(fmt: Format, values: torch.Tensor, out: _Octets) -> bool:
    low, high = values.amin(dim=1), values.amax(dim=1)
    if not (float(low.min()) >= -F16_MAX and float(high.max()) <= F16_MAX):
        return False
    n = values.shape[1]
    size = code_size(fmt.bits, n)
    absmax = torch.maximum(-low, high)
    if fmt is Format.F8:
        # torch turns a Python number over a tensor into its reciprocal times the number: two roundings.
        inverse = torch.div(torch.tensor(F8_MAX), absmax.clamp_min(float(blocks.SMALLEST)))
        codes = (values * inverse[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        bitpack.copy_octets(codes.numpy(), out[:, :size])
    elif n % 2:
        return blocks.encode(fmt, values.numpy(), out)
    else:
        bounds = torch.stack([-absmax, absmax], dim=1)
        rows = _ops.embedding_bag_byte_prepack_with_rowwise_min_max(values, bounds)
        packed = _packed_pairs(fmt).index_select(0, _index(rows.numpy()[:, :n].view("<u2")))
        bitpack.copy_octets(packed.numpy().reshape(len(values), size), out[:, :size])
    _store(out, size, absmax[:, None])
    return True


def _decode_table(fmt: Format, records: _Octets, n: int) -> torch.Tensor:
    size = code_size(fmt.bits, n)
    table = _values(fmt)
    values = torch.empty(len(records), size * 8 // fmt.bits)  # the last byte may hold fewer than fit
    trailer = _trailer_of(records, size)
    for start in range(0, len(records), _TABLE_CHUNK):
        index = _index(records[start : start + _TABLE_CHUNK, :size])
        part = values[start : start + _TABLE_CHUNK]
        torch.index_select(table, 0, index, out=part.view(-1).view(table.dtype))
        part.mul_(trailer[start : start + _TABLE_CHUNK])
    return values[:, :n]


def _index(numbers: npt.NDArray[np.unsignedinteger[Any]]) -> torch.Tensor:
    """Return small numbers in the type that torch looks up fastest, in memory that is used again."""
    index = _workspace.take("index", numbers.shape, np.int32)
    np.copyto(index, numbers)
    return torch.from_numpy(index).reshape(-1)


@functools.cache
def _packed_pairs(fmt: Format) -> torch.Tensor:
    return torch.from_numpy(table_of(fmt).packed_pairs.copy())


@functools.cache
def _values(fmt: Format) -> torch.Tensor:
    """Return what a packed byte stands for: one fp32 value, or two in the place of a 64-bit number."""
    table = table_of(fmt)
    return torch.from_numpy((table.value_pairs if fmt.bits == 4 else table.values).copy())


def _trailer_of(records: _Octets, size: int) -> torch.Tensor:
    halves = np.empty((len(records), records.shape[1] - size), np.uint8)
    bitpack.copy_octets(records[:, size:], halves)
    return torch.from_numpy(halves).view(torch.float16).to(torch.float32)


def _store(out: _Octets, size: int, trailer: torch.Tensor) -> None:
    """Write the trailers, fp32 [blocks, numbers], behind ``size`` bytes of codes."""
    halves: _Octets = trailer.to(torch.float16).view(torch.uint8).numpy()
    signed = halves.view("<i2")
    if signed.min() == -0x8000:  # which zero a minimum is depends on the order of the search
        signed[signed == -0x8000] = 0
    bitpack.copy_octets(halves, out[:, size:])
