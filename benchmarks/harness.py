"""What all benchmarks share: the machine, and results as JSON."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from typing import Any

__all__ = ["machine", "write_json"]


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
