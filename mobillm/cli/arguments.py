"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigError
from ..nn.bits import BITS
from ..options import Limits
from ..transport import Address
from .failure import USAGE

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["Parser"]  # the type of what add_subparsers returns has no name
else:
    Subparsers = object

__all__ = [
    "EXIT_CODES",
    "LIMITS",
    "MAX_SEED",
    "MAX_THREADS",
    "Parser",
    "Subparsers",
    "add_command",
    "add_data",
    "add_model",
    "add_side",
    "address",
    "amount",
    "at_least",
    "between",
    "file_path",
    "half_of_cores",
    "limit",
]

MAX_COUNT = 10**9
MAX_THREADS = 1024
MAX_AMOUNT = 1024.0
MAX_SEED = (1 << 63) - 1
LIMITS = tuple(field.name for field in dataclasses.fields(Limits))
EXIT_CODES = "exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted"


class Parser(argparse.ArgumentParser):
    """A parser that keeps the layout of texts, takes no abbreviations and fails with one line."""

    def __init__(self, *, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, 90),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """Refuse unknown arguments at once, so that the command's own help is named and not that of all."""
        found, unknown = super().parse_known_args(*arguments, **named)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(USAGE, f"mobillm: error: {message}; see '{self.prog} --help'\n")


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
    verbose: bool = False,
) -> Parser:
    """Add a command with the options that all have.

    Args:
        subparsers: where to add it.
        name: the command.
        run: what runs it.
        summary: one line for the list of commands.
        description: what it does.
        examples: lines of the shell, indented.
        verbose: whether the log shows more than warnings.

    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        prog=f"mobillm {name}",
        description=description,
        epilog=f"examples:\n{examples}\n{EXIT_CODES}",
    )
    parser.add_argument("--json", action="store_true", help="results as JSON, alone on standard output")
    parser.add_argument("--debug", action="store_true", help="log everything; show the traceback of an error")
    parser.set_defaults(run=run, verbose=verbose)
    return parser


def add_model(parser: Parser) -> None:
    """Add which backbone is used, and how."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="smollm2, stories15m, a directory, a .gguf file, or a name on the Hugging Face hub",
    )
    group.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("auto", "bfloat16", "float16", "float32", *BITS),
        help="in which the weights are held (default: %(default)s); the same in training and in use. int8 "
        "and int4 quantize linear layers: int8 is the fastest on a CPU, int4 the smallest, both less exact",
    )
    group.add_argument(
        "--compute-dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="type in which a CPU computes; auto is float32 for bfloat16 weights if the CPU has no "
        "instructions for bfloat16 (default: %(default)s)",
    )
    group.add_argument(
        "--stream-weights",
        action="store_true",
        help="keep the layers on the disk, two of them in memory: for a model that is larger than the memory",
    )
    group.add_argument(
        "--threads",
        type=between(1, MAX_THREADS),
        default=half_of_cores(),
        metavar="N",
        help="torch threads (default: half of the cores)",
    )


def half_of_cores() -> int:
    """Return how many threads torch gets by default.

    Torch's own default, all of them, is many times slower as soon as anything else runs beside it, a
    server on the same machine, say: its threads wait for one another without sleeping.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def add_side(parser: Parser) -> None:
    """Add which trained side network is used."""
    parser.add_argument(
        "--side", required=True, type=file_path, metavar="DIR", help="side network, --out of mobillm finetune"
    )


def add_data(parser: Parser) -> None:
    """Add where the examples come from, and in which columns."""
    group = parser.add_argument_group(
        "data", "Columns are names, or numbers from 0. The ending of the file's name says how it is read."
    )
    group.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=".tsv, .csv, .jsonl or plain text (its paragraphs, or its lines if no line is blank); a name "
        "that is no file is a data set of the Hugging Face hub: NAME[:CONFIG[:SPLIT]]",
    )
    group.add_argument("--text-column", metavar="C", help="text (default: sentence or text)")
    group.add_argument(
        "--pair-column",
        metavar="C",
        help="second sentence; for causal-lm the completion: it follows the text as it is, and only it is "
        "learnt",
    )
    group.add_argument("--label-column", metavar="C", help="class or value (default: label)")
    group.add_argument("--no-header", action="store_true", help="the first line of a TSV or CSV is data")
    group.add_argument(
        "--limit", type=at_least(1), metavar="N", help="use the first N examples of --data only"
    )


def file_path(text: str) -> Path:
    """Read the path of a file or directory; an empty one does not mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path; is a variable of the shell not set?")
    return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """Return a reader of integers that are not below ``low``, nor beyond any use."""

    def read(text: str) -> int:
        value = _integer(text)
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f"{_shown(text)} is no integer of at least {low}")
        if value > MAX_COUNT:
            raise argparse.ArgumentTypeError(f"{_shown(text)} is above {MAX_COUNT}")
        return value

    return read


def between(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of integers from ``low`` to ``high``."""

    def read(text: str) -> int:
        value = _integer(text)
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{_shown(text)} is no integer from {low} to {high}")
        return value

    return read


def amount(text: str) -> float:
    """Read how much of something there is to be: a number that is not negative, parts of one allowed."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= MAX_AMOUNT:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no number from 0 to {MAX_AMOUNT:g}")
    return value


def limit(text: str) -> tuple[str, int]:
    """Read ``NAME=VALUE``, where the name is one of :class:`~mobillm.options.Limits`."""
    name, _, value = text.partition("=")
    number = _integer(value)
    if number is None or name not in LIMITS:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not NAME=INTEGER; names: {', '.join(LIMITS)}")
    return name, number


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # also for thousands of digits
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def address(text: str) -> Address:
    """Read an address."""
    try:
        return Address.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; expected {error.expected}") from None
