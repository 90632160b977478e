"""Draw the timeline of a run from its Chrome trace: which side did what, when.

``mobillm demo --trace trace.json``, then
``python -m benchmarks.timeline trace.json docs/images/timeline.png --start 20 --seconds 6``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

COLOURS = {
    "forward": "#4477aa",
    "quantize": "#66ccee",
    "wait": "#dddddd",
    "send": "#ccbb44",
    "receive": "#228833",
    "log": "#aa3377",
    "train": "#ee6677",
}
ROWS = ("device compute", "device send", "server receive", "server log", "server train")


def load(path: pathlib.Path) -> list[tuple[str, str, float, float]]:
    """Return row, name, start and duration in seconds of every span of a trace."""
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    sides = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [
        (f"{sides[e['pid']]} {lanes[e['pid'], e['tid']]}", e["name"], e["ts"] / 1e6, e["dur"] / 1e6)
        for e in events
        if e["ph"] == "X"
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one window of a trace."""
    parser = argparse.ArgumentParser(prog="benchmarks.timeline", description=__doc__)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--start", type=float, default=0.0, help="seconds from the first span")
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args(argv)
    end = args.start + args.seconds
    figure, axes = plt.subplots(figsize=(11, 3.2), layout="constrained")
    # The longest first: what happens inside a forward pass is drawn on top of it.
    for row, name, begin, duration in sorted(load(args.trace), key=lambda span: -span[3]):
        if begin < end and begin + duration > args.start:
            y = len(ROWS) - 1 - ROWS.index(row)
            # A short span would vanish between two pixels.
            width = max(duration, args.seconds / 2000)
            axes.barh(y, width, left=begin, height=0.7, color=COLOURS[name], edgecolor="white", linewidth=0.6)
    axes.set_yticks(range(len(ROWS)), ROWS[::-1])
    axes.set_xlim(args.start, end)
    axes.set_xlabel("seconds")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes.legend(handles, COLOURS.keys(), ncols=len(COLOURS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
