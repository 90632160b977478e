"""``mobillm generate``: continue a prompt."""

from __future__ import annotations

import argparse
import time

from ..errors import ConfigError, ModelError
from .arguments import MAX_SEED, Subparsers, add_command, add_model, add_side, at_least, between
from .console import print_json
from .failure import DONE
from .loading import load_config, load_tuned
from .texts import check_text

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm generate --model stories15m --side stories --prompt "Once upon a time"
  mobillm generate --model stories15m --side stories --prompt "The cat" --temperature 0.8 --seed 7 --json
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "generate",
        run,
        summary="continue a prompt",
        description="Print the continuation of a prompt by a model with a side network that was trained for "
        "causal-lm. Nothing leaves the device.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_side(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument(
        "--max-new-tokens",
        type=at_least(1),
        default=64,
        metavar="N",
        help="most tokens to add (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="0 takes the likeliest token, above 0 samples (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=between(0, MAX_SEED),
        default=0,
        metavar="N",
        help="of the sampling (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Generate."""
    if not 0.0 <= args.temperature <= 100.0:
        raise ConfigError("temperature", args.temperature, "0 to 100")
    check_text(args.prompt, "--prompt", pair=False)
    config = load_config(args.side)
    if config.spec.task != "causal-lm":
        raise ModelError(
            f"--side {args.side} was trained for {config.spec.task}, which cannot generate; "
            "use 'mobillm predict' with it, or train one with --task causal-lm"
        )
    tuned = load_tuned(args, config)
    start = time.monotonic()
    text = tuned.generate(args.prompt, args.max_new_tokens, args.temperature, args.seed)
    if args.json:
        seconds = round(time.monotonic() - start, 3)
        print_json({"prompt": args.prompt, "text": text, "seconds": seconds})
    else:
        print(text)
    return DONE
