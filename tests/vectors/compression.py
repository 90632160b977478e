"""Vectors of compressed tensors: zstd frames by hand, from RFC 8878 and ``docs/protocol.md`` alone."""

from __future__ import annotations

import struct

from tests.vectors.wire import Case

__all__ = ["compressed"]

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x50\x2a\x4d\x18"
RAW, RUN, RESERVED = 0, 1, 3
SIZE = 60
DECOMPRESS = 14

# Kind, bytes that it stands for, and what follows the three bytes of its header.
Block = tuple[int, int, bytes]
RUNS: list[Block] = [(RUN, 20, b"\x3c"), (RUN, 30, b"\x41"), (RUN, 10, b"\x3c")]
CONTENT = b"\x3c" * 20 + b"\x41" * 30 + b"\x3c" * 10


def _frame(
    blocks: list[Block],
    size: int | None,
    *,
    window: int | None = None,
    ids: bytes = b"",
    checksum: bytes = b"",
) -> bytes:
    """Return a frame; ``window`` is a binary logarithm, None has one segment, as large as the content."""
    flags = (0x20 if window is None else 0) | (4 if checksum else 0) | {0: 0, 1: 1, 2: 2, 4: 3}[len(ids)]
    head = b"" if window is None else bytes([(window - 10) << 3])
    head += ids
    if size is not None and size < 256 and window is None:
        head += bytes([size])
    elif size is not None:
        flags |= 0xC0
        head += struct.pack("<Q", size)
    body = b""
    for number, (kind, count, content) in enumerate(blocks, 1):
        body += (count << 3 | kind << 1 | (number == len(blocks))).to_bytes(3, "little") + content
    return MAGIC + bytes([flags]) + head + body + checksum


def compressed() -> list[Case]:
    """Return frames with the packed size, and their content or the code of a refusal."""
    good = _frame(RUNS, SIZE)
    read = [
        ("runs", ["Z-1", "Z-6", "Z-9"], "three blocks of one byte each", good),
        ("mixed", ["Z-1"], "bytes as they are, then runs",
         _frame([(RAW, 3, CONTENT[:3]), (RUN, 17, b"\x3c"), *RUNS[1:]], SIZE)),
        ("window-1-kib", ["Z-7"], "a window of 1 KiB", _frame(RUNS, SIZE, window=10)),
        ("window-8-mib", ["Z-7"], "a window of 8 MiB", _frame(RUNS, SIZE, window=23)),
        ("dictionary-0", ["Z-8"], "the dictionary 0, which is none", _frame(RUNS, SIZE, ids=b"\0")),
        ("last-empty", ["Z-9"], "an empty last block", _frame([*RUNS, (RAW, 0, b"")], SIZE)),
    ]  # fmt: skip
    wrong = [
        ("no-size", ["Z-6"], "no content size", _frame(RUNS, None, window=12)),
        ("size-low", ["Z-6"], "a content size one too low", _frame(RUNS, SIZE - 1)),
        ("size-high", ["Z-6"], "a content size one too high", _frame(RUNS, SIZE + 1)),
        ("size-1-gib", ["Z-6"], "a content size of 1 GiB", _frame(RUNS, 1 << 30)),
        ("bomb", ["Z-6"], "a content of 1 MiB that states 60 bytes",
         _frame([(RUN, 1 << 17, b"\0")] * 8, SIZE)),
        ("content-short", ["Z-6"], "less content than it states", _frame(RUNS[1:], SIZE)),
        ("window-16-mib", ["Z-7"], "a window of 16 MiB", _frame(RUNS, SIZE, window=24)),
        ("dictionary-7", ["Z-8"], "the dictionary 7", _frame(RUNS, SIZE, ids=b"\7\0\0\0")),
        ("trailing", ["Z-9"], "a byte behind the frame", good + b"\0"),
        ("two-frames", ["Z-9"], "a second frame", _frame(RUNS[:2], 50) + _frame(RUNS[2:], 10)),
        ("twice", ["Z-9"], "the frame twice", good * 2),
        ("skippable-first", ["Z-9"], "a skippable frame ahead", SKIPPABLE + bytes(4) + good),
        ("skippable-last", ["Z-9"], "a skippable frame behind", good + SKIPPABLE + bytes(4)),
        ("skippable-alone", ["Z-9"], "a skippable frame of 60 bytes",
         SKIPPABLE + SIZE.to_bytes(4, "little") + bytes(SIZE)),
        ("checksum", ["Z-9"], "a wrong content checksum", _frame(RUNS, SIZE, checksum=b"none")),
        ("cut", ["Z-10"], "the last byte missing", good[:-1]),
        ("magic", ["Z-10"], "another magic", b"\0" + good[1:]),
        ("packed", ["Z-10"], "packed bytes", CONTENT[:-1]),
        ("reserved-block", ["Z-10"], "a block of the reserved kind",
         _frame([*RUNS[:2], (RESERVED, 10, b"\x3c")], SIZE)),
        ("empty", ["Z-10"], "nothing", b""),
    ]  # fmt: skip
    cases: list[Case] = []
    for name, rules, words, data in read:
        case = {"name": name, "rules": rules, "words": words, "size": SIZE, "bytes": data.hex()}
        cases.append(case | {"content": CONTENT.hex()})
    for name, rules, words, data in wrong:
        case = {"name": name, "rules": rules, "words": words, "size": SIZE, "bytes": data.hex()}
        cases.append(case | {"code": DECOMPRESS})
    return cases
