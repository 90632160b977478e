"""Tests of ``mobillm predict``."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from mobillm.cli import main
from mobillm.cli.predict import _pair
from mobillm.nn.saved import CONFIG_FILE, WEIGHTS_FILE
from tests.cli.commands import fails


def test_arguments(model: str, side: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each text gives a line with a label and its probability, in order."""
    assert main(["predict", "--model", model, "--side", side, "w5 w20", "w7 w30 w8"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for label, score in lines:
        assert label in ("no", "yes")
        assert 0.5 <= float(score) <= 1.0


def test_standard_input_as_json(
    model: str, side: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of standard input give JSON lines, whatever the batches."""
    found = []
    for size in ("1", "2"):
        monkeypatch.setattr("sys.stdin", io.StringIO("w5 w20\nw7 w8 w9\r\n w5 w20 \n"))
        assert main(["predict", "--model", model, "--side", side, "--json", "--batch-size", size]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [entry["text"] for entry in found[0]] == ["w5 w20", "w7 w8 w9", " w5 w20 "]
    for one, two in zip(*found, strict=True):
        assert one["label"] == two["label"] == max(one["scores"], key=one["scores"].get)
        assert one["score"] == pytest.approx(two["score"], abs=0.02)
        assert sum(one["scores"].values()) == pytest.approx(1.0)
    assert found[0][0]["scores"] == pytest.approx(found[0][2]["scores"])


def test_pairs() -> None:
    """A tab separates two sentences; blanks around them are dropped as in training."""
    assert _pair(" one ") == "one"
    assert _pair("one \t two\tthree") == ("one", "two\tthree")


def test_a_pair_where_single_texts_were_trained(
    model: str, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tab too many, or a forgotten one, is no number that looks right."""
    text = fails(capsys, "predict", "--model", model, "--side", side, "w5\tw6")
    assert "text 1: the side network was trained on single texts and got pairs" in text


def test_regression(model: str, regression_side: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A regression gives a number."""
    arguments = ["predict", "--model", model, "--side", regression_side, "w5"]
    assert main(arguments) == 0
    value = float(capsys.readouterr().out)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "w5", "value": pytest.approx(value, rel=1e-4)}


def test_bad_input(
    model: str,
    side: str,
    language_side: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing side network or model, another task and binary input are one line each."""
    assert "holds no side network" in fails(capsys, "predict", "--model", model, "--side", model, "w5")
    text = fails(capsys, "predict", "--model", "/none", "--side", side, "w5")
    assert "there is no model at '/none'" in text
    text = fails(capsys, "predict", "--model", model, "--side", language_side, "w5")
    assert "use 'mobillm generate'" in text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    text = fails(capsys, "predict", "--model", model, "--side", side)
    assert "standard input, line 1: not valid Unicode (character 1" in text
    monkeypatch.setattr("sys.stdin", io.StringIO("w5\n\n"))
    text = fails(capsys, "predict", "--model", model, "--side", side)
    assert "standard input, line 2: it is empty" in text
    text = fails(capsys, "predict", "--model", model, "--side", side, "w5", "w6\udcff")
    assert "text 2: not valid Unicode (character 3" in text


def test_a_line_that_is_not_utf8(
    model: str, side: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines before the bad one are answered, and the bad one is named."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"w5\nw6\nw\xe9\n"), encoding="utf-8"))
    assert main(["predict", "--model", model, "--side", side, "--batch-size", "1"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "standard input, line 3: not valid Unicode (character 2" in err


def test_damaged_side_network(
    model: str, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of another run, a damaged configuration and weights that are not finite are one line each."""
    folder = tmp_path / "side"
    shutil.copytree(side, folder)
    arguments = ["predict", "--model", model, "--side", str(folder), "w5"]
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    text = fails(capsys, *arguments)
    assert f"{weights} and {config} do not belong together" in text
    for content in ("[]", "[" * 200_000, "{}", '{"format": 1, "max_length": 4}', "\udcff"):
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
        text = fails(capsys, *arguments)
        assert text.startswith(f"{config} is damaged: ")
        assert text.endswith("copy the whole directory again, or train again")
