"""What the options of ``mobillm finetune`` say, and which do not go together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from mobillm.cli import finetune
from mobillm.cli.arguments import Parser
from mobillm.cli.finetune_specs import codec, settle_kind
from mobillm.spec import CodecSpec
from tests.cli.commands import fails


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "nf4", "equalize": False}, CodecSpec(format="nf4", equalize=False)),
        ({}, CodecSpec()),
        ({"format": "f16"}, CodecSpec(format="f16")),
        ({"bits": "4,2", "equalize": False}, CodecSpec(equalize=False, bits=(2, 4))),
        ({"bits": "3", "block": 32}, CodecSpec(format="asym3", block=32)),
        ({"bits": "8,2"}, CodecSpec(format="asym2", bits=(2, 8))),
        ({"bits": "auto"}, CodecSpec(format="asym4", bits=(3, 4, 5, 6, 7, 8))),
        ({"bits": "auto", "min_bits": 5, "max_bits": 6}, CodecSpec(format="asym5", bits=(5, 6))),
        ({"bits": "auto", "min_bits": 6, "max_bits": 6}, CodecSpec(format="asym6")),
    ],
)
def test_widths(options: dict[str, Any], expected: CodecSpec) -> None:
    """Widths are one format, a list, or all between two bounds."""
    defaults = dict.fromkeys(("format", "block", "equalize", "bits", "min_bits", "max_bits"))
    if "bits" in options:
        options = {**options, "bits": finetune._bits(options["bits"])}
    assert codec(argparse.Namespace(**(defaults | options))) == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--side-rank", "4"], "--side-rank is 4; expected to be given with --side-kind tail only"),
        (["--side-kind", "head", "--task", "causal-lm"], "expected ladder, parallel or tail for --task"),
        (["--tokens", "loss"], "--tokens is 'loss'; expected all or last for the task classification"),
        (
            ["--tokens", "last", "--task", "causal-lm"],
            "--tokens is 'last'; expected all or loss for the task",
        ),
        (
            ["--tokens", "loss", "--task", "causal-lm"],
            "--side-kind is 'ladder'; expected parallel for the tokens 'loss': attention",
        ),
        (["--tokens", "last"], "--side-kind is 'ladder'; expected parallel or head for the tokens 'last'"),
        (
            ["--tokens", "last", "--side-kind", "head", "--side-pool", "mean"],
            "--side-pool is 'mean'; expected last for the tokens 'last'",
        ),
        (["--trace", "/dev"], "--trace is '/dev'; expected a file that can be written (Is a directory)"),
        (["--trace", "/dev/null/trace"], "expected a file that can be written (File exists)"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not go together is refused before anything is loaded."""
    arguments = ["finetune", "--model", "none", "--data", "none", "--out", str(tmp_path / "x"), *options]
    assert text in fails(capsys, *arguments, status=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (32, 5e-4, "every:4", 4)),
        (["--side-kind", "tail"], (16, 1e-3, "1/3", 4)),
        (["--side-kind", "tail", "--lr", "2e-4", "--batch-size", "8", "--taps", "3"], (8, 2e-4, "3", 4)),
        (["--task", "causal-lm"], (32, 5e-4, "every:4", 1)),
        (["--task", "causal-lm", "--epochs", "3"], (32, 5e-4, "every:4", 3)),
    ],
)
def test_defaults_of_a_kind(options: list[str], expected: tuple[int, float, str, int]) -> None:
    """LoRA above a tap has a batch size, a learning rate and a tap of its own, unless others are given.

    Labelled texts are passed over more often than texts that are continued.
    """
    parser = Parser(prog="mobillm", description="", epilog="")
    finetune.add(parser.add_subparsers())
    args = parser.parse_args(["finetune", "--model", "m", "--data", "d", "--out", "o", *options])
    settle_kind(args)
    assert (args.batch_size, args.lr, args.taps, args.epochs) == expected
