"""Tests of mobillm.protocol.checksum."""

from __future__ import annotations

import random

import pytest

from mobillm.protocol.checksum import WORTHWHILE, append, combine, crc32c

RANDOM = random.Random(7)


def test_it_is_castagnolis() -> None:
    """[F-11] The check value of RFC 3720's CRC, and a checksum that goes on from another."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


@pytest.mark.parametrize("size", [0, 1, 2, 3, 31, 255, 4096, 65535, 65536, 65537, 300_001])
def test_joined_bytes_have_the_combined_checksum(size: int) -> None:
    """[F-6] [B-9] Combining is the same as reading both strings, whatever the second's length."""
    for first in (b"", b"\0", RANDOM.randbytes(133)):
        second = RANDOM.randbytes(size)
        assert combine(crc32c(first), crc32c(second), size) == crc32c(first + second)


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
