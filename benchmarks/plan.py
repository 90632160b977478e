"""How close do the predictions of ``mobillm plan`` come?

``python -m benchmarks.plan --json plan.json``. A process of its own fine-tunes each model on one core, with a
server on another and over an emulated link. ``mobillm plan`` then predicts that run, given the mean length of
its samples and the rate of the link, and both are compared.

Keys: ``<point>.memory``, ``<point>.traffic`` and ``<point>.time``, predicted over measured: the peak of the
process's resident memory, the bytes it sent, and the seconds from its first forward pass to its last byte;
``.predicted`` and ``.measured`` of each; ``worst.memory``, ``worst.traffic`` and ``worst.time``, the largest
distances from 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.harness import write_json
from benchmarks.link import Shape, relayed
from benchmarks.rig import DEVICE_CORE, SERVER_CORE, Server, server
from benchmarks.shapes import checkpoint, words
from mobillm.cli.demo_data import load_topics

PATIENCE = 1800.0  # seconds of one run


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is run.

    Attributes:
        model: a name that ``--model`` takes, or one of :mod:`benchmarks.shapes`.
        samples: of the run.
        length: words of a sample.
        batch: samples of a batch.
        megabits: the link's rate, a second.
        format: how taps are packed.
        options: further arguments of both commands.

    """

    model: str
    samples: int
    length: int
    batch: int
    megabits: float
    format: str = "asym4"
    options: tuple[str, ...] = ()


POINTS = {
    "smollm2": Point(model="smollm2", samples=192, length=40, batch=32, megabits=50),
    "smollm2_streamed": Point(
        model="smollm2", samples=192, length=40, batch=32, megabits=50, options=("--stream-weights",)
    ),
    # At this rate `mobillm plan` advises 2 bits.
    "smollm2_slow_link": Point(model="smollm2", samples=96, length=40, batch=32, megabits=4, format="asym2"),
    "stories15m": Point(model="stories15m", samples=1024, length=60, batch=32, megabits=200),
    "opt-350m-shape": Point(
        model="opt-350m-shape", samples=64, length=64, batch=16, megabits=100, options=("--dtype", "float32")
    ),
}


def texts(point: Point) -> list[str]:
    """Return the samples' texts; the lengths of real ones vary by half around the mean."""
    if point.model.endswith("-shape"):
        return [words(point.length, number, 50_000) for number in range(point.samples)]
    examples, _ = load_topics(300, 4, 900)  # Python's own documentation
    found = " ".join(" ".join(example.text for example in examples).split()).split()
    pieces, at = [], 0
    for number in range(point.samples):
        size = point.length // 2 + number * 7 % point.length
        pieces.append(" ".join(found[(at + place) % len(found)] for place in range(size)))
        at += size
    return pieces


def model_arguments(point: Point) -> list[str]:
    """Return the arguments that both commands take."""
    model = str(checkpoint(point.model)) if point.model.endswith("-shape") else point.model
    return ["--model", model, "--threads", "1", "--format", point.format, *point.options]


def started(command: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Run a command of the package on the device's core; return what it printed and its peak of memory."""
    line = ["taskset", "--cpu-list", str(DEVICE_CORE), sys.executable, "-m", "benchmarks.peak", *command]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"mobillm {' '.join(command)} ended with status {done.returncode}")
    *printed, last = done.stdout.splitlines()
    return json.loads("\n".join(printed)), int(last)


def measured(point: Point, at: Server, folder: pathlib.Path) -> dict[str, Any]:
    """Fine-tune once; return the report with ``peak_bytes``."""
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(texts(point))]
    data = folder / "texts.tsv"
    data.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    with relayed(at.address, Shape(rate=point.megabits * 1e6 / 8), core=SERVER_CORE) as (address, _):
        command = ["finetune", *model_arguments(point), "--data", str(data), "--max-length", "512"]
        command += ["--text-column", "sentence", "--label-column", "label", "--batch-size", str(point.batch)]
        command += ["--server", str(address), "--token-file", str(at.directory.parent / "token")]
        command += ["--epochs", "1", "--out", str(folder / "out"), "--json"]
        report, peak = started(command)
    return report | {"peak_bytes": peak}


def predicted(point: Point, report: dict[str, Any]) -> dict[str, Any]:
    """Ask ``mobillm plan`` for the run that was made."""
    mean = round(report["tokens"] / report["samples"])
    command = ["plan", *model_arguments(point), "--samples", str(point.samples), "--length", str(mean)]
    command += ["--batch-size", str(point.batch), "--link", f"{point.megabits:g}mbit", "--json"]
    found, _ = started(command)
    return found


def compare(point: Point, at: Server) -> dict[str, Any]:
    """Return the keys of a point."""
    with tempfile.TemporaryDirectory() as folder:
        report = measured(point, at, pathlib.Path(folder))
    plan = predicted(point, report)
    job = plan["job"]
    made = (point.batch, "--stream-weights" in point.options, point.format)
    if (job["batch"], job["streamed"], job["format"]) != made:
        raise RuntimeError(f"plan predicts another run: {plan['reasons']}; choose the point as it advises")
    pairs = {
        "memory": (plan["memory_bytes"], report["peak_bytes"]),
        "traffic": (plan["traffic_bytes"], report["bytes_sent"]),
        "time": (plan["seconds"], report["stream_seconds"]),
    }
    found: dict[str, Any] = {key: round(ours / seen, 3) for key, (ours, seen) in pairs.items()}
    found["predicted"] = {key: ours for key, (ours, _) in pairs.items()}
    found["measured"] = {key: seen for key, (_, seen) in pairs.items()}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run all points, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.plan", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=POINTS, default=list(POINTS), metavar="POINT")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    figures: dict[str, Any] = {}
    with server() as at:
        for name in args.only:
            with console.status(f"{name} ..."):
                figures[name] = compare(POINTS[name], at)
            console.print(name, {key: figures[name][key] for key in ("memory", "traffic", "time")})
    for key in ("memory", "traffic", "time"):
        figures[f"worst.{key}"] = round(max(abs(figures[name][key] - 1) for name in args.only), 3)
    write_json(args.json, figures)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
