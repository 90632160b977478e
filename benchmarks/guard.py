"""Has the pipeline become slower? Runs the quick set and compares its ratios with the committed ones.

``python -m benchmarks.guard`` prints what moved by more than its spread, and fails if something became worse.
``--update`` measures several times and writes the medians and spreads to ``benchmarks/results/guard.json``;
``--json`` writes what was found now.
Only ratios are compared, so the machine may be another one, but not one that is busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import interruptible, json_file, machine, write_json
from benchmarks.overlap import Bench, Point
from benchmarks.rig import DEVICE_CORE, server
from benchmarks.sweep_results import flat
from mobillm.cli.arguments import at_least

__all__ = ["compare", "main"]

BASELINE = pathlib.Path(__file__).parent / "results" / "guard.json"
LEAST_SPREAD = 0.02  # below it nothing is called a change
# For the estimate: forward passes of a batch in the time of one measurement, and seconds beside them.
FORWARDS, BESIDE = 26, 12
# Larger is better, but for these.
SMALLER_IS_BETTER = ("device_over_bare",)


def compare(
    baseline: Mapping[str, Mapping[str, float]], found: Mapping[str, float]
) -> list[tuple[str, float, float, bool]]:
    """Return what moved by more than its spread: key, before, now, and whether it is worse.

    Args:
        baseline: ``value`` and ``spread`` of each key.
        found: the value of each key now; keys that are in one of the two only are left out.

    """
    moved = []
    for key in sorted(set(baseline) & set(found)):
        before, now = baseline[key]["value"], found[key]
        if abs(now - before) > max(baseline[key]["spread"], LEAST_SPREAD * abs(before)):
            moved.append((key, before, now, (now > before) == (key in SMALLER_IS_BETTER)))
    return moved


def _ratios(bench: Bench) -> dict[str, float]:
    figures: dict[str, Any] = bench.efficiency(quick=True)
    chosen = flat({key: figures[key] for key in ("efficiency", "serial_over_pipelined", "device_over_bare")})
    return {key: float(value) for key, value in chosen.items()}


def _measure(repeats: int) -> list[dict[str, float]]:
    """Measure the ratios so many times, each round with a line of what it found."""
    console = Console(stderr=True)
    with server() as at:
        os.sched_setaffinity(0, {DEVICE_CORE})
        bench = Bench(at, console)
        bench.bare(Point(count=1))
        seconds = repeats * (FORWARDS * bench.bare(Point(count=1)) + BESIDE)
        console.print(f"{repeats} measurements of three points, about {seconds:.0f} s")
        return [_ratios(bench) for _ in range(repeats)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and compare, or measure and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.guard", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument(
        "--repeats", type=at_least(1), default=3, metavar="N", help="for --update (default: %(default)s)"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="where the ratios and what moved go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with interruptible():
        runs = _measure(args.repeats if args.update else 1)
    if args.update:
        values = {key: [run[key] for run in runs] for key in runs[0]}
        keys = {key: {"value": statistics.median(v), "spread": max(v) - min(v)} for key, v in values.items()}
        BASELINE.write_text(json.dumps({"machine": machine(), "keys": keys}, indent=1) + "\n")
        write_json(args.json, {"rounds": runs})
        print(f"written: {BASELINE}")
        return 0
    if not BASELINE.exists():
        print("there is no baseline to compare with; --update writes one. Now:")
        for key, value in runs[0].items():
            print(f"{key}: {value:.3f}")
        write_json(args.json, {"ratios": runs[0], "moved": []})
        return 0
    moved = compare(json.loads(BASELINE.read_text())["keys"], runs[0])
    fields = ("key", "before", "now", "worse")
    write_json(
        args.json, {"ratios": runs[0], "moved": [dict(zip(fields, one, strict=True)) for one in moved]}
    )
    for key, before, now, worse in moved:
        print(f"{key}: {before:.3f} -> {now:.3f}, {'worse' if worse else 'better'}")
    if not moved:
        print(f"nothing of {len(runs[0])} ratios moved by more than its spread")
    return 1 if any(worse for _, _, _, worse in moved) else 0


if __name__ == "__main__":
    sys.exit(main())
