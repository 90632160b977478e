"""Tests of ``mobillm pull`` and ``mobillm finetune --detach``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mobillm.cli import main
from tests.cli.commands import RunningServer, fails
from tests.cli.test_finetune import _arguments


def test_detach_and_pull(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that a detached run names fetches the result, for people and for programs."""
    for extra in ([], ["--json"]):
        out = tmp_path / f"side{len(extra)}"
        arguments = _arguments(model, data, server, out)
        options = ["--epochs", "3", "--heldout", "0.25", "--early-stopping", "3", "--detach"]
        assert main([*arguments, *options]) == 0
        following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
        assert following[:2] == ["mobillm", "pull"]
        assert not (out / "side_model.safetensors").exists()
        text = fails(capsys, "pull", "ffff" * 9, *following[3:], status=2)
        assert f"expected {following[2]}, which --out {out} waits for" in text
        assert main([*following[1:], *extra]) == 0
        text = capsys.readouterr().out
        if extra:
            assert json.loads(text)["evaluation"]["samples"] == 6
        else:
            assert "trained 15 steps, mean loss" in text
            assert text.endswith(f"saved to {out}\n")
        assert main(["predict", "--model", model, "--side", str(out), "w5 w30"]) == 0
        capsys.readouterr()
        assert "waits for no result" in fails(capsys, *following[1:])


def test_early_stopping_needs_a_heldout_part(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option alone is refused before anything is loaded."""
    text = fails(capsys, *_arguments(model, data, server, tmp_path), "--early-stopping", "2", status=2)
    assert text == "--early-stopping is 2; expected 0, or --heldout with it"
