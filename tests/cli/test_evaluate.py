"""Tests of ``mobillm evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from mobillm.cli import main
from mobillm.nn.backbone import Backbone
from tests.cli.commands import fails
from tests.nn.tiny import DECODERS, tiny_tokenizer


def _evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    assert main(["evaluate", "--json", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "evaluating" in err
    found: dict[str, float] = json.loads(out)
    return found


def test_classification(model: str, side: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy agrees with the labels that predict prints."""
    figures = _evaluate(capsys, "--model", model, "--side", side, "--data", data, "--dtype", "float32")
    assert figures.keys() == {"task", "samples", "loss", "accuracy", "f1", "mcc", "seconds"}
    assert figures["samples"] == 24
    rows = [line.split("\t") for line in Path(data).read_text().splitlines()[1:]]
    texts = [text for text, _ in rows]
    assert main(["predict", "--model", model, "--side", side, "--dtype", "float32", *texts]) == 0
    labels = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    right = sum(label == expected for label, (_, expected) in zip(labels, rows, strict=True))
    assert figures["accuracy"] == pytest.approx(right / 24)


def test_text_and_limit(model: str, side: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json there is a figure a line; --limit cuts the data."""
    assert main(["evaluate", "--model", model, "--side", side, "--data", data, "--limit", "3"]) == 0
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert figures["samples"] == "3"
    assert 0.0 <= float(figures["accuracy"]) <= 1.0


def test_pairs_where_single_texts_were_trained(
    model: str, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column too many is wrong usage, before the model is loaded."""
    path = tmp_path / "d.csv"
    path.write_text("text,more,label\nw5 w6,w7,no\n")
    command = ["evaluate", "--model", model, "--side", side, "--data", str(path), "--pair-column", "more"]
    assert f"--pair-column is 'more'; expected none, as --side {side}" in fails(capsys, *command, status=2)


def test_regression(
    model: str, regression_side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression gives mean squared error and correlation."""
    path = tmp_path / "d.csv"
    path.write_text("text,label\nw5 w6,1.5\nw7,-2\n")
    figures = _evaluate(capsys, "--model", model, "--side", regression_side, "--data", str(path))
    assert figures.keys() == {"task", "samples", "loss", "mse", "pearson", "seconds"}


def test_causal_lm(
    model: str, language_side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Causal-lm gives loss and perplexity over the next tokens."""
    path = tmp_path / "d.txt"
    path.write_text("w5 w6 w7\nw8 w9\n")
    figures = _evaluate(capsys, "--model", model, "--side", language_side, "--data", str(path))
    assert figures.keys() == {"task", "samples", "tokens", "loss", "perplexity", "accuracy", "seconds"}
    lengths = map(len, Backbone.from_pretrained(model).tokenize(["w5 w6 w7", "w8 w9"], 16))
    assert (figures["samples"], figures["tokens"]) == (2, sum(lengths) - 2)


def test_bad_input(
    model: str, side: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing files and columns, and a label that was not trained, are one line each."""
    common = ["evaluate", "--model", model, "--side", side, "--data"]
    assert "there is no file" in fails(capsys, *common, str(tmp_path / "none.tsv"))
    text = fails(capsys, *common, data, "--label-column", "gold")
    assert "no column 'gold'; its columns are text, label" in text
    path = tmp_path / "d.tsv"
    path.write_text("text\tlabel\nw5\tmaybe\n")
    assert "line 2: the label 'maybe' is none of 'no', 'yes'" in fails(capsys, *common, str(path))
    text = fails(capsys, "evaluate", "--model", model, "--side", str(tmp_path), "--data", data)
    assert "holds no side network" in text


def test_another_model(
    side: str,
    language_side: str,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With another model than in training, the error names the one that is needed."""
    shape = DECODERS["llama"]()
    shape.num_hidden_layers = 2
    kind: Any = transformers.AutoModelForCausalLM
    kind.from_config(shape).save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    expected = "the backbone small has layers 2, but the side network was trained with tiny, which has 3"
    common = ["--model", str(tmp_path / "small"), "--side"]
    assert expected in fails(capsys, "evaluate", *common, side, "--data", data)
    assert expected in fails(capsys, "predict", *common, side, "w5")
    assert expected in fails(capsys, "generate", *common, language_side, "--prompt", "w5")
