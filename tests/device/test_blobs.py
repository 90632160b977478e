"""Blobs that a server lacks: taken one by one, and only as many as are needed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence

import pytest

from mobillm.device.blobs import Announced, lacking
from mobillm.errors import ConfigError

BLOBS = [b"one", b"two", b"three", b"four"]


async def found(missing: Sequence[bytes], taken: list[bytes]) -> list[bytes]:
    """Return what is found of the blobs, and note which of them were taken."""

    def blobs() -> Iterator[bytes]:
        for blob in BLOBS:
            taken.append(blob)
            yield blob

    return [blob async for digest, blob in lacking(missing, blobs()) if digest in missing]


def digest(blob: bytes) -> bytes:
    """Return a blob's name."""
    return hashlib.sha256(blob).digest()


def test_only_what_is_missing() -> None:
    """Nothing is taken without need, and nothing after the last one that is missing."""
    taken: list[bytes] = []
    assert asyncio.run(found([], taken)) == []
    assert taken == []
    assert asyncio.run(found([digest(b"three"), digest(b"one")], taken)) == [b"one", b"three"]
    assert taken == [b"one", b"two", b"three"]


def test_each_is_announced() -> None:
    """Whoever waits learns which blob it is, in each iteration anew."""
    seen: list[int] = []
    blobs = Announced([BLOBS[:1], (), BLOBS[1:]], seen.append)
    assert [list(blobs), list(blobs)] == [BLOBS, BLOBS]
    assert seen == [1, 2, 3, 4] * 2


def test_a_blob_that_nobody_has() -> None:
    """It is named; what is there comes before it."""
    unknown = digest(b"five")
    with pytest.raises(ConfigError, match=unknown.hex()):
        asyncio.run(found([digest(b"one"), unknown], []))
