"""The command line: one module per command, torch imported only by the commands that need it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol

from ..errors import ConfigError, MobiLLMError
from ..version import __version__
from . import (
    certs,
    conformance,
    demo,
    evaluate,
    finetune,
    generate,
    plan,
    predict,
    pull,
    serve,
    sessions,
    trace,
)
from .arguments import EXIT_CODES, Parser, Subparsers
from .console import configure_logging, say
from .failure import FAILED, INTERRUPTED, USAGE, explain, missing_package, unexpected

__all__ = ["COMMANDS", "Command", "main"]


class Command(Protocol):
    """What a command's module offers."""

    def add(self, subparsers: Subparsers) -> None:
        """Add the command's parser, with ``run`` among its defaults."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return its exit status."""


COMMANDS: tuple[Command, ...] = (
    demo,
    serve,
    sessions,
    plan,
    finetune,
    pull,
    evaluate,
    predict,
    generate,
    trace,
    certs,
    conformance,
)

_EXAMPLES = """\
examples:
  mobillm serve
  mobillm finetune --model smollm2 --data train.tsv --heldout 0.1 --out mood
  mobillm predict --model smollm2 --side mood "what a day!"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        the exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # --help, --version and wrong usage
        return end.code if isinstance(end.code, int) else FAILED
    configure_logging(debug=args.debug, verbose=args.verbose)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("mobillm: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # who read it has left
        return FAILED
    except ConfigError as error:
        return _fail(explain(error, args), args, USAGE)
    except (MobiLLMError, OSError, MemoryError) as error:
        return _fail(explain(error, args), args)
    except ImportError as error:
        return _fail(missing_package(error) or unexpected(error), args)
    except Exception as error:
        return _fail(unexpected(error), args)
    return status


def _fail(text: str, args: argparse.Namespace, status: int = FAILED) -> int:
    if args.debug:
        traceback.print_exc()
    say(f"mobillm: error: {text}")
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return status


def _drop_output() -> None:
    """Keep the interpreter from writing at its exit what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    parser = Parser(
        prog="mobillm",
        description="Fine-tune a language model on a device that can only run it forward: a server trains "
        "a side network from streamed low-bit activations.",
        epilog=f"{_EXAMPLES}\nEvery command has its own --help.\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"mobillm {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return parser
