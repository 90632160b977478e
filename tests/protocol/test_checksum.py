"""Tests of mobillm.protocol.checksum."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import threading
from collections.abc import Callable

import crc32c as package
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm.protocol.checksum import WORTHWHILE, append, combine, combine_in_python, crc32c

RANDOM = random.Random(7)
BLOCK = RANDOM.randbytes(1 << 16)

needs_extension = pytest.mark.skipif(combine is combine_in_python, reason="the C extension was not built")
needs_folding = pytest.mark.skipif(crc32c is package.crc32c, reason="not built, or not for this processor")


def test_it_is_castagnolis() -> None:
    """[F-11] The check value of RFC 3720's CRC, and a checksum that goes on from another."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


@needs_folding
@given(st.integers(0, 5000), st.integers(0, 130), st.integers(0, 2**32 - 1))
def test_folding_is_the_packages_checksum(size: int, start: int, value: int) -> None:
    """[F-11] At every length and address, and from every checksum before it."""
    data = memoryview(BLOCK)[start : start + size]
    assert crc32c(data, value) == package.crc32c(data, value)


@needs_folding
def test_folding_at_each_edge() -> None:
    """[F-11] Lengths around those at which the code takes another way, at each address of a line."""
    view = memoryview(BLOCK)
    for edge in (0, 8, 64, 256, 1024, 1280, 1536, 8192):
        for size in range(max(0, edge - 9), edge + 10):
            for start in range(0, 65, 13):
                data = view[start : start + size]
                assert crc32c(data, edge) == package.crc32c(data, edge), (size, start)


@needs_folding
def test_long_bytes_let_other_threads_run() -> None:
    """[F-11] Above a megabyte the lock is given back; checksums at once do not disturb one another."""
    data = os.urandom(1 << 21)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(crc32c(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [package.crc32c(data)] * 4


@needs_folding
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((b"", 0, 0), TypeError),
        (("text",), TypeError),
        ((memoryview(b"abcdefgh")[::2],), BufferError),
        ((b"", "0"), TypeError),
        ((b"", -1), OverflowError),
        ((b"", 1 << 32), OverflowError),
        ((b"", 1 << 64), OverflowError),
    ],
)
def test_wrong_arguments_of_the_checksum(arguments: tuple[object, ...], error: type[Exception]) -> None:
    """What is no bytes or no checksum is refused; nothing is read."""
    with pytest.raises(error):
        crc32c(*arguments)


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1, 2), TypeError),
        ((-1, 2, 3), OverflowError),
        ((1, 1 << 32, 3), OverflowError),
        ((1, 2, -1), ValueError),
        ((1, 2, 1 << 64), OverflowError),
    ],
)
def test_wrong_arguments_of_combine(arguments: tuple[int, ...], error: type[Exception]) -> None:
    """What is no checksum or no length is refused."""
    with pytest.raises(error):
        combine(*arguments)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """[F-11] Where it was not built, the package and Python do the work."""
    spec = importlib.util.find_spec("mobillm.protocol.checksum")
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mobillm.protocol._crc32c", None)
    spec.loader.exec_module(again)
    assert again.crc32c is package.crc32c
    assert again.combine is again.combine_in_python
    assert again.append(1, BLOCK, crc32c(BLOCK)) == crc32c(BLOCK, 1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 31, 255, 4096, 65535, 65536, 65537, 300_001])
@pytest.mark.parametrize("joined", [combine, combine_in_python], ids=["combine", "python"])
def test_joined_bytes_have_the_combined_checksum(joined: Callable[[int, int, int], int], size: int) -> None:
    """[F-6] [B-9] Combining is the same as reading both strings, whatever the second's length."""
    for first in (b"", b"\0", RANDOM.randbytes(133)):
        second = RANDOM.randbytes(size)
        assert joined(crc32c(first), crc32c(second), size) == crc32c(first + second)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1))
def test_combining_is_the_same_in_both(first: int, second: int, size: int) -> None:
    """[B-9] Also for lengths that no memory holds."""
    assert combine(first, second, size) == combine_in_python(first, second, size)


@pytest.mark.parametrize("size", [1, WORTHWHILE - 1, WORTHWHILE, WORTHWHILE + 1])
def test_appending_is_the_same_on_both_sides_of_the_threshold(size: int) -> None:
    """[B-9] Short strings are read again and long ones are not; nobody can tell."""
    first, second = RANDOM.randbytes(50), RANDOM.randbytes(size)
    for data in (second, bytearray(second), memoryview(second)):
        assert append(crc32c(first), data, crc32c(second)) == crc32c(first + second)


def test_long_strings_are_not_read_again() -> None:
    """The checksum at hand is believed for a long string: its bytes do not matter any more."""
    zeros = bytes(WORTHWHILE)
    other = crc32c(RANDOM.randbytes(WORTHWHILE))
    assert append(0, zeros, other) == other
    assert append(0, zeros[1:], other) == crc32c(zeros[1:])
