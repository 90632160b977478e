from __future__ import annotations

import ctypes
import math
import platform
import threading

import numpy as np
import pytest

from mobillm.kernels.float_flags import InvalidFlag, invalid_flag


@pytest.fixture
def flag() -> InvalidFlag:
    """Give the flag, where there is one."""
    found = invalid_flag()
    if found is None:
        pytest.skip("the flag cannot be read on this platform")
    return found


def raise_flag() -> None:
    """Convert a NaN to an integer in C, where numpy does not look at the flag."""
    library = ctypes.CDLL("libm.so.6")
    library.lrint.argtypes, library.lrint.restype = [ctypes.c_double], ctypes.c_long
    library.lrint(math.nan)


def test_flag_is_raised_by_an_invalid_operation_and_stays(flag: InvalidFlag) -> None:
    """It is sticky until it is lowered."""
    flag.clear()
    assert not flag.is_raised()
    raise_flag()
    assert flag.is_raised()
    assert flag.is_raised()
    flag.clear()
    assert not flag.is_raised()


def test_ordinary_arithmetic_does_not_raise_it(flag: InvalidFlag) -> None:
    """Rounding, overflow and underflow have flags of their own."""
    flag.clear()
    assert sum(math.sqrt(i) * 1e-300 * 1e-300 for i in range(100)) == 0
    assert np.float32(3.3) * np.float32(2) > 6
    assert not flag.is_raised()


def test_each_thread_has_its_own(flag: InvalidFlag) -> None:
    """Another thread's NaN is not ours."""
    flag.clear()
    thread = threading.Thread(target=raise_flag)
    thread.start()
    thread.join()
    assert not flag.is_raised()


def test_unknown_platforms_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed about other processors and systems."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert invalid_flag.__wrapped__() is None
