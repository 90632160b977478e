"""Tests of mobillm.conformance.zstd."""

from __future__ import annotations

import zstandard

from mobillm.conformance.server_cases.compression import BYTE, GOOD, SIZE
from mobillm.conformance.zstd import LONGEST, raw, repeated, zstd_frame


def test_frames_by_hand() -> None:
    """They are frames to the library too, with what they state."""
    assert zstandard.ZstdDecompressor().decompress(GOOD) == bytes([BYTE]) * SIZE
    both = zstd_frame([raw(b"ab"), repeated(7, 3)], 5, window=12, dictionary=9, checksum=b"wxyz")
    stated = zstandard.get_frame_parameters(both)
    assert (stated.content_size, stated.window_size, stated.dict_id) == (5, 4096, 9)
    assert stated.has_checksum
    assert zstandard.get_frame_parameters(zstd_frame([raw(b"")], None, window=10)).content_size == 2**64 - 1


def test_small_frames_of_much() -> None:
    """Blocks of four bytes stand for 128 KiB each."""
    bomb = zstd_frame([repeated(0, LONGEST)] * 8, 8 * LONGEST, window=17)
    assert len(bomb) < 50
    assert zstandard.ZstdDecompressor().decompress(bomb) == bytes(8 * LONGEST)
