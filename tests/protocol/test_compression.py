"""Tests of mobillm.protocol.compression."""

from __future__ import annotations

import dataclasses
import os
import tracemalloc
from typing import Any

import pytest
import zstandard

from mobillm.conformance.zstd import LONGEST, Block, raw, repeated, zstd_frame
from mobillm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from mobillm.protocol import Data, compress, decompress
from mobillm.protocol.compression import compressed_sizes
from tests.helpers import EndpointPair, closing, make_data, wire_bytes

PACKED = os.urandom(3000) + bytes(range(8)) * 1000
RUNS = [repeated(7, 1000) for _ in range(4)]


def test_round_trip() -> None:
    """[Z-1] [Z-6] [Z-9] A tensor comes back from one frame, which states its size."""
    frame = compress(memoryview(PACKED))
    assert frame is not None
    assert len(frame) in compressed_sizes(len(PACKED))
    assert zstandard.frame_content_size(frame) == len(PACKED)
    assert bytes(decompress(frame, len(PACKED))) == PACKED
    assert bytes(decompress(bytes(frame), len(PACKED))) == PACKED
    assert bytes(decompress(frame.toreadonly(), len(PACKED))) == PACKED


@pytest.mark.parametrize(
    ("packed", "sent"),
    [(os.urandom(4000), False), (bytes(4000), False), (os.urandom(2000) + bytes(2000), True), (b"x", False)],
    ids=["no smaller", "below a quarter", "about half", "one byte"],
)
def test_what_is_not_worth_it_goes_as_it_is(packed: bytes, sent: bool) -> None:
    """[Z-4] [Z-5] A frame is used only where its size is allowed."""
    assert (compress(memoryview(packed)) is not None) is sent


def test_allowed_sizes() -> None:
    """[Z-4] From a quarter, rounded up, to one byte less than the packed tensor."""
    assert compressed_sizes(100) == range(25, 100)
    assert compressed_sizes(101) == range(26, 101)
    assert compressed_sizes(4) == range(1, 4)
    assert len(compressed_sizes(1)) == 0


@pytest.mark.parametrize(
    "frame",
    [
        zstd_frame(RUNS, 4000),
        zstd_frame([raw(bytes([7])), repeated(7, 3999)], 4000),
        zstd_frame(RUNS, 4000, window=10),
        zstd_frame(RUNS, 4000, window=23),
        zstandard.ZstdCompressor(write_checksum=True).compress(bytes([7]) * 4000),
        zstandard.ZstdCompressor(level=19).compress(bytes([7]) * 4000),
    ],
    ids=["runs", "two kinds of blocks", "1 KiB window", "8 MiB window", "content checksum", "another level"],
)
def test_frames_of_other_senders(frame: bytes) -> None:
    """[Z-1] [Z-7] [Z-9] Any frame of the right content is read, whoever has made it."""
    assert bytes(decompress(frame, 4000)) == bytes([7]) * 4000


def test_a_large_tensor_may_have_its_own_window() -> None:
    """[Z-7] A frame whose window is its content is read, however large."""
    size = 80 * LONGEST
    frame = zstd_frame([repeated(1, LONGEST)] * 79 + [repeated(2, LONGEST)], size)
    assert bytes(decompress(frame, size)[-LONGEST - 1 : -LONGEST + 1]) == b"\1\2"


WRONG = {
    "empty": (b"", "no header"),
    "four bytes": (zstd_frame(RUNS, 4000)[:4], "no header"),
    "half a header": (zstd_frame(RUNS, 4000)[:9], "no header"),
    "another magic": (b"\x29" + zstd_frame(RUNS, 4000)[1:], "no header"),
    "a skippable frame": (b"\x50\x2a\x4d\x18" + (4000).to_bytes(4, "little") + bytes(4000), "another frame"),
    "no content size": (zstd_frame(RUNS, None, window=12), "states"),
    "a byte less": (zstd_frame(RUNS, 3999), "states 3999 bytes of content; the packed tensor has 4000"),
    "a byte more": (zstd_frame(RUNS, 4001), "states 4001"),
    "nothing": (zstd_frame([raw(b"")], 0), "states 0"),
    "2^64 - 2 bytes": (zstd_frame(RUNS, 2**64 - 2), "states 18446744073709551614"),
    "a window of 16 MiB": (zstd_frame(RUNS, 4000, window=24), "of 16777216 bytes; the limit is 8388608"),
    "a window of 1 GiB": (zstd_frame(RUNS, 4000, window=30), "has a window of"),
    "a window beyond the library's": (zstd_frame(RUNS, 4000, window=40), "no header"),
    "a dictionary": (zstd_frame(RUNS, 4000, dictionary=9), "needs the dictionary 9"),
    "too much content": (zstd_frame([*RUNS, repeated(7, 1)], 4000), "is damaged"),
    "too little content": (zstd_frame(RUNS[1:], 4000), "is damaged"),
    "the end cut off": (zstd_frame(RUNS, 4000)[:-1], "is damaged"),
    "a byte behind": (zstd_frame(RUNS, 4000) + b"\0", "is damaged"),
    "a second frame": (zstd_frame(RUNS, 4000) * 2, "is damaged"),
    "an empty frame behind": (zstd_frame(RUNS, 4000) + zstd_frame([raw(b"")], 0), "is damaged"),
    "a skippable frame behind": (zstd_frame(RUNS, 4000) + b"\x50\x2a\x4d\x18" + bytes(4), "is damaged"),
    "a wrong checksum": (zstd_frame(RUNS, 4000, checksum=b"none"), "is damaged"),
    "a block that does not exist": (zstd_frame([*RUNS[1:], Block(3, 1000, b"")], 4000), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_refused(name: str) -> None:
    """[Z-6] [Z-7] [Z-8] [Z-9] [Z-10] [M-7] DECOMPRESS, and a text that says why in numbers."""
    frame, text = WRONG[name]
    with pytest.raises(RemoteProtocolError, match=f"^DECOMPRESS: a compressed tensor .*{text}") as caught:
        decompress(frame, 4000)
    assert caught.value.code == ErrorCode.DECOMPRESS


@pytest.mark.parametrize("stated", [1 << 30, 4000, None], ids=["stated", "denied", "not stated"])
def test_a_bomb_allocates_nothing(stated: int | None) -> None:
    """[Z-6] 33 KB that stand for 1 GiB are refused before anything of the kind is allocated."""
    bomb = zstd_frame([repeated(0, LONGEST)] * 8192, stated, window=17)
    assert len(bomb) < 33_000
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decompress(bomb, 4000)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


def test_any_bytes_are_a_tensor_or_a_documented_refusal() -> None:
    """[Z-10] A frame with any one byte changed gives the right number of bytes, or DECOMPRESS."""
    frame = bytes(compress(memoryview(PACKED)) or b"")
    found: set[int] = set()
    for place in [*range(40), *range(40, len(frame), 97), len(frame) - 1]:
        wrong = bytearray(frame)
        wrong[place] ^= 0x41
        try:
            found.add(len(decompress(bytes(wrong), len(PACKED))))
        except RemoteProtocolError as exc:
            found.add(-exc.code)
    assert found == {len(PACKED), -ErrorCode.DECOMPRESS}


def first_part(zstd: int) -> Data:
    """Return the first part of a tap of 100 bytes."""
    return dataclasses.replace(make_data(1, 0, bytes(8), values=25), zstd=zstd)


def joined(caps: tuple[str, ...]) -> EndpointPair:
    """Return an attached pair with these capabilities on both sides."""
    pair = EndpointPair(caps=caps)
    pair.pump()
    pair.forget()
    pair.attach()
    return pair


def test_both_ends_have_to_name_it() -> None:
    """[Z-1] [Z-2] [V-5] [V-13] A compressed tap passes where CHALLENGE names zstd, and nowhere else."""
    pair = joined(("other", "zstd"))
    pair.device.send(first_part(50))
    pair.pump()
    assert [getattr(event, "zstd", None) for event in pair.server_events] == [50]
    for caps in ((), ("other",)):
        pair = joined(caps)
        with pytest.raises(LocalProtocolError, match="tap 0 is compressed, which CHALLENGE does not allow"):
            pair.device.send(first_part(50))
        pair.server.receive_data(wire_bytes(first_part(50)))
        assert closing(pair.server) == (RemoteProtocolError, ErrorCode.SCHEMA_MISMATCH)


def test_sizes_are_checked_on_both_ends() -> None:
    """[Z-4] A device does not send what a server refuses."""
    pair = joined(("zstd",))
    with pytest.raises(LocalProtocolError, match="allowed are 25 to 99"):
        pair.device.send(first_part(24))
    pair.server.receive_data(wire_bytes(first_part(24)))
    assert closing(pair.server) == (RemoteProtocolError, ErrorCode.DECOMPRESS)


@pytest.mark.parametrize("changes", [{"tensor": 1000}, {"tensor": 2000}, {"offset": 8}])
def test_only_the_first_part_of_a_tap_says_it(changes: dict[str, Any]) -> None:
    """[Z-2] Lengths, targets, equalizers and later parts have no zstd."""
    if "offset" in changes:
        changes = changes | {"format": None, "block": None, "shape": None}
    with pytest.raises(ValueError, match="zstd in the first part of a tap only"):
        dataclasses.replace(first_part(50), **changes)
