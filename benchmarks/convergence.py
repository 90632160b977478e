"""How soon and how well does each method learn, on the same data, model and core?

``python -m benchmarks.convergence --task sst2 --data GLUE --json F``; for ``e2e`` and ``wikitext`` the folder
that holds ``e2e_nlg`` and ``wikitext-2``. SmolLM2-135M, three seeds. Each
training run is a point: a process of its own and a file in ``--points``; what is there is not run again. A
learning rate is the best of three on a fifth of the training samples, held out, with seed 0. Accuracy needs
no quiet machine. Time does: ``--time`` measures what a sample costs each method on one core, all in turn,
in :data:`TIMED_STEPS` steps that stand for an epoch, and what a whole run of ours costs the device's core and
takes on the wall; it is to be run where nothing else runs.

Keys, for each method and budget of epochs: ``accuracy.<method>.e<epochs>`` (mean over the seeds on dev, in
%; for CoLA Matthews' correlation) with ``.seeds``, and ``accuracy.<method>``, the best budget's; for texts
that are continued, one epoch of them, ``perplexity.<method>`` and ``ratio.<method>_over_lora`` of it instead;
``device_seconds.<method>`` of that budget; ``device_seconds_to.<method>`` and ``seconds_to.<method>``,
until the mean reaches LoRA's best minus 0.5 (null where it never does); ``device_speedup_vs_lora`` and
``speedup_vs_lora`` of each of ours, and without a method's name of the one that is there first, ``fastest``,
with ``_int8`` of those whose device computes in 8 bits; ``bytes_per_sample.<method>``. Seconds need a run
with ``--time`` before.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.convergence_plots import draw
from benchmarks.harness import machine, write_json
from benchmarks.tasks import TASKS

SEEDS = 3
CLOSE = 0.5  # points below LoRA's best that count as reaching it
TIMED_STEPS = 24


class Plan(NamedTuple):
    """What is run of a method: epochs of each budget, and the learning rates that are tried."""

    budgets: tuple[int, ...]
    rates: tuple[float, ...]


PLANS = {
    "lora": Plan((1, 2), (2e-4, 5e-4, 1e-3)),
    "full": Plan((1, 2), (1e-5, 3e-5, 1e-4)),
    "bitfit": Plan((2,), (1e-3, 3e-3, 1e-2)),
    "head": Plan((2,), (1e-3, 3e-3, 1e-2)),
    "mobillm": Plan((4,), ()),
    "mobillm_int8": Plan((4,), ()),
    "mobillm_tail": Plan((1, 2, 4), ()),
    "mobillm_tail_int8": Plan((2,), ()),
    "mobillm_tail_half": Plan((2,), ()),
}
OURS = ("mobillm", "mobillm_int8", "mobillm_tail", "mobillm_tail_int8", "mobillm_tail_half")
# Its steps are LoRA's, to the bit where arithmetic is exact; only the time differs.
SAME_AS = {"lora_checkpointing": "lora"}


class Study:
    """Points of one task, run once each.

    Args:
        task: of :data:`benchmarks.tasks.TASKS`.
        data: folder of the task's files.
        points: folder of the results.
        console: where progress goes.

    """

    def __init__(self, task: str, data: pathlib.Path, points: pathlib.Path, console: Console) -> None:
        self.task, self.data, self.points, self.console = task, data, points, console
        points.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> pathlib.Path:
        return self.points / f"{self.task}-{name}.json"

    def point(self, name: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Return a point, from its file or from a run."""
        path = self._path(name)
        if path.exists():
            known: dict[str, Any] = json.loads(path.read_text())
            return known
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.console.status(f"{self.task} {name} ..."):
            done = subprocess.run(
                [*command, "--data", str(self.data)], stdout=subprocess.PIPE, text=True, env=environment
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}")
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        figures |= {"command": " ".join(["python", *command[1:]]), "machine": machine()}
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(figures) + "\n")
        beside.replace(path)
        self.console.print(f"{self.task} {name}: {figures.get('curve', [figures])[-1]}")
        return figures

    def rate(self, method: str) -> float:
        """Return the learning rate with the best score on held-out training samples."""
        best = min if TASKS[self.task].lower else max
        scores = {
            lr: self.point(
                f"{method}-search-{lr:g}",
                "baselines",
                [method, self.task, "--epochs", "1", "--lr", f"{lr:g}", "--search"],
            )["curve"][-1][2]
            for lr in PLANS[method].rates
        }
        return best(scores, key=lambda lr: scores[lr])

    def runs(self, method: str, epochs: int, seeds: Iterable[int]) -> list[dict[str, Any]]:
        """Return the points of a budget, one for each seed."""
        found = []
        for seed in seeds:
            arguments = [method, self.task, "--epochs", str(epochs), "--seed", str(seed)]
            module = "tuned"
            if method not in OURS:
                arguments += ["--lr", f"{self.rate(method):g}"]
                module = "baselines"
            found.append(self.point(f"{method}-e{epochs}-s{seed}", module, arguments))
        return found

    def budgets(self, method: str) -> tuple[int, ...]:
        """Return the numbers of epochs of a method; texts to continue are seen once."""
        return (1,) if TASKS[self.task].lower else PLANS[method].budgets

    def measure(self, methods: Mapping[str, Sequence[int]]) -> None:
        """Measure the time of each method anew, of ours for each of the given numbers of epochs."""
        for method, budgets in methods.items():
            if method not in OURS:
                self._path(f"{method}-time").unlink(missing_ok=True)
                arguments = [method, self.task, "--lr", "1e-4", "--steps", str(TIMED_STEPS)]
                self.point(f"{method}-time", "baselines", arguments)
                continue
            for epochs in budgets:
                self._path(f"{method}-time-e{epochs}").unlink(missing_ok=True)
                self.point(f"{method}-time-e{epochs}", "tuned", [method, self.task, "--epochs", str(epochs)])

    def times(self) -> dict[str, dict[str, float]]:
        """Return what was measured of the time."""
        found: dict[str, dict[str, float]] = {}
        for method in [*PLANS, *SAME_AS]:
            path = self._path(f"{method}-time")
            if method not in OURS and path.exists():
                found[method] = {"device": json.loads(path.read_text())["seconds_per_sample"]}
        for method in OURS:
            for epochs in self.budgets(method):
                path = self._path(f"{method}-time-e{epochs}")
                if not path.exists():
                    continue
                whole = json.loads(path.read_text())
                trained, device, _ = whole["curve"][-1]
                # However many epochs, our device computes each sample once.
                found.setdefault(method, {}).update(
                    {"device": device / (trained / epochs), f"wall.e{epochs}": whole["seconds"]}
                )
        return found


def curve_of(runs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return the mean over seeds: samples and score of each measured place."""
    return [
        (places[0][0], statistics.mean(place[2] for place in places))
        for places in zip(*(run["curve"] for run in runs), strict=True)
    ]


def speeds(budgets: dict[str, dict[int, Any]], times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return what follows from scores over samples and the time of a sample.

    Args:
        budgets: points of each method and number of epochs.
        times: of each method ``device`` (seconds of a sample on the device's core, each time that it is
            computed there) and, of ours, ``wall.e<N>`` (seconds of a whole run).

    """
    figures: dict[str, Any] = {}
    best = max(score for runs in budgets["lora"].values() for _, score in curve_of(runs))
    for method, found in budgets.items():
        if method not in times:
            continue
        device: list[float] = []
        wall: list[float] = []
        for epochs, runs in found.items():
            passes = epochs if method in OURS else 1
            for samples, score in curve_of(runs):
                if score >= best - CLOSE:
                    device.append(samples / passes * times[method]["device"])
                    wall.append(times[method].get(f"wall.e{epochs}", device[-1]))
        figures[f"device_seconds_to.{method}"] = min(device, default=None)
        figures[f"seconds_to.{method}"] = min(wall, default=None)
    for method in OURS:
        for prefix in ("device_", ""):
            key = f"{prefix}seconds_to"
            own, lora = figures.get(f"{key}.{method}"), figures.get(f"{key}.lora")
            ratio = lora / own if own and lora else None
            figures[f"{prefix}speedup_vs_lora.{method}"] = ratio
    for suffix in ("", "_int8"):
        known = {
            method: figures[f"speedup_vs_lora.{method}"] or 0.0
            for method in OURS
            if method.endswith("_int8") == bool(suffix)
        }
        fastest = max(known, key=lambda method: known[method])
        if known[fastest]:
            figures[f"fastest{suffix}"] = fastest
            for prefix in ("device_", ""):
                key = f"{prefix}speedup_vs_lora"
                figures[f"{key}{suffix}"] = figures[f"{key}.{fastest}"]
    return figures


def summary(
    budgets: dict[str, dict[int, Any]],
    times: dict[str, dict[str, float]],
    samples: int,
    *,
    perplexity: bool = False,
) -> dict[str, Any]:
    """Return the keys.

    Args:
        budgets: points of each method and number of epochs.
        times: as :func:`speeds` takes them.
        samples: of the training set.
        perplexity: whether that is the score, so that less is better and no method's time to LoRA's is known.

    """
    figures: dict[str, Any] = {}
    name, best = ("perplexity", min) if perplexity else ("accuracy", max)
    for method, found in budgets.items():
        scores = {epochs: [run["curve"][-1][2] for run in runs] for epochs, runs in found.items()}
        for epochs, values in scores.items():
            figures[f"{name}.{method}.e{epochs}"] = round(statistics.mean(values), 3)
            figures[f"{name}.{method}.e{epochs}.seeds"] = values
        chosen = best(scores, key=lambda epochs: statistics.mean(scores[epochs]))
        figures[f"{name}.{method}"] = figures[f"{name}.{method}.e{chosen}"]
        if perplexity and method in OURS and "lora" in budgets:
            figures[f"ratio.{method}_over_lora"] = figures[f"{name}.{method}"] / figures[f"{name}.lora"]
        if "bytes" in found[chosen][0]:
            figures[f"bytes_per_sample.{method}"] = round(found[chosen][0]["bytes"] / samples)
        if method in times:
            passes = 1 if method in OURS else chosen
            figures[f"device_seconds.{method}"] = round(times[method]["device"] * samples * passes, 2)
    for name, twin in SAME_AS.items():
        if name in times and twin in times:
            figures[f"seconds_per_sample.{name}"] = times[name]["device"]
    if times and "lora" in budgets and not perplexity:
        figures |= speeds(budgets, times)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the keys."""
    parser = argparse.ArgumentParser(prog="benchmarks.convergence", description=__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="of the task's files")
    parser.add_argument("--methods", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N", help="budgets to run (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--points", type=pathlib.Path, default=pathlib.Path("benchmarks/results/convergence"))
    parser.add_argument("--time", action="store_true", help="measure time, on a quiet machine")
    parser.add_argument("--picture", type=pathlib.Path, metavar="F", help="draw the curves")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    if args.picture is not None and not set(args.methods) & set(OURS):
        parser.error(f"--picture needs one of {', '.join(OURS)} among --methods: they count the tokens")
    study = Study(args.task, args.data, args.points, Console(stderr=True))
    chosen = {
        method: [n for n in study.budgets(method) if args.epochs is None or n in args.epochs]
        for method in args.methods
    }
    for method, budgets_of in chosen.items():
        if not budgets_of:
            parser.error(
                f"--epochs {args.epochs} leaves nothing of {method}, which has {study.budgets(method)}"
            )
    if args.time:
        study.measure(chosen | {name: [] for name, twin in SAME_AS.items() if twin in chosen})
    times = study.times()
    task = TASKS[args.task]
    samples = len(task.load(args.data, "train").examples)
    budgets: dict[str, dict[int, Any]] = {}
    figures: dict[str, Any] = {}
    for method, budgets_of in chosen.items():
        for epochs in budgets_of:
            budgets.setdefault(method, {})[epochs] = study.runs(method, epochs, range(args.seeds))
            figures = {"task": args.task, "seeds": args.seeds, "samples": samples}
            figures |= summary(budgets, times, samples, perplexity=task.lower)
            write_json(args.json, figures)
    if args.picture is not None:
        draw(
            {method: {e: curve_of(runs) for e, runs in found.items()} for method, found in budgets.items()},
            {method: runs for method, found in budgets.items() for runs in found.values() if method in OURS},
            {method: figures["device"] for method, figures in times.items()},
            lambda method, epochs: 1 if method in OURS else epochs,
            args.picture,
        )
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
