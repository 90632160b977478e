"""How fast are quantize-and-pack and its inverse, against a copy of the same tensor?

``python -m benchmarks.kernels --json kernels.json``. One thread, cold caches, median of repeats; the copy
is measured in the same run. Keys: ``encode.<format>.vs_memcpy`` and ``decode.<format>.vs_memcpy``, with
``numpy.`` before the format for the backend without torch.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import measure, write_json
from mobillm import kernels
from mobillm.formats import Format
from mobillm.kernels import torch_backend

SHAPE = (16, 256, 576)
FORMATS = (
    Format.ASYM2,
    Format.ASYM3,
    Format.ASYM4,
    Format.ASYM5,
    Format.ASYM6,
    Format.ASYM8,
    Format.NF4,
    Format.F16,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all formats and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    array = np.random.default_rng(0).normal(scale=2.0, size=SHAPE).astype(np.float32)
    tensor = torch.from_numpy(array)
    copy = torch.empty_like(tensor)
    baseline = measure(lambda: copy.copy_(tensor), repeats=args.repeats)
    figures: dict[str, float] = {"memcpy.gb_per_s": array.nbytes / baseline / 1e9}
    table = Table(title=f"{SHAPE}, fp32, times the speed of memcpy ({figures['memcpy.gb_per_s']:.1f} GB/s)")
    for column in ("format", "encode", "decode"):
        table.add_column(column)
    backends: tuple[tuple[str, Any, Any], ...] = (("", torch_backend, tensor), ("numpy.", kernels, array))
    for prefix, backend, values in backends:
        for fmt in FORMATS:
            name = prefix + fmt.name.lower()
            packed = backend.quantize(values, fmt)
            encode = measure(partial(backend.quantize, values, fmt), repeats=args.repeats)
            decode = measure(partial(backend.dequantize, packed, fmt, SHAPE), repeats=args.repeats)
            figures[f"encode.{name}.vs_memcpy"] = baseline / encode
            figures[f"decode.{name}.vs_memcpy"] = baseline / decode
            table.add_row(name, f"{baseline / encode:.2f}", f"{baseline / decode:.2f}")
    Console().print(table)
    write_json(args.json, {"shape": list(SHAPE), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
