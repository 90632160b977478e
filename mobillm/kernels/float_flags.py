"""The processor's flag for invalid floating-point operations.

A processor that follows IEEE 754 (2019, section 7.2) raises a sticky flag when a NaN is converted to an
integer. Quantization converts every value, so that the flag tells of a NaN at no cost, where a look at the
values would read them all once more. The flag belongs to a thread.
"""

from __future__ import annotations

import ctypes
import functools
import platform

__all__ = ["InvalidFlag", "invalid_flag"]

# FE_INVALID of <fenv.h> by architecture.
_BITS = {"x86_64": 1, "aarch64": 1}


class InvalidFlag:
    """The calling thread's flag.

    Args:
        library: the C library's mathematical part.
        bit: the flag among the floating-point exceptions.

    """

    def __init__(self, library: ctypes.CDLL, bit: int) -> None:
        self._clear = library.feclearexcept
        self._test = library.fetestexcept
        self._bit = bit

    def clear(self) -> None:
        """Lower the flag."""
        self._clear(self._bit)

    def is_raised(self) -> bool:
        """Tell whether an operation of this thread was invalid since the flag was lowered."""
        return bool(self._test(self._bit))


@functools.cache
def invalid_flag() -> InvalidFlag | None:
    """Return the flag, or None where this module does not know how to read it."""
    bit = _BITS.get(platform.machine())
    if bit is None or platform.system() != "Linux":
        return None
    try:
        return InvalidFlag(ctypes.CDLL("libm.so.6"), bit)
    except (OSError, AttributeError):
        return None
