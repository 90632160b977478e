"""The activation log: every batch of a session, packed, on the disk.

One append-only file. A record is a header, a msgpack map and the tensors' packed bytes; each of the three
has a CRC32C. The log is crash recovery and epoch cache at once: later epochs read it, and the device
forwards each sample only once.

A crash may leave any part of the records that were being written: all of those, and only those, are not
durable yet. Each record names the offset at which its group (the records that one sync made durable)
begins. So a damaged record is the torn end of the file unless a record of a later group follows it.

While the log is open, room for what comes next is allocated ahead: a sync then need not record a new file
size, which makes it faster. The room reads as zeros; closing, or opening after a crash, cuts it off.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import crc32c
import msgpack

from ..errors import DamageError, StorageError
from ..protocol import EQUALIZERS
from .batch import Batch
from .files import sync_directory
from .reader import HEADER, HEADER_SIZE, Entry, LogReader

__all__ = ["ActivationLog"]

logger = logging.getLogger("mobillm.server")

CRC = struct.Struct("<I")
MAGIC = b"MLog"
MAX_BUFFERS = 512  # of one call; the system allows 1024
VERSION = 2
ROOM = 4 << 20  # most bytes that are allocated ahead


class ActivationLog(LogReader):
    """The log of one session; used by one thread at a time for appending, by any for reading.

    Args:
        path: the file; made if there is none, and there need be none.
        least: last batch that was durable for certain; a file that ends before it has lost some.

    Raises:
        DamageError: the file has lost durable records; it is left as it is.
        StorageError: it cannot be opened.

    """

    def __init__(self, path: pathlib.Path, least: int = 0) -> None:
        super().__init__(path)
        self._least = least
        self._size = 0
        self._room = 0  # size of the file, with what is allocated ahead
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if least else os.O_CREAT)
        try:
            self._file = os.open(path, flags, 0o600)
        except FileNotFoundError as exc:
            raise DamageError(f"{path} is gone; restore it from a backup or delete the session") from exc
        except OSError as exc:
            raise StorageError(f"{path} cannot be opened: {exc.strerror}") from exc
        try:
            self._size = self._recover()
            sync_directory(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of all whole records."""
        return self._size

    @property
    def last(self) -> int:
        """Number of the last batch; 0 when there is none."""
        return self.entries[-1].seq if self.entries else 0

    def append(self, batches: Sequence[Batch]) -> None:
        """Write batches and wait until they are on the disk.

        Raises:
            StorageError: the disk is full or broken; the log is as it was before.

        """
        entries: list[Entry] = []
        buffers: list[bytes | memoryview] = []
        offset = self._size
        for batch in batches:
            entry, parts = _encode(batch, offset, self._size)
            offset = entry.end
            entries.append(entry)
            buffers += parts
        try:
            self._allocate(offset)
            _write_all(self._file, buffers, self._size)
            os.fdatasync(self._file)
        except OSError as exc:
            self._cut()
            raise StorageError(f"{self.path} cannot be written: {exc.strerror or exc}") from exc
        self._size = offset
        self.entries += entries

    def close(self) -> None:
        """Close the file; batches that were read stay valid. Can be called more than once."""
        super().close()
        if self._file >= 0:
            if self._room > self._size:
                self._cut()
            os.close(self._file)
            self._file = -1

    def _mapped(self, end: int) -> mmap.mmap:
        return mmap.mmap(self._file, self._size, access=mmap.ACCESS_READ)

    def _allocate(self, end: int) -> None:
        """Have room up to an offset, if the disk has any to spare."""
        if end > self._room:
            room = end + min(end, ROOM)  # as much again, so that a small log stays small
            with contextlib.suppress(OSError):  # a write that finds none says so
                os.posix_fallocate(self._file, self._size, room - self._size)
                self._room = room

    def _cut(self) -> None:
        """Cut off what follows the last whole record."""
        with contextlib.suppress(OSError):  # it is cut off when the file is opened again
            os.ftruncate(self._file, self._size)
        self._room = self._size

    def _recover(self) -> int:
        """Read all records and cut off a torn one at the end; return the end of the last whole one."""
        total = os.fstat(self._file).st_size
        offset = 0
        while offset < total:
            entry = self._recover_record(offset, total)
            if entry is None:
                break
            self.entries.append(entry)
            offset = entry.end
        if self.last < self._least:
            raise DamageError(
                f"{self.path}: batch {self.last + 1}, at byte {offset}, is damaged or missing, but batch "
                f"{self._least} was trained on; restore the file from a backup or delete the session"
            )
        if offset < total:
            torn = self._torn(offset, total)
            if torn:
                logger.warning("! %s: %d bytes after batch %d are cut off", self.path, torn, self.last)
            os.ftruncate(self._file, offset)
            os.fsync(self._file)
        return offset

    def _torn(self, damaged: int, total: int) -> int:
        """Return how many bytes from a damaged record on are more than room; 0 when all of them are zeros.

        Raises:
            DamageError: the record does not belong to the last group, which was never made durable.

        """
        with mmap.mmap(self._file, total, access=mmap.ACCESS_READ) as view:
            found = view.find(MAGIC, damaged + 1)
            while found >= 0:
                header = _parse_header(view[found : found + HEADER_SIZE])
                if header is not None and damaged < header[6] <= found:
                    raise DamageError(
                        f"{self.path}: batch {self.last + 1}, at byte {damaged}, is damaged, and others "
                        "follow it; restore the file from a backup or delete the session"
                    )
                found = view.find(MAGIC, found + 1)
            return len(view[damaged:].rstrip(b"\0"))

    def _recover_record(self, offset: int, total: int) -> Entry | None:
        header = _parse_header(os.pread(self._file, HEADER_SIZE, offset))
        if header is None:
            return None
        _, _, meta_size, payload_size, crc_meta, crc_payload, _ = header
        start = offset + HEADER_SIZE
        if start + meta_size + payload_size > total:
            return None
        meta = os.pread(self._file, meta_size, start)
        if crc32c.crc32c(meta) != crc_meta:
            return None
        if crc32c.crc32c(os.pread(self._file, payload_size, start + meta_size)) != crc_payload:
            return None
        values = msgpack.unpackb(meta)
        self._checked.add(values["seq"])
        return Entry(
            values["seq"],
            values["samples"],
            values["heldout"],
            tuple(values["lengths"]),
            offset,
            meta_size,
            payload_size,
            crc_payload,
            values.get("sent", crc_payload),
            any(tensor[0] >= EQUALIZERS for tensor in values["tensors"]),
        )


def _parse_header(data: bytes) -> tuple[Any, ...] | None:
    """Return the fields of a record's header; None when the bytes are none."""
    if len(data) < HEADER_SIZE or CRC.unpack_from(data, HEADER.size)[0] != crc32c.crc32c(data[: HEADER.size]):
        return None
    fields = HEADER.unpack_from(data)
    return fields if fields[:2] == (MAGIC, VERSION) else None


def _encode(batch: Batch, offset: int, group: int) -> tuple[Entry, list[bytes | memoryview]]:
    payloads = [memoryview(batch.payloads[tensor]).cast("B") for tensor in batch.headers]
    lengths = batch.lengths()
    values = {
        "seq": batch.seq,
        "samples": batch.samples,
        "heldout": batch.heldout,
        "lengths": lengths,
        "tensors": [
            [tensor, int(header.format), header.block, list(header.shape), header.equalizer]
            for tensor, header in batch.headers.items()
        ],
    }
    if batch.sent is not None:
        values["sent"] = batch.sent
    meta = msgpack.packb(values)
    checksum = 0
    for payload in payloads:
        checksum = crc32c.crc32c(payload, checksum)
    size = sum(payload.nbytes for payload in payloads)
    fields = HEADER.pack(MAGIC, VERSION, len(meta), size, crc32c.crc32c(meta), checksum, group)
    header = fields + CRC.pack(crc32c.crc32c(fields))
    entry = Entry(
        batch.seq,
        batch.samples,
        batch.heldout,
        tuple(lengths),
        offset,
        len(meta),
        size,
        checksum,
        checksum if batch.sent is None else batch.sent,
        any(tensor >= EQUALIZERS for tensor in batch.headers),
    )
    return entry, [header, meta, *payloads]


def _write_all(file: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """Write buffers one after the other with as few calls as the system allows."""
    views = [memoryview(buffer) for buffer in buffers]
    while views:
        count = os.pwritev(file, views[:MAX_BUFFERS], offset)
        offset += count
        done = 0
        while done < len(views) and count >= views[done].nbytes:
            count -= views[done].nbytes
            done += 1
        views = views[done:]
        if count:
            views[0] = views[0][count:]
