"""zstd frames made by hand (RFC 8878), right ones and others, without a compressor."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

__all__ = ["LONGEST", "Block", "raw", "repeated", "zstd_frame"]

MAGIC = b"\x28\xb5\x2f\xfd"
LONGEST = 1 << 17  # bytes that one block may hold
SINGLE_SEGMENT, CONTENT_CHECKSUM, SIZE_OF_8_BYTES, DICTIONARY_OF_1_BYTE = 0x20, 0x04, 0xC0, 0x01
SMALLEST_WINDOW = 10  # as a power of two


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One block of a frame.

    Attributes:
        kind: 0 for bytes as they are, 1 for one byte that is repeated; 3 does not exist.
        size: bytes that it stands for.
        content: what follows its header.

    """

    kind: int
    size: int
    content: bytes

    def encode(self, last: bool) -> bytes:
        """Return the block's bytes."""
        return struct.pack("<I", self.size << 3 | self.kind << 1 | last)[:3] + self.content


def raw(content: bytes) -> Block:
    """Return a block that holds bytes as they are."""
    return Block(0, len(content), content)


def repeated(byte: int, count: int) -> Block:
    """Return a block of 4 bytes that stands for ``count``."""
    return Block(1, count, bytes([byte]))


def zstd_frame(
    blocks: Sequence[Block],
    size: int | None,
    *,
    window: int | None = None,
    dictionary: int = 0,
    checksum: bytes = b"",
) -> bytes:
    """Return one frame.

    Args:
        blocks: what it holds.
        size: content size that it states; None states none, and needs a window.
        window: its binary logarithm; None: the window is the content.
        dictionary: number of the dictionary that it names; 0 names none.
        checksum: the four bytes of a content checksum; empty for none.

    """
    flags = SINGLE_SEGMENT if window is None else 0
    flags |= CONTENT_CHECKSUM if checksum else 0
    flags |= SIZE_OF_8_BYTES if size is not None else 0
    flags |= DICTIONARY_OF_1_BYTE if dictionary else 0
    header = b"" if window is None else bytes([(window - SMALLEST_WINDOW) << 3])
    header += bytes([dictionary]) if dictionary else b""
    header += b"" if size is None else struct.pack("<Q", size)
    body = b"".join(block.encode(number == len(blocks)) for number, block in enumerate(blocks, 1))
    return MAGIC + bytes([flags]) + header + body + checksum
