"""Tests of mobillm.protocol.memory."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from mobillm.protocol import memory
from mobillm.protocol.memory import allocate

extension: Any = memory._extension
needs_extension = pytest.mark.skipif(extension is None, reason="the C extension was not built")
SIZE = 300_000


@pytest.mark.parametrize("size", [1, 4096, SIZE])
def test_memory_is_ones_own(size: int) -> None:
    """What is alive shares no byte, and every byte can be written."""
    blocks = [allocate(size) for _ in range(5)]
    for number, block in enumerate(blocks):
        assert (block.nbytes, block.format, block.readonly) == (size, "B", False)
        block[:] = bytes([number]) * size
    assert [set(block) for block in blocks] == [{0}, {1}, {2}, {3}, {4}]


@needs_extension
def test_it_is_used_again_once_nobody_looks() -> None:
    """A part of it keeps the whole alive; then the last block that was left is the first to be used."""
    block = allocate(SIZE)
    block[:4] = b"mine"
    part = block[100:200]
    del block
    others = [allocate(SIZE) for _ in range(3)]
    for other in others:
        other[:] = b"\xff" * SIZE
    assert b"\xff" not in bytes(part)
    before = extension.kept()
    del part
    assert extension.kept() == before + SIZE
    again = allocate(SIZE - SIZE // 20)
    assert bytes(again[:4]) == b"mine"
    assert extension.kept() == before
    del again
    del other
    assert allocate(SIZE // 2).nbytes == SIZE // 2  # a block twice as large is no match
    assert extension.kept() >= SIZE


@needs_extension
def test_what_is_kept_is_bounded() -> None:
    """However much was held at once, and however small it was."""
    gc.collect()  # blocks of other tests that are released meanwhile would be kept, too
    blocks = [allocate(1 << 20) for _ in range(40)]
    del blocks
    # Blocks of other sizes that were there before may leave no room for a last one.
    assert extension.BOUND - (1 << 20) < extension.kept() <= extension.BOUND
    small = [allocate(10_000) for _ in range(1000)]
    del small
    assert 0 < extension.kept() <= 512 * 10_000 + 10_000
    huge = allocate(extension.BOUND + 1)
    del huge
    assert extension.kept() <= 512 * 10_000 + 10_000


@needs_extension
@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_wrong_sizes(size: Any, error: type[Exception]) -> None:
    """A size is a positive integer."""
    with pytest.raises(error):
        extension.allocate(size)
    with pytest.raises(TypeError):
        type(extension.allocate(1))()
    with pytest.raises(MemoryError):
        extension.allocate(sys.maxsize)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was not built, memory is a bytearray."""
    monkeypatch.setitem(sys.modules, "mobillm.protocol._memory", None)
    monkeypatch.setattr(memory, "_extension", memory._load())
    view = allocate(5)
    assert type(view.obj) is bytearray
    assert len(view) == 5
