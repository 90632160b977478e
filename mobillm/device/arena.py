"""How the C library hands out memory in a device's process."""

from __future__ import annotations

import ctypes

__all__ = ["share_arena"]

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_arena() -> bool:
    """Let all threads take memory from one arena.

    With glibc each thread has one of its own, which keeps what was freed in it: up to a twentieth of what a
    device needs for SmolLM2-135M. It holds for the whole process, so it is up to programs, not to the
    library; those that call it do so before they start threads.

    Returns:
        whether the C library has arenas and took the setting (mallopt(3)).

    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, 1) == 1
