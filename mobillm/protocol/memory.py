"""Memory for received payloads, used again once nobody holds it any more.

What was just allocated holds anything: the caller hands out only bytes that it has written. The extension
in C (``memory.c``) is optional; without it each payload has a new ``bytearray``.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["allocate"]


def _load() -> Any:
    try:
        return importlib.import_module("mobillm.protocol._memory")
    except ImportError:
        return None


_extension = _load()


def allocate(size: int) -> memoryview:
    """Return writable memory that nobody else has.

    At most 32 MiB of the process's memory are kept for this when nobody holds them.

    Args:
        size: bytes, at least 1.

    """
    return memoryview(bytearray(size) if _extension is None else _extension.allocate(size))
