"""What all benchmarks share: timing, the machine, and results as JSON."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["machine", "measure", "write_json"]

# Larger than the last-level cache's share of a core: rewriting it evicts what a kernel left there.
EVICT = 64 * 2**20


def measure(work: Callable[[], Any], *, repeats: int, cold: bool = True) -> float:
    """Return the median seconds of the calling thread's CPU time for one call.

    CPU time leaves preemption out; memory bandwidth that others take is still in it.

    Args:
        work: called once to warm up, then ``repeats`` times.
        repeats: at least 1.
        cold: whether the caches are overwritten before each call.

    """
    work()
    scratch = np.zeros(EVICT, np.uint8)
    times = []
    for number in range(repeats):
        if cold:
            scratch.fill(number & 0xFF)
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """Describe the machine that the figures are from."""
    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def write_json(path: pathlib.Path | None, figures: dict[str, Any]) -> None:
    """Write figures with the machine they are from; None writes nothing."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
