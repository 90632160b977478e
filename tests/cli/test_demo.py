"""The demo's arguments; what it does is in :mod:`mobillm.cli.demo_run`."""

from __future__ import annotations

import pytest

from mobillm.cli import main


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown task and no epochs at all are refused before anything is fetched."""
    assert main(["demo", "--task", "poetry"]) == 2
    assert "causal-lm" in capsys.readouterr().err
    assert main(["demo", "--epochs", "0"]) == 2
    assert "no integer from 1 to 10000" in capsys.readouterr().err
