"""The optional backend in C: one pass over the values, the same bytes as the other backends.

It is compiled from ``native.c`` when the package is installed where there is a C compiler. Without it
:data:`LEVELS` is empty, and numpy and torch do the work. It reads values of any kind that lies in main
memory, one after another, and writes into memory of the caller's; other threads run meanwhile.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format
from .tables import table_of

__all__ = ["KINDS", "LEVELS", "can", "decode", "encode"]

# What the values are, by the name of their type.
KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
_Octets = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


def _load() -> Any:
    try:
        return importlib.import_module("mobillm.kernels._native")
    except ImportError:
        return None


_extension = _load()
# The instruction sets that the extension has code for and the processor can run, slowest first; the last one
# is used. Empty without the extension.
LEVELS: tuple[str, ...] = () if _extension is None else _extension.LEVELS


def can(fmt: Format) -> bool:
    """Tell whether this backend is there and knows a format: all but ``I32``, which is a copy."""
    return bool(LEVELS) and fmt is not Format.I32


def encode(
    x: npt.NDArray[Any], kind: int, fmt: Format, block: int, width: int, inverse: _Floats | None, out: _Octets
) -> bool:
    """Quantize and pack rows of values.

    Args:
        x: contiguous values, in an array whose items have their size.
        kind: what the values are, of :data:`KINDS`.
        fmt: the packed format.
        block: values that share a scale.
        width: values of one row, at least 1.
        inverse: fp32 [width], what the channels are multiplied by first; None for nothing.
        out: uint8 [packed size], contiguous; is written.

    Returns:
        False when a value is not finite or above the format's limit; ``out`` then holds anything.

    Raises:
        ValueError: a buffer has another size than the numbers say.

    """
    table = table_of(fmt).codes if fmt in (Format.NF4, Format.FP4) else None
    done: bool = _extension.encode(x, kind, out, fmt, block, width, inverse, table, len(LEVELS) - 1)
    return done


def decode(
    packed: _Octets, fmt: Format, block: int, width: int, factors: _Floats | None, out: npt.NDArray[Any]
) -> None:
    """Unpack and dequantize rows of values.

    Args:
        packed: uint8 [packed size], contiguous.
        fmt: the packed format.
        block: values that share a scale.
        width: values of one row, at least 1.
        factors: fp32 [width], what the channels are multiplied by afterwards; None for nothing.
        out: contiguous fp32 values; is written. Not finite where a trailer is not.

    Raises:
        ValueError: a buffer has another size than the numbers say.

    """
    table = table_of(fmt).values if fmt in (Format.NF4, Format.FP4, Format.F8) else None
    _extension.decode(packed, out, fmt, block, width, factors, table, len(LEVELS) - 1)
