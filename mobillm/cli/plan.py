"""``mobillm plan``: what fine-tuning will need on this device, and what fits."""

from __future__ import annotations

import argparse
import dataclasses
import re
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..defaults import DEFAULTS, TAIL_DEFAULTS
from ..device.plan import Demand, Job, ModelFigures, choose, predict
from ..errors import ConfigError
from ..formats import BLOCKS, Format
from ..nn.bits import BITS
from ..nn.tokens import MAX_LENGTH
from ..spec import KINDS, CodecSpec, SideSpec
from .arguments import Subparsers, add_command, add_model, at_least, between
from .console import print_json, say
from .failure import DONE
from .finetune_specs import settle_layers
from .loading import OPENED, loading, open_backbone

if TYPE_CHECKING:
    from ..nn.backbone import Backbone

__all__ = ["add", "fit_memory", "run", "size"]

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_RATES = {"kbit": 125, "mbit": 125_000, "gbit": 125_000_000}
_ROUNDS = 3  # of the measurement; the fastest counts

_EXAMPLES = """\
  mobillm plan --model smollm2 --samples 3000 --length 25
  mobillm plan --model ./model --batch-size 16 --length 256 --memory-limit 1.5GiB --link 20mbit
  mobillm plan --model smollm2 --side-kind tail --length 25 --link 20mbit
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "plan",
        run,
        summary="predict memory, traffic and time of a run, and what fits",
        description="Open a model without loading its layers, time one of them, and predict what finetune "
        "will need on this device. With a limit of the memory or the rate of the link, say what to change.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--samples", type=at_least(1), default=1000, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--length",
        type=between(1, MAX_LENGTH),
        default=128,
        metavar="N",
        help="mean tokens of a sample (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help=f"default: {DEFAULTS.batch_size}; {TAIL_DEFAULTS.batch_size} for --side-kind tail",
    )
    group.add_argument(
        "--taps",
        metavar="T",
        help=f"as for finetune (default: {DEFAULTS.taps}; {TAIL_DEFAULTS.taps} for --side-kind tail)",
    )
    group.add_argument(
        "--side-kind",
        choices=KINDS,
        default=SideSpec().kind,
        help="as for finetune; for tail the server gets the layers above the tap (default: %(default)s)",
    )
    formats = [fmt.name.lower() for fmt in Format if fmt is not Format.I32]
    group.add_argument("--format", default=CodecSpec().format, choices=formats, help="default: %(default)s")
    group.add_argument(
        "--block", type=int, default=CodecSpec().block, choices=BLOCKS, help="default: %(default)s"
    )
    group.add_argument("--memory-limit", type=size, metavar="SIZE", help="such as 800MB or 1.5GiB")
    group.add_argument("--link", type=rate, metavar="RATE", help="such as 500kbit, 20mbit or 1gbit, a second")


def size(text: str) -> int:
    """Read a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected one such as 800MB or 1.5GiB")
    return int(float(found[1]) * _SIZES[found[2]])


def rate(text: str) -> float:
    """Read a rate in bits and return bytes per second."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]bit)(?:/s|ps)?", text.strip().lower())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; expected one such as 500kbit or 20mbit")
    return float(found[1]) * _RATES[found[2]]


def fit_memory(args: argparse.Namespace, codec: CodecSpec) -> None:
    """Set ``--stream-weights`` if ``finetune`` would need more than ``--memory-limit`` without.

    Args:
        args: of ``finetune``.
        codec: how taps are packed; the widest of several formats counts.

    Raises:
        ConfigError: the limit is too small even so, or the task keeps an LM head in memory.

    """
    if args.task == "causal-lm":
        raise ConfigError(
            "memory_limit", args.memory_limit, "another task than causal-lm, whose head stays in memory"
        )
    backbone = open_backbone(args, taps=args.taps)
    job = Job(
        samples=1,
        length=min(args.max_length, backbone.positions or args.max_length),
        batch=args.batch_size,
        taps=tuple(backbone.taps),
        format=codec.formats[-1].name.lower(),
        block=codec.block,
        streamed=args.stream_weights,
        tail=args.side_kind == "tail",
    )
    model = _figures(backbone)
    found, demand, reasons = choose(model, job, memory_limit=args.memory_limit, link=None, span=backbone.span)
    if found.batch != job.batch:
        need = predict(model, dataclasses.replace(found, batch=job.batch), None, backbone.span)
        raise ConfigError(
            "memory_limit",
            f"{args.memory_limit / 2**20:,.0f} MiB",
            f"at least {need.memory_bytes / 2**20:,.0f} MiB, or --batch-size {found.batch}",
        )
    args.stream_weights = found.streamed
    for reason in reasons:
        say(reason)
    say(f"about {demand.memory_bytes / 2**20:,.0f} MiB will be needed")


def run(args: argparse.Namespace) -> int:
    """Predict, choose and print."""
    settle_layers(args)
    with loading("torch"):
        backbone = open_backbone(args, taps=args.taps)
    if backbone.positions is not None and args.length > backbone.positions:
        raise ConfigError("length", args.length, f"at most {backbone.positions}, as the model has positions")
    if args.side_kind == "tail":
        from ..nn.tail import describe_tail

        describe_tail(backbone)  # refused here as it would be by finetune
    say("timing a layer ...")
    model = _figures(backbone)
    model = dataclasses.replace(
        model, layer_seconds=_layer_seconds(backbone, min(args.length, model.part), model.part)
    )
    job = Job(
        samples=args.samples,
        length=args.length,
        batch=args.batch_size,
        taps=tuple(backbone.taps),
        format=args.format,
        block=args.block,
        streamed=args.stream_weights,
        tail=args.side_kind == "tail",
    )
    job, demand, reasons = choose(
        model, job, memory_limit=args.memory_limit, link=args.link, span=backbone.span
    )
    if args.json:
        figures = dataclasses.asdict(demand) | {"seconds": demand.seconds, "reasons": reasons}
        figures |= {"job": dataclasses.asdict(job), "model": dataclasses.asdict(model)}
        print_json(figures | {"next": _command(args, job)})
    else:
        print(_text(args, model, job, demand, reasons))
    return DONE


def _figures(backbone: Backbone) -> ModelFigures:
    """Measure the process and count the model's weights; no layer was read or timed yet."""
    weights = backbone.weight_bytes()
    quantized = backbone.bits is not None
    itemsize = backbone.compute_dtype.itemsize
    unread = weights.layer * max(0, backbone.layers - OPENED)
    base = _resident() - (weights.total - unread if quantized else weights.outside)
    # What is computed with in 8 bits is not expanded.
    expands = backbone.bits == BITS["int4"] or (not quantized and backbone.compute_dtype != backbone.dtype)
    return ModelFigures(
        layers=backbone.layers,
        hidden_size=backbone.hidden_size,
        inner_size=weights.widest,
        itemsize=itemsize,
        weight_bytes=weights.total,
        layer_bytes=weights.layer,
        outside_bytes=weights.outside,
        base_bytes=base,
        part=backbone.part,
        layer_seconds=0.0,
        workspace_bytes=weights.module * itemsize if expands else 0,
        streamable=not quantized,
        sent_bytes=2 * max(map(backbone.layer_values, range(backbone.layers))),
    )


def _resident() -> int:
    """Return the resident bytes of this process; the peak where the system tells nothing else."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _layer_seconds(backbone: Backbone, length: int, tokens: int) -> float:
    """Time the first layers on a part's worth of tokens; return the seconds of a layer for a token."""
    several = min(100, backbone.parts.vocabulary)
    samples = [[number % several for number in range(length)]] * max(1, tokens // length)
    depth = min(OPENED, backbone.layers)
    tapped, bare = backbone.with_taps([depth]), backbone.with_taps([0])
    times = []
    for _ in range(_ROUNDS):
        start = time.monotonic()
        bare.forward(samples, lambda *_: None)
        middle = time.monotonic()
        tapped.forward(samples, lambda *_: None)
        times.append(time.monotonic() - middle - (middle - start))
    return max(min(times), 1e-9) / depth / (len(samples) * length)


def _text(args: argparse.Namespace, model: ModelFigures, job: Job, demand: Demand, reasons: list[str]) -> str:
    taps = f"{len(job.taps)} tap{'s' * (len(job.taps) > 1)}"
    mode = "streamed from the disk" if job.streamed else "in memory"
    link = f", sending {demand.link_seconds:,.1f} s" if demand.link_seconds else ""
    lines = [
        f"{model.layers} layers of {model.layer_bytes / 2**20:,.1f} MiB, {mode}; {taps}, "
        f"{job.format}; batches of {job.batch} samples of {job.length} tokens",
        f"memory   {demand.memory_bytes / 2**20:,.0f} MiB: {model.base_bytes / 2**20:,.0f} code, "
        f"{demand.weights_bytes / 2**20:,.0f} weights, {demand.work_bytes / 2**20:,.0f} hidden states, "
        f"{demand.packed_bytes / 2**20:,.0f} packed",
        f"traffic  {demand.traffic_bytes / 1e6:,.1f} MB, {demand.token_bytes:,} bytes a token",
        f"time     {demand.seconds:,.1f} s of this device for {job.samples} samples: computing "
        f"{demand.compute_seconds:,.1f} s{link}",
    ]
    if job.tail:
        wait = f", in {demand.upload_seconds:,.1f} s" if demand.upload_seconds else ""
        lines.append(
            f"layers   {demand.upload_bytes / 1e6:,.1f} MB of them to a server that lacks them, once{wait}"
        )
    lines += [f"change   {reason}" for reason in reasons]
    return "\n".join([*lines, f"next: {_command(args, job)}"])


def _command(args: argparse.Namespace, job: Job) -> str:
    """Return the command that was planned; its data and directory are to be filled in."""
    command = ["mobillm", "finetune", "--model", args.model, "--batch-size", str(job.batch)]
    command += ["--side-kind", args.side_kind] if args.side_kind != SideSpec().kind else []
    command += ["--taps", args.taps, "--format", job.format]
    command += ["--stream-weights"] if job.streamed and not job.tail else []
    command += ["--memory-limit", str(args.memory_limit)] if args.memory_limit is not None else []
    for name, default in (("dtype", "bfloat16"), ("compute_dtype", "auto")):
        if getattr(args, name) != default:
            command += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return f"{shlex.join(command)} --data FILE --out DIR"
