"""What does it cost in time to keep the layers on the disk, and what does it save in memory?

``python -m benchmarks.streaming --model smollm2 --json F --plot P``. The backbone runs batches of short
samples forward, taps at every fourth layer, once with all layers in memory and once with two of them: each in
a process of its own with one thread, in turn, ``--rounds`` times. The weights come from the page cache after
the first pass. Keys: ``samples_per_second.resident``, ``samples_per_second.streamed``,
``ratio.time_streamed_over_resident`` (median), ``peak_bytes.resident``, ``peak_bytes.streamed``,
``weight_bytes``. The picture shows resident memory over time.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.harness import write_json

MODES = ("resident", "streamed")
BATCHES, BATCH, LENGTHS = 24, 32, (6, 44)  # samples as short as the sentences of SST-2


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(mode: str, model: str) -> dict[str, Any]:
    """Load the backbone, run the batches twice, and return the times and the memory of the second pass."""
    series: list[tuple[float, int]] = []
    start, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            series.append((round(time.monotonic() - start, 2), resident_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    import torch

    from mobillm.nn.backbone import Backbone
    from mobillm.nn.streamed import StreamedBackbone

    torch.set_num_threads(1)
    kind = StreamedBackbone if mode == "streamed" else Backbone
    backbone = kind.from_pretrained(model, dtype="bfloat16")
    weights = backbone.weight_bytes().total
    generator = random.Random(0)
    samples = sorted(
        (
            [generator.randrange(3, 1000) for _ in range(generator.randint(*LENGTHS))]
            for _ in range(BATCHES * BATCH)
        ),
        key=len,
    )
    batches = [samples[at : at + BATCH] for at in range(0, len(samples), BATCH)]
    groups: list[list[list[list[int]]]] = [[]]
    for batch in batches:
        groups[-1].append(batch)
        if sum(len(sample) for one in groups[-1] for sample in one) >= backbone.span:
            groups.append([])
    seconds = 0.0
    for _ in range(2):
        begun = time.monotonic()
        for group in filter(None, groups):
            backbone.forward_all(group, lambda *_: None)
        seconds = time.monotonic() - begun
    done.set()
    watcher.join()
    rate = len(samples) / seconds
    return {"samples_per_second": rate, "series": series, "weight_bytes": weights}


def plot(path: pathlib.Path, series: dict[str, list[list[float]]], weights: int) -> None:
    """Draw resident memory over time."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for mode, points in series.items():
        axes.plot([x for x, _ in points], [y / 2**20 for _, y in points], label=mode)
    axes.set_xlabel("seconds since the process began")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(f"weights: {weights / 2**20:.0f} MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both and compare."""
    parser = argparse.ArgumentParser(prog="benchmarks.streaming", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--plot", type=pathlib.Path, metavar="P")
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args.child, args.model)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    console = Console(stderr=True)
    for number in range(args.rounds):
        for mode in MODES:
            with console.status(f"round {number + 1} of {args.rounds}: {mode} ..."):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.streaming",
                    "--model",
                    args.model,
                    "--child",
                    mode,
                ]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[mode].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {mode: [one["samples_per_second"] for one in found[mode]] for mode in MODES}
    ratios = [whole / streamed for whole, streamed in zip(*rates.values(), strict=True)]
    weights = found["resident"][0]["weight_bytes"]
    figures: dict[str, Any] = {"model": args.model, "weight_bytes": weights, "ratios": ratios}
    figures["ratio.time_streamed_over_resident"] = statistics.median(ratios)
    for mode in MODES:
        figures[f"samples_per_second.{mode}"] = statistics.median(rates[mode])
        figures[f"peak_bytes.{mode}"] = max(y for one in found[mode] for _, y in one["series"])
    if args.plot is not None:
        plot(args.plot, {mode: found[mode][-1]["series"] for mode in MODES}, weights)
    print(json.dumps(figures, indent=1))
    write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
