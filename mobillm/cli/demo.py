"""``mobillm demo``: a server process and a device process fine-tune a real model on loopback."""

from __future__ import annotations

import argparse

from .arguments import Subparsers, add_command, at_least, between, file_path

__all__ = ["EPOCHS", "add", "run"]

EPOCHS = {"classification": 4, "causal-lm": 2}

_EXAMPLES = """\
  mobillm demo
  mobillm demo --task causal-lm
  mobillm demo --limit 200
  mobillm demo --trace demo-trace.json --out mood
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="fine-tune a real model on this machine, server and device in two processes",
        description="Fine-tune SmolLM2-135M on this machine: a server process and a device process that "
        "talk over loopback. The first run fetches the model and the data; later ones need no network.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--task",
        choices=tuple(EPOCHS),
        default="classification",
        help="classification tells the mood of short messages, causal-lm continues Python's "
        "documentation (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=between(1, 10_000),
        metavar="N",
        help="passes over the data (default: 4, causal-lm 2)",
    )
    parser.add_argument(
        "--limit", type=at_least(8), metavar="N", help="use only so many samples, for a quick look"
    )
    parser.add_argument(
        "--taps", default="every:3", help="layers whose output is sent (default: %(default)s)"
    )
    parser.add_argument("--out", type=file_path, metavar="DIR", help="keep the side network here")
    parser.add_argument("--trace", type=file_path, metavar="FILE", help="write a Chrome trace of both sides")


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    from .demo_run import run_demo

    return run_demo(args)
