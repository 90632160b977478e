"""What all benchmarks share: the machine, and results as JSON."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from typing import Any

__all__ = ["machine", "peak_bytes", "write_json"]

# Instruction sets that figures depend on, as /proc/cpuinfo calls them; the widest one that is there is named.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")


def machine() -> dict[str, Any]:
    """Describe the machine that the figures are from."""
    model, widest = platform.processor(), None
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        names = [line for line in text.splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
        words = set(text.split())
        widest = next((name for name in INSTRUCTIONS if name in words), None)
    return {
        "cpu": model,
        "instructions": widest,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def peak_bytes() -> int:
    """Return this process's peak of resident memory (VmHWM counts from its exec on)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status holds no VmHWM")


def write_json(path: pathlib.Path | None, figures: dict[str, Any]) -> None:
    """Write figures with the machine they are from; None writes nothing."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
