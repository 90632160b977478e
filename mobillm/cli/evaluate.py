"""``mobillm evaluate``: how good a side network is on examples with known targets."""

from __future__ import annotations

import argparse
import time

from ..device.dataset import load_examples
from ..errors import ConfigError
from .arguments import Subparsers, add_command, add_data, add_model, add_side, at_least
from .console import print_json, say
from .failure import DONE
from .loading import load_config, load_tuned

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm evaluate --model smollm2 --side mood --data dev.tsv
  mobillm evaluate --model smollm2 --side grammar --data dev.csv --text-column 3 --label-column 1 --no-header
  mobillm evaluate --model stories15m --side stories --data more.txt --limit 100 --json
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "evaluate",
        run,
        summary="measure a side network on examples with known targets",
        description="Print loss and accuracy (with two classes also F1 and MCC), mean squared error and "
        "correlation for regression, or loss, perplexity and next-token accuracy for causal-lm. All runs on "
        "this device; nothing is sent.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_side(parser)
    add_data(parser)
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=32,
        metavar="N",
        help="samples of one forward (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate a side network."""
    config = load_config(args.side)
    task = config.spec.task
    classes = (
        [str(number) for number in range(config.spec.outputs)] if config.labels is None else config.labels
    )
    data = load_examples(
        args.data,
        task=task,
        text_column=args.text_column,
        pair_column=args.pair_column,
        label_column=args.label_column,
        labels=classes if task == "classification" else None,
        limit=args.limit,
        header=not args.no_header,
    )
    if task != "causal-lm" and config.pairs != any(e.pair is not None for e in data.examples):
        expected = "the column of the second texts" if config.pairs else "none"
        raise ConfigError("pair_column", args.pair_column, f"{expected}, as --side {args.side} was trained")
    tuned = load_tuned(args, config)

    from ..device.batches import make_batches  # torch is there now
    from ..nn.evaluation import evaluate

    say(f"evaluating {len(data.examples)} examples ...")
    start = time.monotonic()
    batches = make_batches(
        tuned.backbone,
        data.examples,
        task=task,
        batch_size=args.batch_size,
        max_length=config.max_length,
        seed=0,
        ending=config.ending,
    )
    figures = evaluate(tuned, ((batch.input_ids, batch.targets) for batch in batches))
    figures["seconds"] = round(time.monotonic() - start, 3)
    if args.json:
        print_json({"task": task, **figures})
    else:
        for name, value in figures.items():
            print(f"{name:<10} {value:.6g}")
    return DONE
