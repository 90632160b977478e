"""How long does a batch take, and where does the time go? Bit width x bandwidth x round trip x taps x tokens.

``python -m benchmarks.sweep`` runs SmolLM2-135M through the whole path, device, emulated link and server, for
every point, and writes ``sweep.jsonl`` (a line for each point as it is done), ``sweep.csv`` and pictures to
``--out``. The same command goes on where it was stopped; a point that failed is tried again. ``--quick``
takes a minute. Points with a rate send a few samples; those without one train long enough for an accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness import machine
from benchmarks.link import Shape
from benchmarks.rig import DEVICE_CORE, Run, Server, measure, server
from benchmarks.sweep_plots import draw
from mobillm.cli.demo_data import LABELS, load_messages
from mobillm.device.batches import make_batches
from mobillm.formats import Format, row_size
from mobillm.nn.backbone import Backbone
from mobillm.nn.cache import cache_directory
from mobillm.nn.models import resolve_model
from mobillm.spec import CodecSpec, OptimizerSpec, SessionSpec, SideSpec

__all__ = ["FORMATS", "Point", "Results", "full", "main", "quick", "sweep"]

FORMATS = {2: "asym2", 3: "asym3", 4: "asym4", 6: "asym6", 8: "asym8", 16: "f16"}
BITS = tuple(FORMATS)
RATES = (2, 10, 50, 200)  # Mbit/s
NEAR = 20  # milliseconds, a round trip where that is not what varies
INTERRUPTED = 130
# For the estimate: tokens and samples a second on one core of a small server, and seconds of a session.
FORWARD, TRAIN, OPENING = 800.0, 200.0, 1.5
TOKENS = 23  # of a message, on average


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of the sweep.

    Attributes:
        bits: of a value.
        rate: Mbit/s of the link; 0 is no link between the two.
        rtt: milliseconds of a round trip.
        taps: tapped layers.
        tokens: which are sent.
        side: kind of the side network.
        train, heldout: samples.
        epochs: passes.
        batch: samples of a batch.

    """

    bits: int
    rate: float
    rtt: float = NEAR
    taps: str = "every:4"
    tokens: str = "all"
    side: str = "ladder"
    train: int = 48
    heldout: int = 0
    epochs: int = 1
    batch: int = 8

    @property
    def key(self) -> str:
        """Name of the point."""
        return "/".join(str(value) for value in dataclasses.astuple(self))

    @property
    def sent(self) -> int:
        """Tokens of each layer that are sent, about."""
        samples = self.train + self.heldout
        return samples if self.tokens == "last" else samples * TOKENS

    def seconds(self) -> float:
        """Return about how long the point takes."""
        layers = {"all": 30, "every:4": 8, "every:8": 4}.get(self.taps, 1)
        size = self.sent * layers * row_size(Format.parse(FORMATS[self.bits]), 64, 576)
        link = size * 8 / (self.rate * 1e6) if self.rate else 0.0
        forward = (self.train + self.heldout) * TOKENS / FORWARD
        return OPENING + max(link, forward) + self.train * self.epochs / TRAIN


def full() -> list[Point]:
    """Return the points of the full sweep."""
    grid = [Point(bits=bits, rate=rate) for bits, rate in itertools.product(BITS, RATES)]
    trips = [Point(bits=4, rate=10, rtt=rtt) for rtt in (0, 50, 200)]
    taps = [Point(bits=4, rate=10, taps=taps) for taps in ("30", "every:8", "all")]
    tokens = [Point(bits=4, rate=10, side="parallel", tokens=tokens) for tokens in ("all", "last")]
    trained: dict[str, Any] = {"rate": 0, "rtt": 0, "train": 512, "heldout": 400, "epochs": 4, "batch": 32}
    quality = [Point(bits=bits, **trained) for bits in BITS]
    quality += [Point(bits=4, taps=taps, **trained) for taps in ("30", "every:8")]
    quality += [Point(bits=4, side="parallel", tokens=tokens, **trained) for tokens in ("all", "last")]
    return [*grid, *trips, *taps, *tokens, *quality]


def quick() -> list[Point]:
    """Return the points of the quick sweep."""
    grid = [Point(bits=bits, rate=rate, train=24) for bits, rate in itertools.product((2, 4, 16), (10, 50))]
    more = [
        Point(bits=4, rate=10, train=24, side="parallel", tokens="last"),
        Point(bits=4, rate=10, train=24, taps="30"),
        Point(bits=4, rate=0, rtt=0, train=96, heldout=48, batch=16),
    ]
    return [*grid, *more]


class Results:
    """What is known of the points, in a file of JSON lines that only grows.

    Args:
        path: the file; a line that a kill cut in two is dropped.

    Attributes:
        done: figures of each point that was measured, by its key.

    """

    def __init__(self, path: pathlib.Path) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self._path = path
        if not path.exists():
            return
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            if "figures" in record:
                self.done[record["key"]] = record["figures"]

    def add(self, point: Point, *, figures: dict[str, Any] | None = None, error: str | None = None) -> None:
        """Note how a point went; it is on the disk when this returns."""
        record: dict[str, Any] = {"key": point.key, "point": dataclasses.asdict(point)}
        if figures is not None:
            record["figures"] = self.done[point.key] = figures
        else:
            record["error"] = error
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_csv(self, path: pathlib.Path, points: Sequence[Point]) -> None:
        """Write the points that are known as a table."""
        rows = [dataclasses.asdict(p) | flat(self.done[p.key]) for p in points if p.key in self.done]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["bits"])
            writer.writeheader()
            writer.writerows(rows)


def flat(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures with the keys of maps in them joined by dots."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


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
                    results.add(point, figures=run(point))
                except Exception as error:
                    failed += 1
                    text = f"{type(error).__name__}: {error}"
                    results.add(point, error=text)
                    on_done(point, text)
                    break
                on_done(point, None)
    return failed


class Device:
    """The model and the data, loaded once."""

    def __init__(self) -> None:
        self._backbone = Backbone.from_pretrained(resolve_model("smollm2"), dtype="bfloat16", taps="all")
        self._train, self._heldout = load_messages(cache_directory())

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
        "critical": run.summary.critical,
        "loss": run.loss,
        "accuracy": run.values.get("accuracy"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep, or what is left of it, and draw it."""
    parser = argparse.ArgumentParser(prog="benchmarks.sweep", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points and samples, about a minute")
    parser.add_argument(
        "--only",
        choices=("timed", "trained"),
        help="points over a link, which need a machine that does nothing else; or the others",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("sweep"), help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    points = quick() if args.quick else full()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "sweep.jsonl")
    chosen = [point for point in points if args.only is None or bool(point.rate) == (args.only == "timed")]
    left = [point for point in chosen if point.key not in results.done]
    seconds = sum(point.seconds() for point in left)
    console.print(f"{len(left)} of {len(chosen)} points to measure, about {seconds / 60:.1f} minutes")
    status = 0
    try:
        if left:
            status = _measure(left, results, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it stopped")
        return INTERRUPTED
    results.write_csv(args.out / "sweep.csv", points)
    (args.out / "machine.json").write_text(json.dumps(machine()) + "\n")
    known = [(point, results.done[point.key]) for point in points if point.key in results.done]
    for picture in draw(known, args.out):
        console.print(f"drawn: {picture}")
    return status


def _measure(points: Sequence[Point], results: Results, console: Console) -> int:
    console.print("loading SmolLM2-135M ...")
    device = Device()

    @contextlib.contextmanager
    def rigs() -> Iterator[Callable[[Point], dict[str, Any]]]:
        cores = os.sched_getaffinity(0)
        with server() as at:
            os.sched_setaffinity(0, {DEVICE_CORE})
            try:
                yield lambda point: device.run(point, at)
            finally:
                os.sched_setaffinity(0, cores)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        # In seconds of the estimate, so that the bar moves evenly.
        task = progress.add_task("measuring", total=round(sum(point.seconds() for point in points)))

        def on_done(point: Point, error: str | None) -> None:
            progress.advance(task, round(point.seconds()))
            if error is None:
                progress.console.print(f"{point.key}: {results.done[point.key]['wall']:.2f} s")
            else:
                progress.console.print(f"{point.key} failed: {error}", style="red", markup=False)

        failed = sweep(points, results, rigs, on_done)
    if failed:
        console.print(f"{failed} points failed; the same command tries them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
