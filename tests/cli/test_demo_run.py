"""The demo, whole but small: a server process and a device process on the real model."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from mobillm.cli import main

# A LoRA step in bf16 takes a minute alone on a CPU without instructions for it.
pytestmark = pytest.mark.timeout(300)


def demo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a small demo; return its figures and what it said meanwhile."""
    assert main(["demo", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    result: dict[str, Any] = json.loads(captured.out)
    return result, captured.err


def test_classification(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """All figures of the table come from a real run; the side network and the trace are kept."""
    side, trace = tmp_path / "side", tmp_path / "trace.json"
    options = ["--limit", "16", "--epochs", "2", "--out", str(side), "--trace", str(trace)]
    result, said = demo(capsys, *options)
    report = result["report"]
    assert report["samples"] == 24  # 16 and 8 held out
    assert report["steps"] == 2
    assert 3 < report["bytes_fp16"] / report["bytes_sent"] < 4
    assert 0 < report["evaluation"]["accuracy"] <= 1
    assert report["evaluation"]["samples"] == 8
    assert 0 < result["head_only"]["accuracy"] <= 1
    assert 300e6 < result["peak_bytes"] < result["lora_peak_bytes"]
    assert len(result["predictions"]) == 3
    assert (side / "side_model.safetensors").exists()
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"forward", "quantize", "send", "receive", "log", "train"} <= names
    assert "What leaves this device" in said


def test_causal_lm(capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity before and after, and a sample of each; the reader is told about token ids."""
    result, said = demo(capsys, "--task", "causal-lm", "--limit", "8", "--epochs", "1")
    assert result["after"] > 1
    assert result["before"] > 1
    assert result["text_before"]
    assert result["text_after"]
    assert "NEXT TOKEN'S ID IN PLAIN" in said
