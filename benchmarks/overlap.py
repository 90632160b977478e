"""Is the pipeline as fast as its slowest stage? Three operating points, the link's goodput, and the start.

``python -m benchmarks.overlap --json overlap.json`` runs SmolLM2-135M on one core and the server and the link
on another. ``--only`` runs some of the parts; keys of the others in the file stay. Keys:

- ``efficiency``: at ``device_bound``, ``link_bound`` and ``server_bound``, the part of the steady state in
  which the busiest stage was busy (:mod:`mobillm.device.timeline`; the link's from the emulator's records);
- ``serial_over_pipelined``: wall time of the same work without overlap over that with it, at each point;
- ``device_over_bare``: device-bound, steady wall time of a batch over that of a bare forward pass of the same
  batches, before and after;
- ``rounds``: these figures of each round; the medians are above;
- ``goodput``: link-bound, packed bytes delivered over the rate times the time, for each rate and round trip;
- ``start``: seconds from the start of ``mobillm finetune``, on the demo's messages, until the first batch is
  on the server's disk, over the seconds that a process needs to load the model.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import interruptible, json_file, write_json
from benchmarks.link import Shape
from benchmarks.rig import DEVICE_CORE, SERVER_CORE, Run, Server, measure, server, token_batches
from mobillm.cli.demo_data import load_messages, load_topics
from mobillm.device.pipeline import TokenBatch
from mobillm.nn.backbone import Backbone
from mobillm.nn.cache import cache_directory
from mobillm.nn.models import resolve_model
from mobillm.spec import CodecSpec, OptimizerSpec, SessionSpec, SideSpec

TOKENS = 18  # of a sample
RATES = (2, 10, 100)  # Mbit/s
ROUND_TRIPS = (0, 50, 200)  # milliseconds
ROUNDS = 3  # of each operating point; the medians count
START_REPEATS = 3
START_EXAMPLES = 1000
POLL = 0.002  # seconds
PATIENCE = 120.0  # seconds

_LOAD = """
import time, torch
torch.set_num_threads(1)
from mobillm.nn.backbone import Backbone
from mobillm.nn.models import resolve_model
Backbone.from_pretrained(resolve_model("smollm2"), dtype="bfloat16")
print(time.monotonic())
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where the pipeline is run.

    Attributes:
        taps: tapped layers.
        format: of the taps.
        side: the side network.
        shape: of the link.
        size: samples of a batch.
        count: batches.

    """

    taps: str = "every:4"
    format: str = "asym4"
    side: SideSpec = SideSpec()
    shape: Shape = Shape()
    size: int = 32
    count: int = 10


HEAD = SideSpec(kind="head")


def link_point(megabits: float, milliseconds: float) -> Point:
    """Return a point at which the device makes several times what the link carries, for about 5 seconds."""
    shape = Shape(rate=megabits * 1e6 / 8, rtt=milliseconds / 1e3)
    if megabits <= 2:
        return Point(side=HEAD, shape=shape, size=4, count=7)
    if megabits <= 10:
        return Point(taps="all", side=HEAD, shape=shape, size=4, count=9)
    return Point(taps="all", format="f32", side=HEAD, shape=shape, size=8, count=7)


POINTS = {
    "device_bound": Point(),
    "link_bound": link_point(10, 50),
    "server_bound": Point(taps="all", side=SideSpec(width=384), count=6),
}


class Bench:
    """The model in memory and the console.

    Args:
        at: the server.
        console: for what is done now.
        backbone: the model; None loads SmolLM2-135M.

    """

    def __init__(self, at: Server, console: Console, backbone: Backbone | None = None) -> None:
        self._at = at
        self._console = console
        if backbone is None:
            console.print("loading SmolLM2-135M ...")
            backbone = Backbone.from_pretrained(resolve_model("smollm2"), dtype="bfloat16", taps="all")
        self._backbone = backbone
        examples, _ = load_topics(300, 4, 900)  # Python's own documentation
        self._texts = [example.text for example in examples]
        self._ids = [token for ids in backbone.tokenize(self._texts, 4096) for token in ids]

    def batches(self, point: Point) -> list[TokenBatch]:
        """Return the batches of a point."""
        return token_batches(self._ids, size=point.size, tokens=TOKENS, count=point.count)

    def run(self, point: Point, *, serial: bool = False) -> Run:
        """Run a point."""
        batches = self.batches(point)
        backbone = self._backbone.with_taps(point.taps)
        spec = SessionSpec(
            task="classification",
            outputs=2,
            model=backbone.model_spec(),
            side=point.side,
            optimizer=OptimizerSpec(schedule="constant"),
            codec=CodecSpec(format=point.format),
            batches=len(batches),
            trace=True,
        )
        return measure(backbone, batches, spec, self._at, point.shape, serial=serial)

    def bare(self, point: Point) -> float:
        """Return seconds of a forward pass of a batch with nothing around it: the mean of the point's."""
        backbone = self._backbone.with_taps(point.taps)
        batches = self.batches(point)
        start = time.monotonic()
        for batch in batches:
            backbone.forward(batch.input_ids, lambda index, hidden: None)
        return (time.monotonic() - start) / len(batches)

    def efficiency(self, *, quick: bool = False) -> dict[str, Any]:
        """Measure the three operating points, with and without overlap.

        Args:
            quick: fewer batches, and one round.

        """
        found: dict[str, Any] = {"efficiency": {}, "serial_over_pipelined": {}, "stages": {}, "rounds": {}}
        self._backbone.forward(self.batches(Point(count=1))[0].input_ids, lambda index, hidden: None)
        for number, (name, point) in enumerate(POINTS.items(), 1):
            self._console.print(f"{name}, {number} of {len(POINTS)} ...")
            count = max(3, point.count // 2) if quick else point.count
            point = dataclasses.replace(point, count=count)
            rounds = [self._round(name, point) for _ in range(1 if quick else ROUNDS)]
            median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key != "run"}
            found["efficiency"][name] = median["efficiency"]
            found["serial_over_pipelined"][name] = median["serial_over_pipelined"]
            if name == "device_bound":
                found["device_over_bare"] = median["device_over_bare"]
            found["rounds"][name] = {key: [one[key] for one in rounds] for key in median}
            run: Run = rounds[-1]["run"]
            found["stages"][name] = {
                "critical": run.critical,
                "busy": run.summary.busy,
                "causes": run.summary.causes,
                "wall": run.wall,
            }
            shown = ", ".join(f"{key} {value:.3f}" for key, value in median.items())
            self._console.print(f"  {shown} ({run.critical})")
        return found

    def _round(self, name: str, point: Point) -> dict[str, Any]:
        """Run a point with overlap and without; device-bound between two bare forward passes of the same."""
        fewer = dataclasses.replace(point, count=max(3, point.count // 2))
        before = self.bare(fewer) if name == "device_bound" else 0.0
        run = self.run(point)
        found: dict[str, Any] = {"run": run, "efficiency": run.efficiency}
        if name == "device_bound":
            bare = statistics.mean([before, self.bare(fewer)])
            found |= {"bare_forward_seconds": bare, "batch_seconds": run.batch_seconds}
            found["device_over_bare"] = run.batch_seconds / bare
        serial = self.run(fewer, serial=True)
        found["serial_over_pipelined"] = serial.wall / fewer.count / (run.wall / point.count)
        return found

    def goodput(self) -> dict[str, Any]:
        """Measure what links of some rates and round trips carry."""
        found = {}
        for megabits in RATES:
            for milliseconds in ROUND_TRIPS:
                run = self.run(link_point(megabits, milliseconds))
                found[f"{megabits}mbit_{milliseconds}ms"] = run.goodput
                self._console.print(f"{megabits} Mbit/s, {milliseconds} ms: {run.goodput:.4f}")
        return {"goodput": found}

    def start(self) -> dict[str, Any]:
        """Measure how soon the first batch leaves after the start of the program."""
        load, first = [], []
        os.sched_setaffinity(0, {SERVER_CORE})  # looking at the disk takes no time from the device
        with tempfile.TemporaryDirectory() as folder:
            data = pathlib.Path(folder) / "texts.tsv"
            messages, _ = load_messages(cache_directory())
            rows = [f"{' '.join(one.text.split())}\t{one.target}" for one in messages[:START_EXAMPLES]]
            data.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
            for number in range(START_REPEATS + 1):
                load.append(_seconds_to_load())
                out = pathlib.Path(folder) / f"out{number}"
                first.append(_seconds_to_first_batch(self._at, data, out))
                self._console.print(f"start: load {load[-1]:.2f} s, first batch {first[-1]:.2f} s")
        os.sched_setaffinity(0, {DEVICE_CORE})
        # The first ones fill the system's caches, and leave bytecode where there was none.
        del load[0], first[0]
        ratios = [b / a for a, b in zip(load, first, strict=True)]
        return {
            "start": statistics.median(ratios),
            "start_seconds": {"load": load, "first_batch": first},
        }


@contextlib.contextmanager
def _pinned(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program on the device's core; what still runs at the end of the block is killed."""
    # Installed packages have bytecode; so may this one.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        os.sched_setaffinity(process.pid, {DEVICE_CORE})
        try:
            yield process
        finally:
            process.kill()


def _seconds_to_load() -> float:
    start = time.monotonic()
    with _pinned([sys.executable, "-c", _LOAD]) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    return float(output) - start


def _seconds_to_first_batch(at: Server, data: pathlib.Path, out: pathlib.Path) -> float:
    """Start the command line and watch the server's disk; what comes after the first batch is cut off."""
    sessions = at.directory / "sessions"
    known = set(sessions.glob("*"))
    command = [sys.executable, "-m", "mobillm", "finetune", "--model", "smollm2", "--threads", "1"]
    command += ["--server", str(at.address), "--token-file", str(at.directory.parent / "token")]
    command += ["--data", str(data), "--out", str(out)]
    start = time.monotonic()
    with _pinned(command) as process:
        while not _has_batch(set(sessions.glob("*")) - known):
            if process.poll() is not None or time.monotonic() - start > PATIENCE:
                raise RuntimeError(f"mobillm finetune sent nothing; its exit status is {process.poll()}")
            time.sleep(POLL)
        return time.monotonic() - start


def _has_batch(sessions: set[pathlib.Path]) -> bool:
    logs = (folder / "activations.log" for folder in sessions)
    return any(log.exists() and log.stat().st_size > 1 << 16 for log in logs)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "efficiency": Bench.efficiency,
    "goodput": Bench.goodput,
    "start": Bench.start,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.overlap", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    figures: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        figures = json.loads(args.json.read_text())
        figures.pop("machine", None)
    with interruptible(), server() as at:
        os.sched_setaffinity(0, {DEVICE_CORE})
        bench = Bench(at, console)
        for name in args.only:
            figures.update(PARTS[name](bench))
            write_json(args.json, figures)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
