"""Memory that a thread keeps between calls, so that large temporaries are not mapped anew each time."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KEPT", "Workspace", "aligned"]

KEPT = 8 << 20  # bytes of the largest buffer that is kept
_LINE = 64  # bytes
_SHAPES = 64  # arrays that are remembered: making one takes longer than a step on a thousand values


def aligned(size: int) -> npt.NDArray[np.uint8]:
    """Return new memory of ``size`` bytes that begins with a line of the cache.

    Vectors that lie across two lines take longer, and only whole lines can be written past the caches.
    """
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


class Workspace(threading.local):
    """Buffers by name, one set for each thread.

    A buffer grows to the largest size that was asked for, at most :data:`KEPT`, and stays until its
    thread ends; what is larger is not kept. What a buffer holds is valid until the same name is taken
    again; nothing that outlives a call may point into one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}
        self._arrays: dict[tuple[str, tuple[int, ...], Any], npt.NDArray[Any]] = {}

    @property
    def size(self) -> int:
        """Bytes that the calling thread's buffers take."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Return the calling thread's buffer of that name as an array; its content is arbitrary."""
        array = self._arrays.get((name, shape, dtype))
        return self._make(name, shape, dtype) if array is None else array

    def _make(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > KEPT:
            return np.empty(shape, dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = aligned(size)
            self._arrays.clear()  # some are of the memory that this one replaces
        elif len(self._arrays) >= _SHAPES:
            self._arrays.clear()
        array: npt.NDArray[Any] = buffer[:size].view(dtype).reshape(shape)
        self._arrays[name, shape, dtype] = array
        return array
