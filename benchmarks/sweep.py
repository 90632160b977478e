"""How long does a batch take, and where does the time go? Bit width x bandwidth x round trip x taps x tokens.

``python -m benchmarks.sweep`` runs SmolLM2-135M through the whole path, device, emulated link and server, for
every point, and writes ``sweep.jsonl`` (a line for each point as it is done), ``sweep.csv``, ``machine.json``
and pictures to ``--out``. The same command goes on where it was stopped; a point that failed is tried again.
``--quick`` takes about a minute, ``--bits`` and ``--rates`` make a grid of one's own. Points with a rate send
a few samples; those without one train long enough for an accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.harness import interruptible, machine
from benchmarks.link import LEAST_RATE, MOST_RATE, Shape
from benchmarks.rig import DEVICE_CORE, Run, Server, measure, server
from benchmarks.sweep_plots import draw
from benchmarks.sweep_points import BITS, FORMATS, QUICK_SIZES, RATES, Estimate, Point, full, grid, quick
from benchmarks.sweep_results import Results, SweepError, claimed
from mobillm.cli.demo_data import LABELS, load_messages
from mobillm.device.batches import make_batches
from mobillm.errors import MobiLLMError
from mobillm.nn.backbone import Backbone
from mobillm.nn.cache import cache_directory
from mobillm.nn.models import resolve_model
from mobillm.spec import CodecSpec, OptimizerSpec, SessionSpec, SideSpec

__all__ = ["main", "sweep"]

QUICK_SECONDS = 60.0
SPEED_MESSAGES = 8  # of the forward pass that the estimate goes by


def sweep(
    points: Sequence[Point],
    results: Results,
    rigs: Callable[[], contextlib.AbstractContextManager[Callable[[Point], dict[str, Any]]]],
    on_done: Callable[[Point, str | None], None],
) -> int:
    """Measure all points that are not known; a point that fails does not stop the rest.

    Args:
        points: in order.
        results: where they go.
        rigs: makes what measures a point; a new one after a failure.
        on_done: called after each point, with its error.

    Returns:
        how many failed.

    """
    failed = 0
    left = [point for point in points if point.key not in results.done]
    while left:
        with rigs() as run:
            while left:
                point = left.pop(0)
                try:
                    figures = run(point)
                except Exception as error:
                    failed += 1
                    text = str(error) or type(error).__name__
                    results.add(point, error=text)
                    on_done(point, text)
                    break
                results.add(point, figures=figures)
                on_done(point, None)
    return failed


class Device:
    """The model and the data, loaded once.

    Attributes:
        speed: tokens that a bare forward pass computes in a second.

    """

    def __init__(self) -> None:
        self._backbone = Backbone.from_pretrained(resolve_model("smollm2"), dtype="bfloat16", taps="all")
        self._train, self._heldout = load_messages(cache_directory())
        texts = [example.text for example in self._train[: SPEED_MESSAGES + 1]]
        first, *rest = self._backbone.tokenize(texts, 128)
        self._backbone.forward([first], lambda index, hidden: None)
        begun = time.monotonic()
        self._backbone.forward(rest, lambda index, hidden: None)
        self.speed = sum(map(len, rest)) / (time.monotonic() - begun)

    def run(self, point: Point, at: Server) -> dict[str, Any]:
        """Measure one point."""
        backbone = self._backbone.with_taps(point.taps)
        batches = []
        for examples, heldout in (
            (self._train[: point.train], False),
            (self._heldout[: point.heldout], True),
        ):
            if examples:
                batches += make_batches(
                    backbone,
                    examples,
                    task="classification",
                    batch_size=point.batch,
                    max_length=128,
                    seed=0,
                    heldout=heldout,
                )
        spec = SessionSpec(
            task="classification",
            outputs=len(LABELS),
            model=backbone.model_spec(),
            side=SideSpec(kind=point.side),
            optimizer=OptimizerSpec(),
            codec=CodecSpec(format=FORMATS[point.bits]),
            batches=sum(not batch.heldout for batch in batches),
            epochs=point.epochs,
            tokens=point.tokens,
            trace=True,
        )
        run = measure(backbone, batches, spec, at, Shape(rate=point.rate * 1e6 / 8, rtt=point.rtt / 1e3))
        return figures_of(run)


def figures_of(run: Run) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "wall": run.wall,
        "bytes": run.bytes_sent,
        "busy": run.busy,
        "waits": run.waits,
        "where": run.where,
        "critical": run.critical,
        "loss": run.loss,
        "accuracy": run.values.get("accuracy"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep, or what is left of it, and draw it."""
    parser = argparse.ArgumentParser(prog="benchmarks.sweep", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points and samples, about a minute")
    parser.add_argument(
        "--bits",
        type=_bits,
        metavar="B,...",
        help="instead: a grid of widths, from 2,3,4,6,8,16 (default: all)",
    )
    parser.add_argument(
        "--rates", type=_rates, metavar="R,...", help="and of rates in Mbit/s (default: 2,10,50,200)"
    )
    parser.add_argument(
        "--only",
        choices=("timed", "trained"),
        help="points over a link, which need a machine that does nothing else; or the others",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("sweep"), help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    if args.quick and (args.bits or args.rates):
        parser.error("--quick has its own --bits and --rates; leave it or them out")
    torch.set_num_threads(1)
    console = Console(stderr=True, soft_wrap=True)
    try:
        with interruptible("; the same command goes on where it stopped"), claimed(args.out):
            return _run(args, console)
    except SweepError as error:
        text, status = str(error), error.status
    except OSError as error:
        text, status = f"{error.filename or args.out}: {error.strerror or error}", 1
    except MobiLLMError as error:
        text, status = str(error), 1
    print(f"benchmarks.sweep: error: {text}", file=sys.stderr)
    return status


def _bits(text: str) -> tuple[int, ...]:
    found = tuple(sorted({bits for bits in BITS for word in text.split(",") if word.strip() == str(bits)}))
    if len(found) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no list of 2, 3, 4, 6, 8 or 16, each once")
    return found


def _rates(text: str) -> tuple[float, ...]:
    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(LEAST_RATE <= rate * 1e6 <= MOST_RATE for rate in found):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no list of Mbit/s from 0.001 to 100000, such as 5,20"
        )
    # As whole numbers where they are: a point has the same name in every sweep.
    return tuple(int(rate) if rate.is_integer() else rate for rate in found)


def _run(args: argparse.Namespace, console: Console) -> int:
    results = Results(args.out / "sweep.jsonl")

    @functools.cache
    def device() -> Device:
        console.print("loading SmolLM2-135M ...")
        return Device()

    points = _points(args, results, lambda: device().speed)
    chosen = [point for point in points if args.only is None or bool(point.rate) == (args.only == "timed")]
    left = [point for point in chosen if point.key not in results.done]
    status = 0
    if left:
        estimate = Estimate(device().speed)
        about = lasting(estimate.seconds(left))
        console.print(f"{len(left)} of {len(chosen)} points to measure, about {about}")
        status = _measure(device(), left, estimate, results, console)
    results.write_csv(args.out / "sweep.csv", points)
    (args.out / "machine.json").write_text(json.dumps(machine()) + "\n")
    known = [(point, results.done[point.key]) for point in points if point.key in results.done]
    written = [args.out / "sweep.jsonl", args.out / "sweep.csv", args.out / "machine.json"]
    console.print(f"written: {', '.join(map(str, [*written, *draw(known, args.out)]))}")
    return status


def _points(args: argparse.Namespace, results: Results, speed: Callable[[], float]) -> list[Point]:
    """Return what is to be measured; a quick sweep that was begun goes on with its size."""
    if args.bits or args.rates:
        return grid(args.bits or BITS, args.rates or RATES)
    if not args.quick:
        return full()
    sweeps = [quick(size) for size in QUICK_SIZES]
    begun = [points for points in sweeps if any(point.key in results.done for point in points)]
    if begun:
        return begun[0]
    short = [points for points in sweeps if Estimate(speed()).seconds(points) <= QUICK_SECONDS]
    return short[0] if short else sweeps[-1]


def lasting(seconds: float) -> str:
    """Return a time for a person."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _measure(
    device: Device, points: Sequence[Point], estimate: Estimate, results: Results, console: Console
) -> int:
    @contextlib.contextmanager
    def rigs() -> Iterator[Callable[[Point], dict[str, Any]]]:
        cores = os.sched_getaffinity(0)
        with server() as at:
            os.sched_setaffinity(0, {DEVICE_CORE})
            try:
                yield lambda point: device.run(point, at)
            finally:
                os.sched_setaffinity(0, cores)

    left = list(points)
    begun = time.monotonic()
    with Progress(TextColumn("{task.description}"), BarColumn(20), console=console) as progress:
        task = progress.add_task("", total=None)

        def show() -> str:
            done = len(points) - len(left)
            text = f"{done} of {len(points)}, about {lasting(estimate.seconds(left))} left"
            # In seconds of the estimate, so that the bar moves evenly.
            spent = estimate.seconds(points) - estimate.seconds(left)
            progress.update(task, description=text, completed=spent, total=estimate.seconds(points))
            return text

        def on_done(point: Point, error: str | None) -> None:
            nonlocal begun
            left.remove(point)
            now = time.monotonic()
            if error is None:
                estimate.note(point, now - begun)
                progress.console.print(f"{point.key}: {results.done[point.key]['wall']:.2f} s; {show()}")
            else:
                progress.console.print(f"{point.key} failed: {error}", style="red", markup=False)
                show()
            begun = now

        show()
        failed = sweep(points, results, rigs, on_done)
    if failed:
        console.print(f"{failed} points failed; the same command tries them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
