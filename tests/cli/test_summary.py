"""Tests of what a run says at its end."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from mobillm.cli.summary import fraction, summary
from mobillm.device.progress import Report

REPORT = Report(
    session="0" * 32, steps=4, loss=0.5, detached=False, samples=10, tokens=100, seconds=5.0,
    stream_seconds=4.0, bytes_sent=1000, blob_bytes=0, bytes_fp16=4000, device_busy=2.0, device_rested=0.0,
    server_busy=1.0, both_busy=0.25, losses=0, evaluation=None, output="side", stopped=None,
)  # fmt: skip


def arguments(**changes: Any) -> argparse.Namespace:
    """Return the arguments of a run."""
    defaults = {
        "model": "smollm2", "dtype": "bfloat16", "compute_dtype": "auto", "heldout": None,
        "task": "classification", "out": Path("side"), "nice": False, "no_header": False,
        "text_column": None, "pair_column": None, "label_column": None, "stream_weights": False,
    }  # fmt: skip
    return argparse.Namespace(**(defaults | changes))


def test_what_a_run_cost() -> None:
    """Computing, sending and, if there was any, rest are told."""
    text = summary(REPORT, arguments())
    assert "a sample cost this device 200.0 ms of computing and 0.1 kB of sending" in text
    assert "in all 2.0 s of computing\n" in text
    rested = dataclasses.replace(REPORT, device_rested=2.5)
    text = summary(rested, arguments(nice=True))
    assert "in all 2.0 s of computing, on one thread at a low priority; it rested for 2.5 s\n" in text


def test_frozen_weights_are_told_apart() -> None:
    """What is sent to a server once is no cost of a sample."""
    text = summary(dataclasses.replace(REPORT, blob_bytes=2_000_000, bytes_sent=2_001_000), arguments())
    assert "sent 2.0 MB, 2.0 MB of it frozen weights, once; the rest 4.0 times less than in fp16;" in text
    assert "and 0.1 kB of sending" in text
    assert "sent 0.0 MB, 4.0 times less than in fp16;" in summary(REPORT, arguments())


def test_a_run_that_had_nothing_left_to_send() -> None:
    """It gives no figures of a sample: none went through the model."""
    report = dataclasses.replace(REPORT, samples=0, tokens=0, device_busy=0.0)
    lines = summary(report, arguments()).splitlines()
    assert "an earlier run had sent all samples" in lines[0]
    assert lines[1] == "saved to side"


def test_the_next_command_uses_the_model_in_the_same_way() -> None:
    """Types are named where they are not the default."""
    assert summary(REPORT, arguments()).endswith("next: mobillm predict --model smollm2 --side side ...")
    text = summary(REPORT, arguments(dtype="int8", compute_dtype="float32"))
    assert text.endswith("--side side --dtype int8 --compute-dtype float32 ...")
    assert summary(REPORT, arguments(stream_weights=True)).endswith("--side side --stream-weights ...")


def test_fraction(tmp_path: Path) -> None:
    """A number is a part of the data unless a file has that name."""
    assert fraction("0.1") == 0.1
    assert fraction("data.tsv") is None
    (tmp_path / "0.5").write_text("")
    assert fraction(str(tmp_path / "0.5")) is None
