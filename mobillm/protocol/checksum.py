"""CRC32C, and the checksum of joined bytes from those of its parts.

A payload is covered by two checksums, its frame's and its batch's. Both follow from the payload's own, so
that its bytes are read once. An optional extension in C (``crc32c.c``) computes and joins checksums, the
first only on processors with the instructions that it uses; else the package ``crc32c`` and Python do.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import crc32c as package

__all__ = ["append", "combine", "crc32c"]

# The Castagnoli polynomial, reflected (RFC 3720, appendix B.4).
POLYNOMIAL = 0x82F63B78

# Below this, reading the bytes again is faster than combining.
WORTHWHILE = 16384

Tables = tuple[tuple[int, ...], ...]


def _load() -> Any:
    try:
        return importlib.import_module("mobillm.protocol._crc32c")
    except ImportError:
        return None


_extension = _load()

# Bytes, then the checksum of the bytes before them, if any.
crc32c: Callable[..., int] = (
    _extension.crc32c if _extension is not None and _extension.FOLDS else package.crc32c
)


def append(first: int, data: bytes | bytearray | memoryview, second: int) -> int:
    """Return the checksum of two byte strings joined, the second of which is at hand.

    Args:
        first: checksum of the first string.
        data: the second string.
        second: its checksum.

    """
    size = len(data)
    return crc32c(data, first) if size < WORTHWHILE else combine(first, second, size)


def combine_in_python(first: int, second: int, size: int) -> int:
    """Return the checksum of two byte strings joined.

    CRCs are linear: ``size`` zero bytes after the first string multiply its register by x^(8 size) modulo the
    polynomial, and the second string's checksum is added. zlib's ``crc32_combine`` does the same.

    Args:
        first: checksum of the first string.
        second: checksum of the second.
        size: bytes of the second.

    """
    power = 0
    while size:
        if size & 1:
            a, b, c, d = _tables(power)
            first = a[first & 255] ^ b[first >> 8 & 255] ^ c[first >> 16 & 255] ^ d[first >> 24]
        size >>= 1
        power += 1
    return first ^ second


combine: Callable[[int, int, int], int] = combine_in_python if _extension is None else _extension.combine


@functools.cache
def _tables(power: int) -> Tables:
    """Return what 2^power zero bytes make of each byte of a register; kept, one entry for each power."""
    images = _images(power)
    tables = []
    for start in range(0, 32, 8):
        table = [0]
        for image in images[start : start + 8]:
            table += [entry ^ image for entry in table]
        tables.append(tuple(table))
    return tuple(tables)


@functools.cache
def _images(power: int) -> tuple[int, ...]:
    """Return what 2^power zero bytes make of each bit of a register."""
    if power:
        half = _images(power - 1)
        return tuple(_apply(half, image) for image in half)
    images = []
    for bit in range(32):
        value = 1 << bit
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        images.append(value)
    return tuple(images)


def _apply(images: tuple[int, ...], value: int) -> int:
    result = 0
    for image in images:
        if value & 1:
            result ^= image
        value >>= 1
    return result
