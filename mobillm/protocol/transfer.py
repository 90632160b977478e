"""What is under way on a stream: the open batch and the open blob.

Both ends run these checks, the sender before a frame leaves and the receiver after it came.
``docs/protocol.md``, section "Batches". A broken rule is a :exc:`TransferError`, which the endpoint
turns into the local or the remote error.
"""

from __future__ import annotations

from ..errors import ErrorCode
from .checksum import append
from .compression import compressed_sizes
from .session import Abort, Blob, Commit, Data, Weights
from .tensors import tensor_name

__all__ = ["BatchTransfer", "FileTransfer", "TransferError"]


class TransferError(ValueError):
    """A rule was broken; holds the code that goes on the wire."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class BatchTransfer:
    """Order and size of the parts of one batch after another.

    A batch's tensors are sent one after another, each in parts that follow one another without a gap.

    Args:
        limit: largest batch, packed, in bytes.
        compression: whether tensors may be compressed.

    """

    def __init__(self, limit: int, compression: bool = False) -> None:
        self.limit = limit
        self.compression = compression
        self._reset(0)

    def _reset(self, seq: int) -> None:
        self.seq = seq  # the open batch; 0 means none
        self._seen: set[int] = set()
        self._tensor = -1
        self._offset = 0  # bytes of the open tensor so far
        self._total = 0  # bytes of the open tensor, as it is sent
        self._size = 0  # packed bytes of all tensors that were begun
        self._checksum = 0

    def data(self, message: Data) -> None:
        """Check and count one part of a tensor."""
        if self.seq not in (0, message.seq):
            raise TransferError(
                ErrorCode.PROTOCOL, f"batch {message.seq} begins before batch {self.seq} ended"
            )
        begins = message.shape is not None
        total = self._check_begin(message) if begins else self._check_continuation(message)
        end = message.offset + len(message.payload)
        if end > total:
            raise _wrong_size(message.tensor, total, end)
        # Nothing fails from here on, so a part that was refused has changed nothing.
        if begins:
            self._seen.add(message.tensor)
            self._size += message.header().size
        self.seq, self._tensor, self._offset, self._total = message.seq, message.tensor, end, total
        self._checksum = append(self._checksum, message.payload, message.payload_checksum())

    def _check_begin(self, message: Data) -> int:
        self._check_end()
        if message.tensor in self._seen:
            raise TransferError(ErrorCode.PROTOCOL, f"{tensor_name(message.tensor)} was sent twice")
        size = message.header().size
        if self._size + size > self.limit:
            raise TransferError(
                ErrorCode.LIMIT,
                f"batch {message.seq} has {self._size + size} bytes or more; the limit is {self.limit}",
            )
        if message.zstd is None:
            return size
        if not self.compression:
            raise TransferError(
                ErrorCode.SCHEMA_MISMATCH,
                f"{tensor_name(message.tensor)} is compressed, which CHALLENGE does not allow",
            )
        sizes = compressed_sizes(size)
        if message.zstd not in sizes:
            raise TransferError(
                ErrorCode.DECOMPRESS,
                f"{tensor_name(message.tensor)} is compressed to {message.zstd} of {size} bytes; "
                f"allowed are {sizes.start} to {size - 1}",
            )
        return message.zstd

    def _check_continuation(self, message: Data) -> int:
        if (message.tensor, message.offset) != (self._tensor, self._offset):
            raise TransferError(
                ErrorCode.PROTOCOL,
                f"{tensor_name(message.tensor)} does not continue at {message.offset}; parts come in order",
            )
        return self._total

    def _check_end(self) -> None:
        if self._offset != self._total:
            raise _wrong_size(self._tensor, self._total, self._offset)

    def commit(self, message: Commit) -> None:
        """Check that the batch is whole, and close it."""
        if not self.seq or self.seq != message.seq:
            raise TransferError(ErrorCode.PROTOCOL, f"COMMIT of batch {message.seq}, which is not open")
        self._check_end()
        seen = (len(self._seen), self._size, self._checksum)
        said = (message.tensors, message.size, message.checksum)
        if seen != said:
            raise TransferError(
                ErrorCode.SCHEMA_MISMATCH,
                f"batch {self.seq}: COMMIT says tensors, bytes, checksum {said}; received were {seen}",
            )
        self._reset(0)

    def abort(self, message: Abort) -> None:
        """Forget the open batch; an ABORT of any other batch changes nothing."""
        if self.seq == message.seq:
            self._reset(0)

    def finish(self) -> None:
        """Check that no batch is open, since none could end any more."""
        if self.seq:
            raise TransferError(ErrorCode.PROTOCOL, f"FINISH while batch {self.seq} is open")

    def summary(self) -> tuple[int, int, int]:
        """Return tensors, bytes and checksum of the open batch, as COMMIT states them."""
        return len(self._seen), self._size, self._checksum


def _wrong_size(tensor: int, total: int, sent: int) -> TransferError:
    return TransferError(
        ErrorCode.SCHEMA_MISMATCH, f"{tensor_name(tensor)} has {total} bytes by its header; {sent} were sent"
    )


class FileTransfer:
    """Order of the parts of one blob, or of one file of weights, after another.

    Args:
        limit: largest file, in bytes.

    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._file: tuple[bytes, int, int] = (b"", 0, 0)  # what is the same in all parts
        self._offset = 0

    def part(self, message: Blob | Weights) -> None:
        """Check and count one part."""
        steps = message.steps if isinstance(message, Weights) else 0
        file = (message.digest, message.total, steps)
        if message.offset == 0 and self._offset == self._file[1]:
            if message.total > self.limit:
                raise TransferError(
                    ErrorCode.LIMIT,
                    f"a file of {message.total} bytes; the receiver takes {self.limit} (its limits.blob)",
                )
            self._file, self._offset = file, 0
        if file != self._file or message.offset != self._offset:
            raise TransferError(
                ErrorCode.PROTOCOL,
                f"{message.type.name} part at {message.offset}; expected the part at {self._offset} "
                "of the file that was begun",
            )
        self._offset += len(message.payload)
