"""How fast are quantize-and-pack and its inverse, against a copy of the same tensor and against others?

``python -m benchmarks.kernels --json kernels.json``. One thread, cold caches, median of repeats; each work is
measured in turn with a copy of the same tensor, and all figures are ratios to that copy. Keys:
``encode.<format>.vs_memcpy``, ``decode.<format>.vs_memcpy`` and ``.vs_<peer>`` for the peers that are
installed (bitsandbytes, torchao, gguf), on the first shape; the other shapes have theirs behind the shape.
``equalized_`` before a format is the division by channel factors in front; ``allocating.`` takes new memory
for the result, where the others and the copy write into memory that is there; ``numpy.`` and ``torch.`` are
the backends that do the work where the C extension was not built. ``pack.<format>.vs_packbits`` compares
numpy's packing alone with ``numpy.packbits``.

``--in-situ`` instead measures what packing and handing over all taps costs, as a share of the forward.
"""

from __future__ import annotations

import argparse
import pathlib
import queue
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import write_json
from benchmarks.peers import PEERS, installed, nearest
from mobillm import kernels
from mobillm.codec import pack
from mobillm.formats import Format
from mobillm.kernels import bitpack, native, torch_backend
from mobillm.nn.backbone import Backbone

Work = Callable[[], Any]

SHAPES = ((16, 256, 576), (8, 256, 1024), (4, 512, 2048))
FORMATS = tuple(fmt for fmt in Format if fmt.is_block)
EVICT = 64 * 2**20


class Race:
    """Times works against a baseline, in turn and with cold caches.

    On a shared machine both then meet the same neighbours. The caches are overwritten before each run by
    reading and writing: a plain fill goes past them to memory and leaves the operands where they are.

    Args:
        baseline: the work that others are compared with.
        repeats: rounds of each comparison.

    """

    def __init__(self, baseline: Work, repeats: int) -> None:
        self._baseline = baseline
        self._repeats = repeats
        self._scratch = np.zeros(EVICT // 8, np.int64)
        self.baseline_times: list[float] = []

    def speed(self, work: Work, share: float = 1.0) -> float:
        """Return how many times faster than the baseline a work is, by medians of thread CPU time.

        Args:
            work: called once to warm up, then once in each round.
            share: part of the rounds that are run.

        """
        times: tuple[list[float], list[float]] = [], []
        work()
        for _ in range(max(3, round(self._repeats * share))):
            for run, found in zip((self._baseline, work), times, strict=True):
                np.add(self._scratch, 1, out=self._scratch)
                start = time.thread_time()
                result = run()
                found.append(time.thread_time() - start)
                del result
        self.baseline_times += times[0]
        return statistics.median(times[0]) / statistics.median(times[1])


def own_works(tensor: torch.Tensor) -> dict[str, Work]:
    """Return quantization and dequantization of all formats and variants, into memory that is there."""
    array, memory = tensor.numpy(), torch.empty_like(tensor)
    factors = torch_backend.calibrate(tensor)
    works: dict[str, Work] = {}

    def add(name: str, backend: Any, values: Any, fmt: Format, into: Any, **options: Any) -> None:
        packed = backend.quantize(values, fmt, **options)
        target, shape = None if into is None else packed, tuple(values.shape)
        works[f"encode.{name}"] = lambda: backend.quantize(values, fmt, out=target, **options)
        works[f"decode.{name}"] = lambda: backend.dequantize(packed, fmt, shape, out=into, **options)

    for fmt in FORMATS:
        add(fmt.name.lower(), torch_backend, tensor, fmt, memory)
    for fmt in (Format.ASYM4, Format.ASYM8):
        add(f"equalized_{fmt.name.lower()}", torch_backend, tensor, fmt, memory, equalizer=factors)
    for fmt in (Format.ASYM4, Format.ASYM8):
        add(f"allocating.{fmt.name.lower()}", torch_backend, tensor, fmt, None)
    native_works = set(works)
    for fmt in (Format.ASYM4, Format.ASYM8, Format.NF4):
        add(f"torch.{fmt.name.lower()}", torch_backend, tensor, fmt, None)  # would copy into given memory
        add(f"numpy.{fmt.name.lower()}", kernels, array, fmt, memory.numpy())
    return {name: work if name in native_works else without_native(work) for name, work in works.items()}


def without_native(work: Work) -> Work:
    """Return a work that is done as if the C extension had not been built."""

    def run() -> Any:
        levels, native.LEVELS = native.LEVELS, ()
        try:
            return work()
        finally:
            native.LEVELS = levels

    return run


def peer_works(tensor: torch.Tensor) -> tuple[dict[str, Work], dict[tuple[str, Format], str]]:
    """Return the works of all installed peers, and which of them stands beside which of our formats."""
    works: dict[str, Work] = {}
    labels = {}
    for name in filter(installed, PEERS):
        for fmt in FORMATS:
            peer = nearest(name, fmt)
            labels[name, fmt] = peer.label
            if f"encode.{peer.label}" not in works:
                packed = peer.quantize(tensor)
                works[f"encode.{peer.label}"] = partial(peer.quantize, tensor)
                works[f"decode.{peer.label}"] = partial(peer.dequantize, packed)
    return works, labels


def measure_shape(shape: tuple[int, ...], repeats: int, console: Console) -> dict[str, float]:
    """Measure one shape, print its table and return its figures."""
    tensor = torch.from_numpy(np.random.default_rng(0).normal(scale=2.0, size=shape).astype(np.float32))
    copy = torch.empty_like(tensor)
    race = Race(lambda: copy.copy_(tensor), repeats)
    own = {name: race.speed(work) for name, work in own_works(tensor).items()}
    works, labels = peer_works(tensor)
    others = {name: race.speed(work, share=0.4) for name, work in works.items()}
    gigabytes = tensor.numel() * 4 / statistics.median(race.baseline_times) / 1e9
    figures = {"memcpy.gb_per_s": gigabytes}
    peers = list(filter(installed, PEERS))
    backend = f"native ({native.LEVELS[-1]})" if native.LEVELS else "torch, the C extension was not built"
    table = Table(
        title=f"{shape}, fp32, {backend}: times the speed of memcpy ({gigabytes:.1f} GB/s) and of peers"
    )
    for column in ("format", "encode", "decode", *peers):
        table.add_column(column)
    for name in [key.removeprefix("encode.") for key in own if key.startswith("encode.")]:
        fmt = Format.parse(name.split(".")[-1].split("_")[-1])
        ways = ("encode", "decode")
        cells = [name, *(f"{own[f'{way}.{name}']:.2f}" for way in ways)]
        figures |= {f"{way}.{name}.vs_memcpy": own[f"{way}.{name}"] for way in ways}
        for peer in peers:
            label = labels[peer, fmt]
            ratios = [own[f"{way}.{name}"] / others[f"{way}.{label}"] for way in ways]
            figures[f"encode.{name}.vs_{peer}"], figures[f"decode.{name}.vs_{peer}"] = ratios
            cells.append(f"{ratios[0]:.1f} / {ratios[1]:.2f} x {label.removeprefix(peer).strip()}")
        table.add_row(*cells)
    console.print(table)
    return figures


def measure_packing(values: int, repeats: int, console: Console) -> dict[str, float]:
    """Compare packing alone with ``numpy.packbits``, for 8-bit codes in blocks of 64."""
    codes = np.random.default_rng(0).integers(0, 256, (values // 64, 64), np.uint8)
    figures = {}
    for bits in range(2, 8):
        out = np.empty((len(codes), 8 * bits), np.uint8)
        race = Race(partial(_packbits, codes, bits), max(3, repeats // 3))
        figures[f"pack.asym{bits}.vs_packbits"] = race.speed(partial(bitpack.pack, codes, bits, out))
    console.print("packing alone, times numpy.packbits:", {k: round(v, 1) for k, v in figures.items()})
    return figures


def _packbits(codes: Any, bits: int) -> Any:
    return np.packbits(np.unpackbits(codes[..., None], axis=2)[..., :bits])


def measure_in_situ(repeats: int, console: Console) -> dict[str, float]:
    """Measure packing and handing over every tap of SmolLM2-135M as a share of its forward."""
    backbone = Backbone.from_pretrained("smollm2", dtype="bfloat16", taps="all")
    samples = [[(7 * i + j) % 40_000 for j in range(256)] for i in range(16)]
    handed: queue.SimpleQueue[Any] = queue.SimpleQueue()
    shares, forwards = [], []
    for _ in range(repeats):
        spent = 0.0

        def on_tap(index: int, hidden: torch.Tensor) -> None:
            nonlocal spent
            start = time.thread_time()
            handed.put(pack(hidden, Format.ASYM4, 64, f"tap {index}"))
            spent += time.thread_time() - start

        start = time.thread_time()
        backbone.forward(samples, on_tap)
        forwards.append(time.thread_time() - start - spent)
        shares.append(spent / forwards[-1])
        while not handed.empty():
            handed.get()
    share, forward = statistics.median(shares), statistics.median(forwards)
    console.print(
        f"{len(backbone.taps)} taps, 4096 tokens: {100 * share:.2f} % of a forward of {forward:.2f} s"
    )
    return {"in_situ.asym4.share": share, "in_situ.forward_s": forward}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--in-situ", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console()
    for name in PEERS:
        if not installed(name):
            console.print(f"{name} is absent: pip install '.[peers]' brings it; its columns are left out")
    figures: dict[str, Any] = {"native": list(native.LEVELS)}
    if args.in_situ:
        figures |= measure_in_situ(max(1, args.repeats // 3), console)
    else:
        for shape in SHAPES:
            prefix = "" if shape == SHAPES[0] else "x".join(map(str, shape)) + "."
            found = measure_shape(shape, args.repeats, console)
            figures |= {prefix + key: value for key, value in found.items()}
        figures |= measure_packing(int(np.prod(SHAPES[0])), args.repeats, console)
    write_json(args.json, {"shape": list(SHAPES[0]), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
