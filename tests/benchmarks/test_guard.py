"""What the regression guard calls a change."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from typing import Any

import pytest

from benchmarks import guard
from benchmarks.guard import compare
from benchmarks.overlap import Point

BASELINE = {
    "efficiency.device_bound": {"value": 0.99, "spread": 0.01},
    "serial_over_pipelined.link_bound": {"value": 1.5, "spread": 0.2},
    "device_over_bare": {"value": 1.02, "spread": 0.0},
    "gone": {"value": 1.0, "spread": 0.0},
}


def test_within_the_spread_nothing_moved() -> None:
    """Neither within the spread that was measured nor within 2 %; new keys and old ones are left out."""
    found = {
        "efficiency.device_bound": 0.975,
        "serial_over_pipelined.link_bound": 1.31,
        "device_over_bare": 1.04,
        "new": 3.0,
    }
    assert compare(BASELINE, found) == []


def test_better_and_worse() -> None:
    """For most ratios larger is better, for the device's overhead it is not."""
    found = {
        "efficiency.device_bound": 0.9,
        "serial_over_pipelined.link_bound": 1.8,
        "device_over_bare": 1.2,
    }
    assert compare(BASELINE, found) == [
        ("device_over_bare", 1.02, 1.2, True),
        ("efficiency.device_bound", 0.99, 0.9, True),
        ("serial_over_pipelined.link_bound", 1.5, 1.8, False),
    ]


class Bench:
    """Stands in for the model and the server."""

    error: type[BaseException] | None = None

    def __init__(self, at: object, console: object) -> None:
        pass

    def bare(self, point: Point) -> float:
        """Return seconds of a forward pass."""
        return 2.0

    def efficiency(self, *, quick: bool) -> dict[str, Any]:
        """Return the figures of a measurement."""
        if self.error is not None:
            raise self.error
        return {"efficiency": {"device_bound": 0.5}, "serial_over_pipelined": {}, "device_over_bare": 1.02}


@pytest.fixture
def bench(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> type[Bench]:
    """Put a bench in its place, and a baseline."""
    monkeypatch.setattr(guard, "Bench", Bench)
    monkeypatch.setattr(guard, "server", contextlib.nullcontext)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: None)
    monkeypatch.setattr(guard, "BASELINE", tmp_path / "guard.json")
    guard.BASELINE.write_text(json.dumps({"keys": BASELINE}))
    return Bench


def test_what_is_shown_and_written(
    bench: type[Bench], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How long it takes, what moved, and both as JSON."""
    assert guard.main(["--json", str(tmp_path / "found.json")]) == 1
    out, err = capsys.readouterr()
    assert out == "efficiency.device_bound: 0.990 -> 0.500, worse\n"
    assert "1 measurements of three points, about 64 s" in err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ratios"] == {"efficiency.device_bound": 0.5, "device_over_bare": 1.02}
    assert found["moved"] == [{"key": "efficiency.device_bound", "before": 0.99, "now": 0.5, "worse": True}]


def test_ctrl_c(
    bench: type[Bench], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and the status of an interruption."""
    monkeypatch.setattr(bench, "error", KeyboardInterrupt)
    with pytest.raises(SystemExit) as ended:
        guard.main([])
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("wrong", [["--repeats", "0"], ["--json", "/"], ["--json", "/nowhere/found.json"]])
def test_what_is_wrong(bench: type[Bench], wrong: list[str]) -> None:
    """It is known before anything is measured."""
    with pytest.raises(SystemExit) as ended:
        guard.main(wrong)
    assert ended.value.code == 2
