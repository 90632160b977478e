"""How much faster do sessions train together than one after the other?

``python -m benchmarks.grouped --json grouped.json``. 16 sessions of one shape, one thread, steps as the
server takes them: unpacking, forward and backward pass, clipping, AdamW, averages. Either one trainer after
the other, or groups of 2, 4, 8 and 16 (:mod:`mobillm.server.together`), whatever the server itself would
group. What is timed is the thread's processor time, medians of rounds that try all sizes in turn.

Keys: ``<shape>.alone_seconds`` of one session's step, ``.speedup.<size>`` of each group over that, ``.best``
of them, ``.grouped``: the largest of the sizes that the server takes, ``.grouped_speedup``: that of it;
``.difference``: largest one of losses. Shapes are ``<samples>x<width>x<taps>``.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import write_json
from mobillm.device.packing import pack_batch
from mobillm.server.batch import Batch
from mobillm.server.together import Grid, fits, step_together
from mobillm.server.trainer import Trainer
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

SESSIONS = 16
HIDDEN = 576  # as SmolLM2-135M
REPEATS = 11
SIZES = (2, 4, 8, 16)
SHAPES = (  # samples, width, taps
    (2, 32, 4),
    (4, 32, 4),
    (4, 32, 8),
    (8, 32, 8),
    (16, 32, 8),
    (4, 96, 8),
    (8, 96, 8),
    (16, 96, 8),
)


def make(samples: int, width: int, taps: int) -> tuple[list[Trainer], list[Batch]]:
    """Return the sessions' trainers and a batch of each; sentences have 8 to 16 tokens."""
    trainers, batches = [], []
    for seed in range(SESSIONS):
        spec = SessionSpec(
            task="classification",
            outputs=2,
            model=ModelSpec(
                name="grouped", hidden_size=HIDDEN, layers=32, taps=tuple(range(32 - taps + 1, 33))
            ),
            side=SideSpec(width=width, heads=4),
            optimizer=OptimizerSpec(schedule="constant"),
            seed=seed,
        )
        rng = np.random.default_rng(seed)
        lengths = rng.integers(8, 17, samples).tolist()
        hidden = [rng.standard_normal((sum(lengths), HIDDEN)).astype(np.float32) for _ in range(taps)]
        tensors = pack_batch(spec, hidden, lengths, rng.integers(0, 2, samples))
        headers = {number: packed.header for number, packed in tensors.items()}
        payloads: dict[int, bytes | memoryview] = {n: packed.payload for n, packed in tensors.items()}
        trainers.append(Trainer(spec, {}))
        batches.append(Batch(1, samples, False, headers, payloads))
    return trainers, batches


def step(trainers: Sequence[Trainer], batches: Sequence[Batch], size: int) -> list[float]:
    """Take one step of every session, so many at a time; return the losses."""
    if size == 1:
        return [trainer.step(batch) or 0.0 for trainer, batch in zip(trainers, batches, strict=True)]
    losses: list[float] = []
    for start in range(0, len(trainers), size):
        part = slice(start, start + size)
        for loss in step_together(trainers[part], [[batch] for batch in batches[part]]):
            assert isinstance(loss, float)
            losses.append(loss)
    return losses


def allowed(trainers: Sequence[Trainer], batches: Sequence[Batch]) -> int:
    """Return how many of the sessions the server would take together."""
    grid, *others = [Grid.of([batch]) for batch in batches]
    if not fits(trainers[0].spec, grid):
        return 1
    for other in others:
        if not fits(trainers[0].spec, grid | other):
            break
        grid |= other
    return grid.sessions


def measure(samples: int, width: int, taps: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Compare both ways for one shape: first that they train the same, then their times."""
    trainers, batches = make(samples, width, taps)
    difference = 0.0
    together, _ = make(samples, width, taps)
    for _ in range(3):
        losses = zip(step(trainers, batches, 1), step(together, batches, SESSIONS), strict=True)
        difference = max(difference, *(abs(one - two) for one, two in losses))
    found: dict[int, list[float]] = {size: [] for size in (1, *sizes)}
    for _ in range(REPEATS):
        for size, seconds in found.items():
            start = time.thread_time()
            step(trainers, batches, size)
            seconds.append((time.thread_time() - start) / SESSIONS)
    medians = {size: statistics.median(seconds) for size, seconds in found.items()}
    speedups = {size: round(medians[1] / medians[size], 2) for size in sizes}
    most = allowed(trainers, batches)
    grouped = max((size for size in sizes if size <= most), default=1)
    return {
        "alone_seconds": round(medians[1], 5),
        "speedup": speedups,
        "best": max(speedups.values()),
        "grouped": grouped,
        "grouped_speedup": speedups.get(grouped, 1.0),
        "difference": difference,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.grouped", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for shape in SHAPES:
        figures["x".join(map(str, shape))] = measure(*shape)
        Console(stderr=True).print(shape, figures["x".join(map(str, shape))])
    write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
