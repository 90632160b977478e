"""``mobillm predict``: labels or values of texts."""

from __future__ import annotations

import argparse
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..errors import ModelError
from .arguments import Subparsers, add_command, add_model, add_side, at_least
from .console import print_json, say
from .failure import DONE
from .loading import load_config, load_tuned
from .texts import check_text

if TYPE_CHECKING:
    from ..nn.sidetuned import Prediction, SideConfig

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm predict --model smollm2 --side mood "what a day!" "never again"
  mobillm predict --model smollm2 --side mood --json < texts.txt
  printf 'one sentence\\tanother one\\n' | mobillm predict --model smollm2 --side paraphrase
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "predict",
        run,
        summary="label texts",
        description="Print label and probability, or the value of a regression, of each text on a line of "
        "its own, in order. The texts are arguments, or else the lines of standard input; a tab in one "
        "separates the sentences of a pair. With --json each line is an object. Nothing leaves the device.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_side(parser)
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=32,
        metavar="N",
        help="texts of one forward (default: %(default)s)",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: lines of standard input)")


def run(args: argparse.Namespace) -> int:
    """Predict."""
    for number, text in enumerate(args.texts, 1):
        check_text(text, f"text {number}")
    config = load_config(args.side)
    if config.spec.task == "causal-lm":
        raise ModelError(f"--side {args.side} was trained for causal-lm; use 'mobillm generate' with it")
    tuned = load_tuned(args, config)
    if not args.texts and sys.stdin.isatty():
        say("type texts, one per line; Ctrl-D ends")
    # Without a terminal to wait for, whole batches; lines that are typed are answered one by one.
    size = 1 if not args.texts and sys.stdin.isatty() else args.batch_size
    for texts in _batched(args.texts or _standard_input(), size):
        for text, prediction in zip(texts, tuned.predict([_pair(text) for text in texts], size), strict=True):
            if args.json:
                print_json(_as_map(text, prediction, config))
            elif prediction.value is not None:
                print(f"{prediction.value:.6g}")
            else:
                print(f"{prediction.label}\t{max(prediction.scores):.4f}")
        sys.stdout.flush()
    return DONE


def _standard_input() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that the line of a bad byte is known
    for number, line in enumerate(sys.stdin, 1):
        text = line.rstrip("\r\n")
        check_text(text, f"standard input, line {number}")
        yield text


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _pair(text: str) -> str | tuple[str, str]:
    first, tab, second = text.partition("\t")
    # Blanks around a text were dropped in training, too.
    return (first.strip(), second.strip()) if tab else text.strip()


def _as_map(text: str, prediction: Prediction, config: SideConfig) -> dict[str, object]:
    if prediction.value is not None:
        return {"text": text, "value": prediction.value}
    labels = config.labels or tuple(map(str, range(len(prediction.scores))))
    return {
        "text": text,
        "label": prediction.label,
        "score": max(prediction.scores),
        "scores": dict(zip(labels, prediction.scores, strict=True)),
    }
