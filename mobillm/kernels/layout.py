"""Where the records of a packed tensor lie, and the errors of both backends."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence

from ..errors import ConfigError, QuantizationError
from ..formats import BLOCKS, MAX_RANK, Format, packed_size, row_size

__all__ = ["Layout", "Span", "code_size", "misfit", "refusal"]

# What numpy and torch can count in bytes, at 8 a value; axes of length 0 do not help them.
_MAX_VALUES = 1 << 60


def code_size(bits: int, values: int) -> int:
    """Return the bytes that the codes of ``values`` values take, without their trailer."""
    return (values * bits + 7) // 8


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Blocks of equal length that lie side by side in every row.

    Attributes:
        values: values of one block.
        record: bytes of one packed block.
        columns: the part of an unpacked row that the blocks cover.
        octets: the part of a packed row that their records cover.

    """

    values: int
    record: int
    columns: slice
    octets: slice


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a packed tensor and the spans of each row.

    Attributes:
        rows: product of all axes but the last.
        width: values of one row.
        row_size: bytes of one packed row.
        size: bytes of the packed tensor.
        spans: the full blocks, then the short one; either may be missing, and formats without blocks
            have none.

    """

    rows: int
    width: int
    row_size: int
    size: int
    spans: tuple[Span, ...]

    @staticmethod
    def of(fmt: Format, block: int, shape: Sequence[int]) -> Layout:
        """Lay a tensor out.

        Args:
            fmt: the packed format.
            block: values that share a scale; ignored by formats without blocks, but checked.
            shape: axes of the tensor; an empty shape is one row of one value.

        Raises:
            ConfigError: the format or the block is none, the shape has more than 8 axes or one that is not
                a length, or there are more than 2**60 values, axes of length 0 not counted.

        """
        # Before the cache, for which 64.0 equals 64 and the number 20 equals ASYM4.
        if not isinstance(fmt, Format):
            raise ConfigError("fmt", fmt, "a Format")
        if type(block) is not int:
            raise ConfigError("block", block, "32, 64 or 128, an integer")
        try:
            axes = tuple(map(operator.index, shape))
        except TypeError:
            raise ConfigError("shape", shape, f"at most {MAX_RANK} axes, all integers") from None
        return _lay_out(fmt, block, axes)

    def check_packed(self, seen: int, fmt: Format, block: int, shape: Sequence[int]) -> None:
        """Refuse a packed tensor that has ``seen`` bytes instead of :attr:`size`.

        Raises:
            ConfigError: the sizes differ.

        """
        if seen != self.size:
            raise ConfigError(
                "packed size",
                seen,
                f"{self.size} bytes for {fmt.name.lower()}, block {block}, shape {list(shape)}; "
                "check that format, block and shape are those the tensor was packed with",
            )


# The shapes of a session's tensors are few, and working a layout out takes longer than packing a small one.
@functools.lru_cache(maxsize=1024)
def _lay_out(fmt: Format, block: int, shape: tuple[int, ...]) -> Layout:
    if block not in BLOCKS:
        raise ConfigError("block", block, "32, 64 or 128, an integer")
    if len(shape) > MAX_RANK or any(axis < 0 for axis in shape):
        raise ConfigError("shape", list(shape), f"at most {MAX_RANK} axes, none of them negative")
    if math.prod(axis or 1 for axis in shape) > _MAX_VALUES:
        raise ConfigError("shape", list(shape), "at most 2**60 values, axes of length 0 not counted")
    width = shape[-1] if shape else 1
    return Layout(
        rows=math.prod(shape[:-1]),
        width=width,
        row_size=row_size(fmt, block, width),
        size=packed_size(fmt, block, shape),
        spans=_spans(fmt, block, width) if fmt.is_block else (),
    )


def _spans(fmt: Format, block: int, width: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    column = octet = 0
    full, rest = divmod(width, block)
    for count, values in ((full, block), (1, rest)):
        if count and values:
            record = code_size(fmt.bits, values) + fmt.trailer
            columns = slice(column, column + count * values)
            octets = slice(octet, octet + count * record)
            spans.append(Span(values, record, columns, octets))
            column, octet = columns.stop, octets.stop
    return tuple(spans)


def misfit(seen: int, kind: str, wanted: int, expected: str) -> ConfigError:
    """Build the error for memory that does not fit a result.

    Args:
        seen: its items.
        kind: their type.
        wanted: items of the result.
        expected: their type.

    Returns:
        The error, for the caller to raise.

    """
    return ConfigError(
        "out", f"{seen} x {kind}", f"{wanted} x {expected}, contiguous and writable, in main memory"
    )


def refusal(
    fmt: Format, limit: float, position: tuple[int, ...], value: float, *, equalized: bool = False
) -> QuantizationError:
    """Build the error for the first value that a format cannot carry.

    Args:
        fmt: the packed format.
        limit: the largest magnitude it carries.
        position: index of the value in the caller's tensor.
        value: that value; NaN, infinite or larger than ``limit``.
        equalized: whether the limit applies to the value divided by its channel's factor.

    Returns:
        The error, for the caller to raise.

    """
    if math.isfinite(value):
        wider = "f32" if fmt is Format.BF16 else "bf16 or f32"
        divided = " divided by its channel's factor" if equalized else ""
        reason = (
            f"its magnitude{divided} is above {limit:g}, the limit of {fmt.name.lower()}; use format {wider}"
        )
    else:
        reason = (
            "only finite values can be packed; look for an overflow in the model's forward pass "
            "(fp16 ends at 65504: run it in bf16 or fp32)"
        )
    return QuantizationError(reason, position, value)
