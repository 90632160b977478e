"""Memory that a thread keeps between calls, so that large temporaries are not mapped anew each time."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KEPT", "Workspace"]

KEPT = 8 << 20  # bytes of the largest buffer that is kept


class Workspace(threading.local):
    """Buffers by name, one set for each thread.

    A buffer grows to the largest size that was asked for, at most :data:`KEPT`, and stays until its
    thread ends; what is larger is not kept. What a buffer holds is valid until the same name is taken
    again; nothing that outlives a call may point into one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    @property
    def size(self) -> int:
        """Bytes that the calling thread's buffers take."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Return the calling thread's buffer of that name as an array; its content is arbitrary."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > KEPT:
            return np.empty(shape, dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.uint8)
        array: npt.NDArray[Any] = buffer[:size].view(dtype).reshape(shape)
        return array
