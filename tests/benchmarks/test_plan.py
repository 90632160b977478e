"""What mobillm plan predicts is compared with the run that it is about, and with no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchmarks import plan
from benchmarks.plan import POINTS, Point, compare, model_arguments, texts

REPORT = {"peak_bytes": 1000, "bytes_sent": 400, "stream_seconds": 20.0, "samples": 2, "tokens": 20}


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command is made to print; the run is made up as well."""
    found: dict[str, Any] = {
        "memory_bytes": 1100,
        "traffic_bytes": 300,
        "seconds": 25.0,
        "reasons": [],
        "job": {"batch": 32, "streamed": False, "format": "asym4"},
    }
    monkeypatch.setattr(plan, "measured", lambda *_: REPORT)
    monkeypatch.setattr(plan, "predicted", lambda *_: found)
    return found


def test_predicted_over_measured(advised: dict[str, Any]) -> None:
    """Each ratio is of the figures that belong together."""
    found = compare(POINTS["smollm2"], at=None)  # type: ignore[arg-type]  # no run, so no server
    assert (found["memory"], found["traffic"], found["time"]) == (1.1, 0.75, 1.25)


@pytest.mark.parametrize(("key", "value"), [("batch", 16), ("streamed", True), ("format", "asym3")])
def test_another_run_is_refused(advised: dict[str, Any], key: str, value: object) -> None:
    """Figures of a run that was not made are no prediction of the one that was."""
    advised["job"][key] = value
    with pytest.raises(RuntimeError, match="predicts another run"):
        compare(POINTS["smollm2"], at=None)  # type: ignore[arg-type]  # no run, so no server


def test_both_commands_get_the_points_options() -> None:
    """The format and further options are passed on."""
    point = Point(model="smollm2", samples=1, length=4, batch=1, megabits=1, format="asym2")
    streamed = dataclasses.replace(point, options=("--stream-weights",))
    assert model_arguments(point)[-2:] == ["--format", "asym2"]
    assert model_arguments(streamed)[-3:] == ["--format", "asym2", "--stream-weights"]


def test_lengths_vary_around_the_mean() -> None:
    """Real samples differ in length, and so do these."""
    point = POINTS["smollm2"]
    lengths = [len(text.split()) for text in texts(point)]
    assert len(lengths) == point.samples
    assert min(lengths) < point.length < max(lengths)
    assert sum(lengths) / len(lengths) == pytest.approx(point.length, rel=0.05)
