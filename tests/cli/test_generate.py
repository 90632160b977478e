"""Tests of ``mobillm generate``."""

from __future__ import annotations

import json

import pytest

from mobillm.cli import main
from tests.cli.commands import fails


def test_text_and_json(model: str, language_side: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The continuation is printed alone; JSON has it beside the prompt; a seed repeats it."""
    arguments = ["generate", "--model", model, "--side", language_side, "--prompt", "w5 w6"]
    arguments += ["--max-new-tokens", "5", "--temperature", "5"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert main([*arguments, "--seed", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == {"prompt", "text", "seconds"}
    assert (content["prompt"], content["text"]) == ("w5 w6", texts[0].rstrip("\n"))


def test_bad_input(model: str, side: str, language_side: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another task, a temperature out of range and another model are one line each."""
    common = ["generate", "--model", model, "--prompt", "w5"]
    assert "cannot generate; use 'mobillm predict'" in fails(capsys, *common, "--side", side)
    text = fails(capsys, *common, "--side", language_side, "--temperature", "-1", status=2)
    assert text == "--temperature is -1.0; expected 0 to 100"
    text = fails(capsys, *common, "--side", language_side, "--dtype", "float32")
    assert "in the type it was trained in" in text
    for seed in ("-1", str(2**63)):
        text = fails(capsys, *common, "--side", language_side, f"--seed={seed}", status=2)
        assert "is no integer from 0 to 9223372036854775807" in text
    for prompt, expected in (
        ("", "--prompt: it is empty"),
        ("w5 \udcff", "--prompt: not valid Unicode (character 4"),
        ("w5 " * 40, "the prompt has more than 32 tokens"),
    ):
        arguments = ["generate", "--model", model, "--side", language_side, "--prompt", prompt]
        assert expected in fails(capsys, *arguments)
