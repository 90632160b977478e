"""Entropy coding of packed tensors: one zstd frame in the place of the packed bytes.

``docs/protocol.md``, section "Compression". The size of what comes out is known before anything is
decompressed: the tensor's header gives it, and the frame has to state the same.
"""

from __future__ import annotations

import zstandard

from ..errors import ErrorCode, RemoteProtocolError

__all__ = ["CAPABILITY", "EXPANSION", "compress", "compressed_sizes", "decompress"]

CAPABILITY = "zstd"
EXPANSION = 4  # most times that a tensor is larger than its frame: credit counts the frame, memory the tensor

LEVEL = 1  # higher levels take several times as long and leave as many bytes
MAGIC = b"\x28\xb5\x2f\xfd"  # of a frame; skippable and older ones begin otherwise
WINDOW = 8 << 20  # bytes that each decoder is ready to look back (RFC 8878, 3.1.1.1.2)


def compressed_sizes(size: int) -> range:
    """Return the sizes that the frame of a packed tensor of ``size`` bytes may have."""
    return range(-(-size // EXPANSION), size)


def compress(packed: memoryview) -> memoryview | None:
    """Return the frame of a packed tensor, or None where it has to be sent as it is.

    Other threads run meanwhile.
    """
    # The sizes of both are in the tensor's header, and frames have a checksum of their own.
    frame = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(packed)
    return memoryview(frame) if len(frame) in compressed_sizes(packed.nbytes) else None


def decompress(frame: bytes | memoryview, size: int) -> memoryview:
    """Return the packed tensor of a frame that a peer has sent; other threads run meanwhile.

    No more than ``size`` bytes are allocated for it, and none before its header was found right.

    Args:
        frame: the whole payload of the tensor.
        size: bytes of the packed tensor.

    Raises:
        RemoteProtocolError: it is not one zstd frame of exactly that content; the text holds numbers only.

    """
    try:
        stated = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError:
        raise _refused("has no header of a zstd frame that can be decoded") from None
    if bytes(frame[: len(MAGIC)]) != MAGIC:
        raise _refused("begins with another frame than one of zstd")
    # The library allocates what the frame states: without this, gigabytes for a frame of kilobytes.
    if stated.content_size != size:
        raise _refused(f"states {stated.content_size} bytes of content; the packed tensor has {size}")
    if stated.window_size > max(size, WINDOW):
        raise _refused(f"has a window of {stated.window_size} bytes; the limit is {max(size, WINDOW)}")
    if stated.dict_id:
        raise _refused(f"needs the dictionary {stated.dict_id}; none may be used")
    try:
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        raise _refused(f"of {len(frame)} bytes is damaged, or not one frame of {size} bytes") from None
    return memoryview(content)


def _refused(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.DECOMPRESS, f"a compressed tensor {what}")
