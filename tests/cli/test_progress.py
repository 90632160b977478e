"""Tests of the progress display."""

from __future__ import annotations

import dataclasses
import re

import pytest
import rich.console

from mobillm.cli import progress
from mobillm.cli.progress import ProgressDisplay, describe
from mobillm.device.progress import Progress

FIGURES = Progress(
    stage="forward",
    samples=50,
    total_samples=100,
    step=3,
    total_steps=12,
    epoch=1,
    epochs=2,
    loss=0.51234,
    bytes_sent=2_500_000,
    samples_per_second=10.0,
    link_rate=1_250_000.0,
    queue_bytes=400_000,
    queue_batches=2,
    both_busy=0.714,
    elapsed=5.0,
)


def test_figures() -> None:
    """Every figure is there with its unit; a loss that is not known yet is a dash."""
    text = describe(FIGURES)
    for part in ("loss 0.5123", "step 3/12", "epoch 1/2", "10 samples/s", "2.5 MB sent", "1.25 MB/s"):
        assert part in text
    assert "waiting 0.4 MB here, 2 batches there  both busy 71%" in text
    assert "loss -" in describe(Progress(stage="train"))


def test_without_a_terminal_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    """A file gets a line at each stage, not at each report."""
    with ProgressDisplay() as display:
        display.update(Progress(stage="connect"))
        for _ in range(5):
            display.update(FIGURES)
        display.update(Progress(stage="done"))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "tokenizing and connecting ...",
        "forward",
        "done",
    ]


def test_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal gets the bar and the figures, counted in samples first and then in steps."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressDisplay() as display:
        display.update(FIGURES)
        display.update(Progress(stage="train", step=6, total_steps=12))
    err = capsys.readouterr().err
    assert "6/12 steps" in err
    assert "both busy" in err


@pytest.mark.parametrize("terminal", [True, False])
def test_how_long_the_rest_takes(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It follows from this stage's speed alone: ten samples a second, then two seconds a step."""
    now = 0.0
    monkeypatch.setattr(rich.console, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "_LINE_INTERVAL", 0.0)
    if terminal:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "160")
    seen = []
    with ProgressDisplay() as display:
        for second in range(1, 11):
            now = float(second)
            display.update(dataclasses.replace(FIGURES, samples=50 + 10 * second, total_samples=1200))
        seen.append(display.left)
        for step in range(3, 7):
            now += 2.0
            display.update(dataclasses.replace(FIGURES, stage="train", step=step, total_steps=1200))
        seen.append(display.left)
    assert seen == [105.0, 2388.0]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert ("0:39:48" if terminal else "about 0:39:48 left") in shown
