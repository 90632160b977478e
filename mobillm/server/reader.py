"""Reading the activation log: batches, checked, as views of the mapped file."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
import pathlib
import struct
from collections.abc import Iterable
from typing import Any

import crc32c
import msgpack

from ..errors import DamageError, StorageError
from ..formats import Format
from ..protocol import TensorHeader
from .batch import Batch

__all__ = ["HEADER", "HEADER_SIZE", "Entry", "LogReader"]

# magic, version, map's length, payload's length, CRC32C of the map, CRC32C of the payload, offset of the
# group; a CRC32C of all that follows
HEADER = struct.Struct("<4sIIQIIQ")
HEADER_SIZE = HEADER.size + 4


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Where a batch lies in the log.

    Attributes:
        seq, samples, heldout: of the batch.
        lengths: tokens of each sample.
        offset: of the record in the file.
        meta_size, payload_size: of its two parts, in bytes.
        checksum: CRC32C of the payloads, in the order they were sent.
        sent: the same of what was sent in their place, where tensors were compressed; else ``checksum``.
        equalizers: whether it brings any.

    """

    seq: int
    samples: int
    heldout: bool
    lengths: tuple[int, ...]
    offset: int
    meta_size: int
    payload_size: int
    checksum: int
    sent: int
    equalizers: bool

    @property
    def end(self) -> int:
        """Offset of the byte after the record."""
        return self.offset + HEADER_SIZE + self.meta_size + self.payload_size


class LogReader:
    """Reads a log that somebody else writes, maybe on another machine.

    It finds nothing by itself: the writer says where the records are, once they are durable.

    Args:
        path: the file.

    Attributes:
        path: the file.
        entries: its batches, in the order in which they came.

    """

    def __init__(self, path: pathlib.Path, entries: Iterable[Entry] = ()) -> None:
        self.path = path
        self.entries = list(entries)
        self._map: mmap.mmap | None = None
        self._checked: set[int] = set()  # batches whose payload was found whole

    def read(self, entry: Entry) -> Batch:
        """Return a batch; its payloads are views of the mapped file and cannot be written to.

        The first read of a batch checks it; later ones, of which an epoch does many, trust that.

        Raises:
            DamageError: the record is damaged.
            StorageError: the file cannot be read.

        """
        view = self._view(entry.end)
        start = entry.offset + HEADER_SIZE
        meta, payload = view[start : start + entry.meta_size], view[start + entry.meta_size : entry.end]
        if entry.seq not in self._checked:
            crc_meta = HEADER.unpack_from(view, entry.offset)[4]
            if crc32c.crc32c(meta) != crc_meta or crc32c.crc32c(payload) != entry.checksum:
                raise DamageError(
                    f"{self.path}: batch {entry.seq} at byte {entry.offset} is damaged; restore the file "
                    "from a backup or delete the session"
                )
            self._checked.add(entry.seq)
        return _decode(bytes(meta), payload)

    def close(self) -> None:
        """Let the file go; batches that were read stay valid. Can be called more than once."""
        self._map = None

    def _view(self, end: int) -> memoryview:
        if self._map is None or len(self._map) < end:
            # The old map stays alive as long as batches refer to it.
            self._map = self._mapped(end)
        return memoryview(self._map)

    def _mapped(self, end: int) -> mmap.mmap:
        """Map the whole file, which has at least ``end`` bytes."""
        try:
            # Opened anew each time: that is when a network file system looks how long the file is by now.
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(file).st_size
                if size < end:
                    raise StorageError(
                        f"{self.path} has {size} bytes, but {end} were written: server and workers need the "
                        "same data directory, where a file that is opened is up to date"
                    )
                return mmap.mmap(file, size, access=mmap.ACCESS_READ)
            finally:
                os.close(file)
        except OSError as exc:
            if isinstance(exc, StorageError):
                raise
            raise StorageError(f"{self.path} cannot be read: {exc.strerror}") from exc


@functools.lru_cache(maxsize=4096)
def _header(code: int, block: int, shape: tuple[int, ...], equalizer: int | None) -> TensorHeader:
    """Make a header once: the checks take longer than all else of a read, and headers are frozen."""
    return TensorHeader(Format(code), block, shape, equalizer)


def _decode(meta: bytes, payload: memoryview) -> Batch:
    values: dict[str, Any] = msgpack.unpackb(meta, use_list=False)
    headers: dict[int, TensorHeader] = {}
    payloads: dict[int, bytes | memoryview] = {}
    offset = 0
    for tensor, code, block, shape, equalizer in values["tensors"]:
        header = _header(code, block, shape, equalizer)
        headers[tensor] = header
        payloads[tensor] = payload[offset : offset + header.size]
        offset += header.size
    return Batch(values["seq"], values["samples"], values["heldout"], headers, payloads)
