from __future__ import annotations

import concurrent.futures

import numpy as np

from mobillm.kernels.workspace import KEPT, Workspace, aligned


def test_a_buffer_is_used_again_and_grows() -> None:
    """The same name gives the same memory until a larger size is asked for."""
    workspace = Workspace()
    first = workspace.take("a", (4, 8), np.float32)
    assert first.shape == (4, 8)
    assert first.dtype == np.float32
    assert np.shares_memory(first, workspace.take("a", (16,), np.uint64))
    assert workspace.size == 128
    workspace.take("a", (1000,), np.uint8)
    assert workspace.size == 1000


def test_names_do_not_share_memory() -> None:
    """Two buffers can be in use at once."""
    workspace = Workspace()
    assert not np.shares_memory(workspace.take("a", (8,), np.uint8), workspace.take("b", (8,), np.uint8))


def test_large_buffers_are_not_kept() -> None:
    """One large tensor does not pin memory for the life of the thread."""
    workspace = Workspace()
    large = workspace.take("a", (KEPT + 1,), np.uint8)
    assert large.size == KEPT + 1
    assert workspace.size == 0


def test_each_thread_has_its_own() -> None:
    """Threads never write to each other's buffers."""
    workspace = Workspace()
    mine = workspace.take("a", (8,), np.uint8)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(workspace.take, "a", (8,), np.uint8).result()
    assert not np.shares_memory(mine, theirs)


def test_memory_begins_with_a_line() -> None:
    """New memory has the size that was asked for, at an address that is a multiple of 64."""
    assert aligned(0).nbytes == 0  # which begins nowhere
    for size in (1, 64, 1000):
        memory = aligned(size)
        assert memory.nbytes == size
        assert memory.ctypes.data % 64 == 0
    assert Workspace().take("a", (3, 5), np.float32).ctypes.data % 64 == 0


def test_an_array_is_made_once_for_each_shape() -> None:
    """Arrays are remembered until their buffer grows, and never so many that they pile up."""
    workspace = Workspace()
    first = workspace.take("a", (1000,), np.uint8)
    assert workspace.take("a", (1000,), np.uint8) is first
    assert workspace.take("a", (1000,), np.int8) is not first
    for length in range(1, 200):
        assert workspace.take("a", (length,), np.uint8).shape == (length,)
    assert np.shares_memory(workspace.take("a", (1000,), np.uint8), first)
    large = workspace.take("a", (2000,), np.uint8)
    assert np.shares_memory(workspace.take("a", (1000,), np.uint8), large)
