"""One fine-tuning run against a server: this process is the device, ``mobillm serve`` is another.

``python -m benchmarks.tuned METHOD TASK --data DIR --seed S --epochs E``, with the defaults of ``mobillm
finetune``, or the learning rate of ``--lr``. With ``--search`` the same fifth of the training
samples as in :mod:`benchmarks.baselines` is held out and judged by. It prints a line of JSON as that does:
``curve`` has one place, the end, and its seconds are the CPU time of this process from the first batch on;
``seconds`` is the whole run on the wall, ``bytes`` what was sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

import mobillm
from benchmarks.baselines import HELD_OUT, MAX_LENGTH
from benchmarks.harness import interruptible
from benchmarks.rig import DEVICE_CORE, server
from benchmarks.tasks import TASKS
from mobillm.defaults import DEFAULTS, defaults_of
from mobillm.device.batches import make_batches
from mobillm.device.dataset import Example
from mobillm.nn.evaluation import evaluate
from mobillm.nn.sidetuned import SideTuned
from mobillm.spec import SideSpec

__all__ = ["METHODS", "main"]


class Method(NamedTuple):
    """What is trained on the server, from what; taps are the command's where none are named."""

    side: str
    dtype: str = "bfloat16"
    taps: str | None = None


METHODS = {
    "mobillm": Method("ladder"),
    "mobillm_int8": Method("ladder", "int8"),
    "mobillm_tail": Method("tail"),
    "mobillm_tail_int8": Method("tail", "int8"),
    "mobillm_tail_half": Method("tail", taps="1/2"),
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train once and return what is printed."""
    task = TASKS[args.task]
    dataset, judged = task.load(args.data, "train"), task.load(args.data, "dev")
    if args.search:
        dataset, judged = dataset.split(HELD_OUT, 0)
    method = METHODS[args.method]
    optimizer = defaults_of(method.side).optimizer
    if args.lr is not None:
        optimizer = dataclasses.replace(optimizer, lr=args.lr)
    examples: Sequence[Example] = dataset.examples
    backbone = mobillm.Backbone.from_pretrained(
        "smollm2",
        dtype=method.dtype,
        taps=method.taps or defaults_of(method.side).taps,
        lm_head=task.kind == "causal-lm",
    )
    with server() as access, tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        report = mobillm.finetune(
            backbone,
            examples,
            server=str(access.address),
            token=access.token,
            task=task.kind,
            labels=task.labels,
            side=SideSpec(kind=method.side),
            optimizer=optimizer,
            epochs=args.epochs,
            max_length=MAX_LENGTH,
            seed=args.seed,
            output=pathlib.Path(folder),
        )
        used = time.process_time() - begun
        tuned = SideTuned.from_pretrained(backbone, folder)
    batches = make_batches(
        backbone,
        judged.examples,
        task=task.kind,
        batch_size=DEFAULTS.batch_size,
        max_length=MAX_LENGTH,
        seed=0,
        ending=tuned.config.ending,
    )
    figures = evaluate(tuned, ((batch.input_ids, batch.targets) for batch in batches))
    # All but perplexity is in %.
    score = round(figures[task.metric] * (1 if task.lower else 100), 3)
    return {
        "curve": [[len(examples) * args.epochs, round(used, 2), score]],
        "seconds": round(report.seconds, 2),
        "bytes": report.bytes_sent,
        "tokens": report.tokens,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train once and print a line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned", description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="of the task's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {DEVICE_CORE})
    with interruptible():
        print(json.dumps(run(args)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
