"""How far from the original do activations come back, at how many bits a value?

``python -m benchmarks.rate_distortion --json rate.json --picture docs/images/rate_distortion.png``.
SmolLM2-135M reads Python's own reference manual; equalizers are calibrated on the first sequences, and the
error is measured on later ones: the root mean square over tokens of |y - x| / |x|, averaged over all taps.
Bits include scales. Beside our formats, plain and equalized, stand those of other projects that are
installed and Shannon's bound for independent Gaussian values, 2**-R. ``rotated`` adds a random-sign Hadamard
rotation of 64 channels, which no format of ours has.

Keys: ``<format>.block<n>.<preprocessing>.bits`` and ``.error``, and the same of ``<peer format>``.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import pydoc_data.topics
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.harness import write_json
from mobillm.formats import BLOCKS, Format, packed_size
from mobillm.kernels import torch_backend
from mobillm.nn.backbone import Backbone

Round = Callable[[torch.Tensor], torch.Tensor]

TOKENS = 256
BLOCK_FORMATS = tuple(fmt for fmt in Format if fmt.is_block)


def activations(samples: int) -> list[torch.Tensor]:
    """Return the hidden states of all taps, fp32 [tokens, width], one sample after the other."""
    backbone = Backbone.from_pretrained("smollm2", dtype="bfloat16", taps="all")
    topics: dict[str, str] = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    step = len(text) // samples
    inputs = backbone.tokenize([text[i * step : (i + 1) * step] for i in range(samples)], TOKENS)
    found: list[torch.Tensor] = []
    backbone.forward(inputs, lambda _, hidden: found.append(hidden.to(torch.float32)))
    return found


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the root mean square over tokens of each token's relative error."""
    errors = (y.reshape(x.shape) - x).norm(dim=1) / x.norm(dim=1)
    return float(errors.square().mean().sqrt())


def rotation(width: int, size: int = 64) -> torch.Tensor:
    """Return a random-sign Hadamard rotation of each ``size`` channels, an orthogonal [width, width]."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    blocks = torch.kron(torch.eye(width // size), hadamard / math.sqrt(size))
    return signs[:, None] * blocks


def schemes(fmt: Format, block: int, sample: torch.Tensor) -> Iterator[tuple[str, Round]]:
    """Yield the ways of one format: plain, equalized, and equalized and rotated."""
    factors = torch_backend.calibrate(sample)
    turn = rotation(sample.shape[1])

    def plain(x: torch.Tensor, equalizer: torch.Tensor | None = None) -> torch.Tensor:
        packed = torch_backend.quantize(x, fmt, block, equalizer=equalizer)
        return torch_backend.dequantize(packed, fmt, x.shape, block, equalizer=equalizer)

    yield "plain", plain
    yield "equalized", lambda x: plain(x, factors)
    yield "rotated", lambda x: plain((x / factors) @ turn) @ turn.T * factors


def measure(taps: list[torch.Tensor]) -> dict[str, tuple[float, float]]:
    """Return bits and error of every scheme, by name."""
    errors: dict[str, list[float]] = {}
    bits: dict[str, float] = {}
    for tap in taps:
        sample, x = tap[: len(tap) // 2], tap[len(tap) // 2 :].contiguous()
        for fmt in BLOCK_FORMATS:
            for block in BLOCKS:
                for way, through in schemes(fmt, block, sample):
                    name = f"{fmt.name.lower()}.block{block}.{way}"
                    errors.setdefault(name, []).append(relative_error(x, through(x)))
                    bits[name] = 8 * packed_size(fmt, block, x.shape) / x.numel()
        for peer in other_formats():
            y = torch.as_tensor(peer.dequantize(peer.quantize(x)))
            errors.setdefault(peer.label, []).append(relative_error(x, y))
            bits[peer.label] = peer.bits
    return {name: (bits[name], statistics.mean(found)) for name, found in errors.items()}


def other_formats() -> list[peers.Peer]:
    """Return the formats of other projects that are installed."""
    found = []
    if peers.installed("bitsandbytes"):
        found += [peers.bitsandbytes("nf4"), peers.bitsandbytes("fp4"), peers.bitsandbytes("8bit")]
    if peers.installed("torchao"):
        found += [peers.torchao(bits) for bits in (3, 4, 6, 8)]
    if peers.installed("gguf"):
        found += [peers.gguf(kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")]
    return found


def draw(results: dict[str, tuple[float, float]], path: pathlib.Path) -> None:
    """Draw error against bits."""
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    looks: dict[str, dict[str, Any]] = {
        "plain": {"color": "tab:gray", "marker": "o", "label": "ours, plain"},
        "equalized": {"color": "tab:blue", "marker": "o", "label": "ours, equalized"},
    }
    for way, look in looks.items():
        points = {name: at for name, at in results.items() if name.endswith(f".block64.{way}")}
        curve = sorted(at for name, at in points.items() if name.startswith("asym"))
        axes.plot(*zip(*curve, strict=True), markersize=5, **look)
        for name in ("nf4", "fp4", "f8"):
            at = points[f"{name}.block64.{way}"]
            axes.plot(*at, color=look["color"], marker="D", markersize=5, linestyle="none")
            if name != "f8" or way == "plain":
                axes.annotate(name, at, (-7, -3), textcoords="offset points", ha="right", fontsize=8)
    others = [(name, at) for name, at in results.items() if ".block" not in name]
    for kind, marker, drop in (("bitsandbytes", "^", 4), ("torchao", "s", 4), ("gguf", "v", -11)):
        points = {name.removeprefix(kind).strip(): at for name, at in others if name.startswith(kind)}
        if points:
            axes.plot(
                *zip(*points.values(), strict=True), color="tab:red", marker=marker, ls="none", label=kind
            )
        for name, at in points.items():
            axes.annotate(name, at, (5, drop), textcoords="offset points", fontsize=8)
    rates = torch.linspace(2, 9.2, 50).tolist()
    axes.plot(rates, [2**-rate for rate in rates], "k--", linewidth=1, label="Shannon's bound, $2^{-R}$")
    axes.set_yscale("log")
    axes.set_xlabel("bits per value, with scales")
    axes.set_ylabel("relative error of a token, mean of 30 taps")
    axes.set_title("Activations of SmolLM2-135M, blocks of 64: error against bits")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and draw."""
    parser = argparse.ArgumentParser(prog="benchmarks.rate_distortion", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--picture", type=pathlib.Path, metavar="P")
    parser.add_argument("--samples", type=int, default=16, help="texts of 256 tokens; half of them calibrate")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = measure(activations(args.samples))
    table = Table(title="relative error of a token, mean over the taps")
    for column in ("format", "bits", "error", "Shannon", "bits above"):
        table.add_column(column)
    for name, (bits, error) in sorted(results.items(), key=lambda item: item[1]):
        table.add_row(
            name, f"{bits:.3f}", f"{error:.4f}", f"{2**-bits:.4f}", f"{bits + math.log2(error):.2f}"
        )
    Console().print(table)
    figures = {
        f"{name}.{key}": value
        for name, at in results.items()
        for key, value in zip(("bits", "error"), at, strict=True)
    }
    write_json(args.json, {"tokens": args.samples * TOKENS // 2, **figures})
    if args.picture is not None:
        draw(results, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
