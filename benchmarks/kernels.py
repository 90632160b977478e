"""How fast are quantize-and-pack and its inverse, against a copy of the same tensor and against others?

``python -m benchmarks.kernels --json kernels.json``. One thread, cold caches, median of repeats; each work is
measured in turn with a copy of the same tensor, and all figures are ratios to that copy. Keys:
``encode.<format>.vs_memcpy``, ``decode.<format>.vs_memcpy`` and ``.vs_<peer>`` for the peers that are
installed (bitsandbytes, torchao, gguf), on the first shape; the other shapes have theirs behind the shape.

Plain names, and ``equalized_`` for the division by channel factors in front, are the C extension's kernels,
which like the copy write into memory that is there. ``api.`` are the same through the public functions, with
memory given: the Python around a kernel takes 0.05 to 0.1 ms in a cold cache. ``new.`` takes new memory for
the result as well. ``numpy.`` and ``torch.`` are the backends that do the work where the extension was not
built.
``pack.<format>.vs_packbits`` compares numpy's packing alone with ``numpy.packbits``.

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
from mobillm.codec import calibrate, pack
from mobillm.formats import Format
from mobillm.kernels import bitpack, native, torch_backend
from mobillm.kernels.equalizer import reciprocal
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
    """Return quantization and dequantization of all formats and variants."""
    array, memory = tensor.numpy(), torch.empty_like(tensor)
    factors = torch_backend.calibrate(tensor)
    works: dict[str, Work] = {}

    def add(name: str, backend: Any, values: Any, fmt: Format, into: Any) -> None:
        packed = backend.quantize(values, fmt)
        target, shape = None if into is None else packed, tuple(values.shape)
        encode = partial(backend.quantize, values, fmt, out=target)
        decode = partial(backend.dequantize, packed, fmt, shape, out=into)
        fallback = name.startswith(("torch.", "numpy."))
        works[f"encode.{name}"] = without_native(encode) if fallback else encode
        works[f"decode.{name}"] = without_native(decode) if fallback else decode

    for fmt in FORMATS:
        if native.LEVELS:
            works |= kernel_works(fmt.name.lower(), array, fmt, memory.numpy(), None)
        else:
            add(fmt.name.lower(), torch_backend, tensor, fmt, memory)
    for fmt in (Format.ASYM4, Format.ASYM8):
        name = fmt.name.lower()
        if native.LEVELS:
            works |= kernel_works(f"equalized_{name}", array, fmt, memory.numpy(), factors.numpy())
        add(f"api.{name}", torch_backend, tensor, fmt, memory)
        add(f"new.{name}", torch_backend, tensor, fmt, None)
    for fmt in (Format.ASYM4, Format.ASYM8, Format.NF4):
        add(f"torch.{fmt.name.lower()}", torch_backend, tensor, fmt, None)  # would copy into given memory
        add(f"numpy.{fmt.name.lower()}", kernels, array, fmt, memory.numpy())
    return works


def kernel_works(name: str, x: Any, fmt: Format, values: Any, factors: Any) -> dict[str, Work]:
    """Return the extension's kernels for one format, on memory that is there."""
    packed = kernels.quantize(x, fmt, equalizer=factors)
    inverse = None if factors is None else reciprocal(factors)
    table = None if factors is None else factors.astype(np.float32)
    width = x.shape[-1]
    return {
        f"encode.{name}": lambda: native.encode(x, native.KINDS["float32"], fmt, 64, width, inverse, packed),
        f"decode.{name}": lambda: native.decode(packed, fmt, 64, width, table, values),
    }


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
    equalizers: dict[int, Any] = {}
    kinds: dict[str, Callable[[int], Any]] = {"asym4": lambda index: None, "equalized_asym4": equalizers.get}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    forwards = []

    def on_tap(index: int, hidden: torch.Tensor) -> None:
        if index not in equalizers:
            equalizers[index] = calibrate(hidden, f"tap {index}")
        for kind, equalizer in kinds.items():
            start = time.thread_time()
            handed.put(pack(hidden, Format.ASYM4, 64, f"tap {index}", equalizer(index)))
            spent[kind] += time.thread_time() - start

    for _ in range(repeats + 1):  # the first one calibrates
        spent = dict.fromkeys(kinds, 0.0)
        start = time.thread_time()
        backbone.forward(samples, on_tap)
        forwards.append(time.thread_time() - start - sum(spent.values()))
        for kind in kinds:
            shares[kind].append(spent[kind] / forwards[-1])
        while not handed.empty():
            handed.get()
    forward = statistics.median(forwards[1:])
    figures = {f"in_situ.{kind}.share": statistics.median(shares[kind][1:]) for kind in kinds}
    console.print(f"{len(backbone.taps)} taps, 4096 tokens, a forward of {forward:.2f} s:", figures)
    return {**figures, "in_situ.forward_s": forward}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--in-situ", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console()
    figures: dict[str, Any] = {"native": list(native.LEVELS)}
    if args.in_situ:
        figures |= measure_in_situ(max(1, args.repeats // 3), console)
    else:
        for name in PEERS:
            if not installed(name):
                hint = "its columns are left out; pip install '.[peers]' brings it"
                console.print(f"{name} is absent: {hint}", markup=False)
        for shape in SHAPES:
            prefix = "" if shape == SHAPES[0] else "x".join(map(str, shape)) + "."
            found = measure_shape(shape, args.repeats, console)
            figures |= {prefix + key: value for key, value in found.items()}
        figures |= measure_packing(int(np.prod(SHAPES[0])), args.repeats, console)
    write_json(args.json, {"shape": list(SHAPES[0]), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
