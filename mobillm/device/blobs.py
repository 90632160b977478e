"""Blobs that a server lacks, found among those that a device can make."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from ..errors import ConfigError

__all__ = ["Announced", "lacking"]


class Announced:
    """Blobs that say which of them is taken: reading and sending them may take minutes.

    Args:
        groups: what is taken, one group after the other, once in each iteration.
        taken: called with the number of each, from 1, in the thread that takes it.

    """

    def __init__(self, groups: Sequence[Iterable[bytes]], taken: Callable[[int], None]) -> None:
        self._groups = groups
        self._taken = taken

    def __iter__(self) -> Iterator[bytes]:
        for number, blob in enumerate(itertools.chain.from_iterable(self._groups), 1):
            self._taken(number)
            yield blob


async def lacking(missing: Sequence[bytes], blobs: Iterable[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
    """Yield the digest and the content of each blob that is missing.

    Blobs are taken in a thread, one by one: each may have to be read from the disk first, and only one
    needs to be in memory.

    Args:
        missing: SHA-256 digests from the server; none takes no blob at all.
        blobs: content to choose from.

    Raises:
        ConfigError: one is not among them.

    """
    wanted, given = set(missing), iter(blobs)
    while wanted:
        digest, blob = await asyncio.to_thread(_take, given)
        if blob is None:
            seen = next(digest for digest in missing if digest in wanted).hex()
            raise ConfigError("blobs", seen, "the content with this SHA-256; the server lacks it")
        if digest in wanted:
            wanted.remove(digest)
            yield digest, blob


def _take(blobs: Iterator[bytes]) -> tuple[bytes, bytes | None]:
    blob = next(blobs, None)
    return hashlib.sha256(blob or b"").digest(), blob
