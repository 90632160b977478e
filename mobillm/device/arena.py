"""How the C library hands out memory in a device's process, and how much it came to."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

__all__ = ["peak_bytes", "share_arena"]

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


def peak_bytes() -> int:
    """Return the most resident memory of this process so far.

    Where the system keeps it apart (proc(5)) what getrusage(2) says is not asked: it may be that of the
    process which started this one.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
