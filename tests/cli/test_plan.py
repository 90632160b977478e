"""Tests of ``mobillm plan``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import pytest

from mobillm.cli import main, plan
from mobillm.cli.plan import fit_memory, rate, size
from mobillm.device.plan import ModelFigures
from mobillm.errors import ConfigError
from mobillm.formats import Format, row_size
from mobillm.nn.layers import Parts
from mobillm.spec import CodecSpec
from tests.cli.commands import fails


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5GiB", 3 << 29), ("800MB", 800_000_000), ("5 k", 5000), ("7", 7), ("2Ki", 2048)],
)
def test_sizes(text: str, expected: int) -> None:
    """Sizes have decimal or binary units."""
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("20mbit", 2.5e6), ("500 kbit/s", 62_500.0), ("1Gbit", 1.25e8)]
)
def test_rates(text: str, expected: float) -> None:
    """Rates are bits a second and come back as bytes."""
    assert rate(text) == expected


def test_bad_words() -> None:
    """What is no size or rate is refused with an example."""
    for text in ("", "many", "1tib", "-5MB", "i"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 800MB"):
            size(text)
    for text in ("", "20", "0mbit", "20mb"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 500kbit"):
            rate(text)


def test_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are those of the model and the run."""
    command = ["plan", "--model", model, "--samples", "10", "--length", "8", "--taps", "1,3", "--json"]
    assert main([*command, "--dtype", "float32"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    row = row_size(Format.ASYM4, 64, 16)
    assert (found["token_bytes"], found["traffic_bytes"]) == (2 * row, 10 * 8 * 2 * row)
    assert found["job"]["taps"] == [1, 3]
    assert found["model"]["layers"] == 3
    layer = 4 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16)
    assert found["model"]["layer_bytes"] == layer
    assert found["model"]["weight_bytes"] == 3 * layer + 4 * (40 * 16 + 16)
    assert found["model"]["outside_bytes"] == 4 * 16
    assert found["memory_bytes"] > found["model"]["base_bytes"] > 50e6
    assert found["compute_seconds"] > 0
    assert found["reasons"] == []
    assert found["next"].startswith("mobillm finetune --model")


def test_storage_and_compute_types(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights count as they are held, hidden states as they are computed, and expanded weights once."""

    def figures(*options: str) -> dict[str, Any]:
        assert main(["plan", "--model", model, "--length", "8", "--json", *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["model"]
        return found

    native = figures("--compute-dtype", "bfloat16")
    expanded = figures("--compute-dtype", "float32")
    eight = figures("--dtype", "int8", "--compute-dtype", "float32")
    four = figures("--dtype", "int4", "--compute-dtype", "float32")
    assert [found["itemsize"] for found in (native, expanded, eight, four)] == [2, 4, 4, 4]
    assert native["layer_bytes"] == expanded["layer_bytes"]
    largest = 4 * 16 * 24
    assert [f["workspace_bytes"] for f in (native, expanded, eight, four)] == [0, largest, 0, largest]
    linear = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24
    outputs = 2 * 16 + 2 * 8 + 2 * 24 + 16
    assert eight["layer_bytes"] == linear + 12 * outputs + 2 * 2 * 16  # a scale and a zero for each output
    assert four["layer_bytes"] < eight["layer_bytes"]
    assert [found["streamable"] for found in (native, eight, four)] == [True, False, False]
    arguments = ["plan", "--model", model, "--length", "8", "--dtype", "int8"]
    assert main(arguments) == 0
    assert "--dtype int8" in capsys.readouterr().out
    text = fails(capsys, *arguments, "--memory-limit", "5MiB", status=2)
    assert "for single samples;" in text


def test_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People get four lines, each change with its reason, and the command to run."""
    command = ["plan", "--model", model, "--samples", "10000", "--length", "8", "--link", "1kbit"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["memory", "traffic", "time"]
    assert "change   asym3: the link needs" in lines[4]
    assert lines[-1].startswith("next: mobillm finetune --model")
    assert "--format asym2" in lines[-1]


def test_tail(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A tail's layers are streamed or quantized; those above go up once, in bf16, and the command says so."""
    command = ["plan", "--model", model, "--length", "8", "--side-kind", "tail", "--link", "8kbit"]
    sent = 2 * 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16)
    for dtype, streamed in (("float32", True), ("int8", False)):
        assert main([*command, "--dtype", dtype, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["job"]["taps"], found["job"]["batch"], found["job"]["streamed"]) == ([1], 16, streamed)
        assert (found["upload_bytes"], found["upload_seconds"]) == (sent, pytest.approx(sent / 1000))
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "layers   0.0 MB of them to a server that lacks them, once, in 7.8 s" in text
    assert "shorter samples send less" in text
    assert "--side-kind tail --taps 1/3" in text
    assert "--stream-weights" not in text


def _limited(model: str, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "model": model, "dtype": "float32", "compute_dtype": "auto", "threads": 1,
            "stream_weights": False, "side_kind": "ladder",
            "task": "classification", "taps": "all", "max_length": 128, "batch_size": 4,
            "memory_limit": 1 << 40, **changes,
        }
    )  # fmt: skip


def test_fit_memory(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights are streamed only when the limit asks for it; batches are never changed unasked."""
    args = _limited(model)
    fit_memory(args, CodecSpec())
    assert not args.stream_weights
    assert "MiB will be needed" in capsys.readouterr().err
    figures = ModelFigures(
        layers=3, hidden_size=16, inner_size=24, itemsize=4, weight_bytes=900 << 20, layer_bytes=9 << 20,
        outside_bytes=0, base_bytes=100 << 20, part=1024, layer_seconds=0.0,
    )  # fmt: skip
    monkeypatch.setattr(plan, "_figures", lambda _: figures)
    args = _limited(model, memory_limit=500 << 20)
    fit_memory(args, CodecSpec())
    assert args.stream_weights
    assert "stream the weights: with all layers in memory it needs 1,00" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"at least \d+ MiB, or --batch-size \d+"):
        fit_memory(_limited(model, memory_limit=124 << 20, batch_size=4096), CodecSpec())
    needs = []
    for codec in (
        CodecSpec(format="asym2"),
        CodecSpec(format="asym2", bits=(2, 8)),
        CodecSpec(format="asym8"),
    ):
        with pytest.raises(ConfigError, match="at least") as caught:
            fit_memory(_limited(model, memory_limit=124 << 20, batch_size=4096), codec)
        needs.append(caught.value.expected)
    assert needs[0] != needs[1] == needs[2]
    with pytest.raises(ConfigError, match="for single samples with streamed weights"):
        fit_memory(_limited(model, memory_limit=100 << 20), CodecSpec())
    # Two copies of a layer while it is sent are more than small batches need.
    monkeypatch.setattr(plan, "_figures", lambda _: dataclasses.replace(figures, sent_bytes=50 << 20))
    fit_memory(_limited(model, stream_weights=True, taps="1"), CodecSpec())
    assert "about 119 MiB" in capsys.readouterr().err
    fit_memory(_limited(model, stream_weights=True, taps="1", side_kind="tail"), CodecSpec())
    assert "about 218 MiB" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="another task than causal-lm"):
        fit_memory(_limited(model, task="causal-lm"), CodecSpec())


def test_errors(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit that nothing fits, and samples longer than the model takes, are wrong usage."""
    text = fails(capsys, "plan", "--model", model, "--length", "8", "--memory-limit", "5MiB", status=2)
    assert "5 MiB" in text
    assert "Python, torch and transformers" in text
    assert "at most 32" in fails(capsys, "plan", "--model", model, "--length", "33", status=2)
    command = ["plan", "--model", model, "--length", "8", "--side-kind", "tail", "--taps"]
    assert "needs one tap below layer 3, not [3]" in fails(capsys, *command, "3")


def test_small_vocabularies(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of characters has fewer tokens than a sample that is timed."""
    monkeypatch.setattr(Parts, "vocabulary", property(lambda parts: 4))
    assert main(["plan", "--model", model, "--length", "8", "--json"]) == 0
