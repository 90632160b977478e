"""``mobillm finetune``: train a side network on a server with the data of this device."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..defaults import DEFAULTS, EPOCHS, TAIL_DEFAULTS
from ..device.dataset import Dataset, load_examples
from ..device.pending import PENDING_FILE
from ..device.resume import SESSION_FILE
from ..errors import ConfigError, ErrorCode, RemoteError
from ..formats import BLOCKS, Format
from ..nn.taps import parse_taps
from ..nn.tokens import MAX_LENGTH
from ..options import Timeouts
from ..spec import COMPRESSIONS, KINDS, POOLS, SCHEDULES, TASKS, TOKENS, CodecSpec, OptimizerSpec, SideSpec
from .access import add_access, check_server, device_tls, device_token
from .arguments import (
    MAX_SEED,
    Parser,
    Subparsers,
    add_command,
    add_data,
    add_model,
    at_least,
    between,
    file_path,
)
from .console import print_json, say
from .failure import DONE, FAILED
from .finetune_specs import MAX_BITS, MIN_BITS, settle_kind, specs
from .loading import check_output, check_trace, load_backbone, loading
from .plan import fit_memory, size
from .summary import count, fraction, summary

__all__ = ["add", "run"]

NICE_DUTY = 0.5
NICENESS = 10  # of 19; what a person does is answered first, and the run still goes on beside other work
MAX_LAYERS = 1024  # of any model, as the session's spec bounds them

_EXAMPLES = """\
  mobillm finetune --model smollm2 --data train.tsv --heldout dev.tsv --epochs 3 --out mood
  mobillm finetune --model smollm2 --data train.csv --text-column 3 --no-header \\
      --label-column 1 --out grammar
  mobillm finetune --model stories15m --task causal-lm --data stories.txt --out stories
  mobillm finetune --server mobillms://gpu.example:7707 --ca ca.pem --token-file token \\
      --model ./model --data train.jsonl --text-column q --label-column a --out answers
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "finetune",
        run,
        summary="train a side network with the data of this device",
        description="Run a frozen model over the examples, send its packed hidden states to a server, let "
        "it train a side network, and save that to --out. What leaves the device is shown before it does.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    parser.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="such as 800MB or 1.5GiB: stream the weights if they do not fit, refuse what does not even so; "
        "by prediction, see mobillm plan",
    )
    add_data(parser)
    data = parser.add_argument_group("training")
    data.add_argument("--task", choices=TASKS, default="classification", help="default: %(default)s")
    data.add_argument(
        "--labels", type=_names, metavar="A,B,...", help="class names in order (default: sorted)"
    )
    data.add_argument(
        "--heldout",
        metavar="FILE|PART",
        help="evaluate on this file, or on a random part such as 0.1 of --data; never trained on",
    )
    data.add_argument(
        "--epochs",
        type=between(1, 10_000),
        metavar="N",
        help="passes, of which the device computes one (default: "
        f"{EPOCHS['classification']}; {EPOCHS['causal-lm']} for causal-lm)",
    )
    data.add_argument(
        "--early-stopping",
        type=between(0, 10_000),
        default=0,
        metavar="N",
        help="end after N epochs without a lower held-out loss, with the best epoch's weights; needs "
        "--heldout (default: %(default)s, train all epochs)",
    )
    data.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help=f"samples of a step (default: {DEFAULTS.batch_size}; "
        f"{TAIL_DEFAULTS.batch_size} for --side-kind tail)",
    )
    data.add_argument(
        "--max-length",
        type=between(1, MAX_LENGTH),
        default=128,
        metavar="N",
        help="most tokens (default: %(default)s)",
    )
    data.add_argument(
        "--seed", type=between(0, MAX_SEED), default=0, metavar="N", help="default: %(default)s"
    )
    _add_share(parser)
    _add_side(parser)
    _add_optimizer(parser)
    add_access(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", required=True, type=file_path, metavar="DIR", help="where the side network goes"
    )
    output.add_argument("--overwrite", action="store_true", help="replace a side network in --out")
    output.add_argument(
        "--detach",
        action="store_true",
        help="come back when the server has everything on its disk; it trains on alone, and 'mobillm pull' "
        "fetches the result",
    )
    output.add_argument("--trace", type=file_path, metavar="FILE", help="write a Chrome trace of both sides")


def _add_share(parser: Parser) -> None:
    group = parser.add_argument_group("what the device gives")
    group.add_argument(
        "--nice",
        action="store_true",
        help="compute on one thread, at a low priority, and in half of the time: slower, but the device "
        "stays cool and usable",
    )
    group.add_argument(
        "--duty",
        type=_share,
        metavar="P",
        help=f"compute in this part of the time at most, such as 0.3 (default: 1; with --nice {NICE_DUTY:g})",
    )


def _add_side(parser: Parser) -> None:
    side, codec = SideSpec(), CodecSpec()
    formats = [fmt.name.lower() for fmt in Format if fmt is not Format.I32]
    group = parser.add_argument_group("side network and packing")
    group.add_argument(
        "--taps",
        type=_taps,
        metavar="T",
        help="layers whose output is sent: all, every:N, N/M (one, after that part of the layers), or a list "
        f"such as 6,10,30 (default: {DEFAULTS.taps}; {TAIL_DEFAULTS.taps} for --side-kind tail)",
    )
    # No defaults where what was given has to be told from what was not: see _codec.
    packing = group.add_mutually_exclusive_group()
    packing.add_argument("--format", choices=formats, help=f"default: {codec.format}")
    packing.add_argument(
        "--bits",
        type=_bits,
        metavar="B",
        help="width of codes, instead of --format: 4, a list such as 2,4,8 from which each tap gets what the "
        "link carries, or auto for all from --min-bits to --max-bits",
    )
    for name, default in (("min", MIN_BITS), ("max", MAX_BITS)):
        group.add_argument(
            f"--{name}-bits",
            type=between(2, 8),
            metavar="N",
            help=f"for --bits auto (default: {default})",
        )
    group.add_argument(
        "--equalize",
        action=argparse.BooleanOptionalAction,
        help="divide channels by their typical size before packing, in formats with blocks (default: on)",
    )
    group.add_argument(
        "--compression",
        choices=COMPRESSIONS,
        default=codec.compression,
        help="compress what was packed, without loss: zstd sends a twentieth less for long texts, a fifth "
        "for single sentences, and is slower than none where the link carries more than about 100 Mbit/s "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--block",
        type=int,
        choices=BLOCKS,
        help=f"values that share a scale, in formats with blocks (default: {codec.block})",
    )
    group.add_argument(
        "--tokens",
        default=TOKENS[0],
        choices=TOKENS,
        help="which are sent: all, or with kinds of side network that look at each token alone: loss, those "
        "that enter the loss (causal-lm; --side-kind parallel), or last, each sample's last one (the other "
        "tasks; --side-kind parallel or head) (default: %(default)s)",
    )
    group.add_argument(
        "--side-kind",
        default=side.kind,
        choices=KINDS,
        help="tail is LoRA in the layers above the one tap, saved as a PEFT adapter: the server gets a copy "
        "of those layers, and the device computes only what is below (default: %(default)s)",
    )
    group.add_argument(
        "--side-rank",
        type=between(1, 1024),
        metavar="N",
        help=f"of LoRA, for --side-kind tail (default: {side.rank})",
    )
    group.add_argument(
        "--side-width", type=at_least(1), default=side.width, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--side-heads", type=at_least(1), default=side.heads, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--side-dropout", type=float, default=side.dropout, metavar="P", help="default: %(default)s"
    )
    group.add_argument(
        "--side-pool",
        default=side.pool,
        choices=POOLS,
        help="token that feeds the head (default: %(default)s)",
    )


def _add_optimizer(parser: Parser) -> None:
    optimizer = OptimizerSpec()
    group = parser.add_argument_group("optimizer (AdamW)")
    group.add_argument(
        "--lr",
        type=float,
        metavar="X",
        help=f"peak learning rate (default: {optimizer.lr:g}; "
        f"{TAIL_DEFAULTS.optimizer.lr:g} for --side-kind tail)",
    )
    for name, text in (
        ("weight_decay", "of matrices"),
        ("warmup", "part of the steps spent rising to --lr"),
        ("clip", "largest gradient norm; 0: none"),
        ("ema", "decay of the averaged weights; 0: none"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=getattr(optimizer, name),
            metavar="X",
            help=f"{text} (default: %(default)s)",
        )
    group.add_argument(
        "--schedule", default=optimizer.schedule, choices=SCHEDULES, help="default: %(default)s"
    )


def _taps(text: str) -> str:
    """Refuse what cannot be the layers of any model; the model's own number of layers is not known yet."""
    try:
        parse_taps(text, MAX_LAYERS)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error.value!r} is no choice; expected {error.expected}") from None
    return text


def _bits(text: str) -> tuple[int, ...]:
    """Read ``--bits``; no width at all stands for ``auto``."""
    if text == "auto":
        return ()
    try:
        widths = tuple(sorted(int(word) for word in text.split(",")))
    except ValueError:
        widths = ()
    if not widths or widths[0] < 2 or widths[-1] > 8 or len(set(widths)) < len(widths):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no choice; expected 2 to 8, a list of those, each once, or auto"
        )
    return widths


def _share(text: str) -> float:
    """Read a part of the time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, up to 1")
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Train and save a side network."""
    # What can be refused at once is refused before torch and the model are loaded.
    settle_kind(args)
    side, optimizer, codec = specs(args)
    if args.trace is not None:
        check_trace(args.trace)
    tenant, secret = device_token(args)
    tls = device_tls(args)
    timeouts = Timeouts(reconnect=args.patience)
    if args.early_stopping and args.heldout is None:
        raise ConfigError("early_stopping", args.early_stopping, "0, or --heldout with it")
    train, heldout = _load_data(args)
    say(count(train, heldout))
    check_server(args.server, tenant, secret, tls)
    _be_nice(args)
    with loading("torch"):
        from ..device.finetune import finetune
        from .progress import ProgressDisplay

    check_output(args.out, overwrite=args.overwrite)
    if args.memory_limit is not None:
        fit_memory(args, codec)
    backbone = load_backbone(args, taps=args.taps, lm_head=args.task == "causal-lm")
    disclosed = sys.stderr if args.json else sys.stdout
    with ProgressDisplay() as display, _how_to_go_on(args.out):
        report = finetune(
            backbone,
            train.examples,
            server=str(args.server),
            token=secret,
            tenant=tenant,
            task=args.task,
            labels=train.labels,
            heldout=() if heldout is None else heldout.examples,
            side=side,
            optimizer=optimizer,
            codec=codec,
            tokens=args.tokens,
            epochs=args.epochs,
            batch_size=args.batch_size,
            max_length=args.max_length,
            early_stopping=args.early_stopping,
            seed=args.seed,
            output=args.out,
            detach=args.detach,
            duty=args.duty,
            on_start=lambda text: print(text, file=disclosed, flush=True),
            on_progress=display.update,
            trace=args.trace,
            tls=tls,
            timeouts=timeouts,
        )
    if args.json:
        print_json(dataclasses.asdict(report))
    else:
        print(summary(report, args))
    if report.trace_error is not None:
        say(f"mobillm: error: {report.trace_error}; the result is not concerned")
        return FAILED
    return DONE


def _be_nice(args: argparse.Namespace) -> None:
    """Settle threads, priority and duty."""
    if args.nice:
        args.threads = 1
        os.nice(NICENESS)
    if args.duty is None:
        args.duty = NICE_DUTY if args.nice else 1.0


@contextlib.contextmanager
def _how_to_go_on(directory: Path) -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost, and how to start anew where the session is."""
    session = directory / SESSION_FILE
    try:
        yield
    except KeyboardInterrupt:
        if (directory / PENDING_FILE).exists():
            say(
                "the server has everything and trains on; the same command again, or "
                f"'mobillm pull --out {directory}', fetches the result later"
            )
        elif session.exists():
            say(
                "the session stays on the server; the same command again goes on with it, "
                f"deleting {session} starts anew"
            )
        raise
    except RemoteError as error:
        if error.code == ErrorCode.SESSION_UNKNOWN and session.exists():
            say(f"the session of {session} is gone; delete that file, and the same command starts anew")
        raise


def _load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset | None]:
    def load(source: str, labels: list[str] | None, limit: int | None) -> Dataset:
        return load_examples(
            source,
            task=args.task,
            text_column=args.text_column,
            pair_column=args.pair_column,
            label_column=args.label_column,
            labels=labels,
            limit=limit,
            header=not args.no_header,
        )

    train = load(args.data, args.labels, args.limit)
    if args.heldout is None:
        return train, None
    part = fraction(args.heldout)
    if part is not None:
        return train.split(part, args.seed)
    return train, load(args.heldout, None if train.labels is None else list(train.labels), None)
