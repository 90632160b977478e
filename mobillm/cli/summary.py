"""What ``mobillm finetune`` says of its data before, and of its run afterwards."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..device.dataset import Dataset
from .console import early

if TYPE_CHECKING:
    from ..device.progress import Report

__all__ = ["count", "fraction", "summary"]


def count(train: Dataset, heldout: Dataset | None) -> str:
    """Say how many examples there are, and of which classes."""
    text = f"{len(train.examples)} examples to train on"
    if heldout is not None:
        text += f", {len(heldout.examples)} held out"
    if train.labels is not None:
        more = f" and {len(train.labels) - 8} more" if len(train.labels) > 8 else ""
        text += f"; {len(train.labels)} classes: {', '.join(train.labels[:8])}{more}"
    return text


def fraction(text: str) -> float | None:
    """Read ``--heldout`` as a number; None when it is the name of a file."""
    if Path(text).exists():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _pull_command(report: Report, args: argparse.Namespace) -> str:
    """Return the command that fetches a detached session's result, with this run's way to the server."""
    words = ["mobillm", "pull", report.session, "--out", str(args.out), "--server", str(args.server)]
    for name in ("token_file", "tenant", "ca", "cert", "key"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def summary(report: Report, args: argparse.Namespace) -> str:
    """Say how a run went, what it cost, and what may be done next."""
    loss = "" if report.loss is None else f", mean loss {report.loss:.4f} in the last epoch"
    trained = "the server trains on alone after" if report.detached else "trained"
    first = f"{trained} {report.steps} steps{early(report.stopped)} in {report.seconds:.1f} s{loss}"
    lines = [first + "; an earlier run had sent all samples, so none went through the model in this one"]
    if report.samples:
        lines = [
            f"{first}; {report.samples} samples with {report.tokens} tokens went through the model once",
            f"sent {report.bytes_sent / 1e6:.1f} MB{_saved(report)}; device and server computed at the same "
            f"time for {report.both_busy:.0%} of the streaming time",
            _cost(report, nice=args.nice),
        ]
    if report.evaluation is not None:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in report.evaluation.items())
        lines.append(f"held-out: {figures}")
    if report.detached:
        return "\n".join([*lines, f"next: {_pull_command(report, args)}"])
    lines += [f"saved to {report.output}", f"next: {_next_command(args)}"]
    return "\n".join(lines)


def _cost(report: Report, *, nice: bool) -> str:
    rested = "" if not report.device_rested else f"; it rested for {report.device_rested:.1f} s"
    how = ", on one thread at a low priority" if nice else ""
    return (
        f"a sample cost this device {1e3 * report.device_busy / report.samples:.1f} ms of computing "
        f"and {(report.bytes_sent - report.blob_bytes) / report.samples / 1e3:.1f} kB of sending, in all "
        f"{report.device_busy:.1f} s of computing{how}{rested}"
    )


def _saved(report: Report) -> str:
    """Compare what was sent of the samples with fp16; frozen weights are sent to a server once."""
    blobs = (
        f", {report.blob_bytes / 1e6:.1f} MB of it frozen weights, once; the rest"
        if report.blob_bytes
        else ","
    )
    samples = report.bytes_sent - report.blob_bytes
    return f"{blobs} {report.bytes_fp16 / samples:.1f} times less than in fp16"


def _next_command(args: argparse.Namespace) -> str:
    model = ["--model", args.model, "--side", str(args.out)]
    if args.stream_weights:  # what trained in little memory is to be used in little
        model.append("--stream-weights")
    for name, default in (("dtype", "bfloat16"), ("compute_dtype", "auto")):
        if getattr(args, name) != default:
            model += [f"--{name.replace('_', '-')}", getattr(args, name)]
    if args.heldout is None or fraction(args.heldout) is not None:
        last = (
            ["generate", *model, "--prompt", "..."]
            if args.task == "causal-lm"
            else ["predict", *model, "..."]
        )
        return shlex.join(["mobillm", *last])
    columns = [
        word
        for name in ("text_column", "pair_column", "label_column")
        if getattr(args, name) is not None
        for word in (f"--{name.replace('_', '-')}", getattr(args, name))
    ]
    header = ["--no-header"] if args.no_header else []
    return shlex.join(["mobillm", "evaluate", *model, "--data", args.heldout, *columns, *header])
