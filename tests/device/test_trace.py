"""Timelines and how much of them overlaps."""

from __future__ import annotations

import json
import pathlib

import pytest

from mobillm.device.trace import Trace, overlap
from mobillm.errors import DataError


def test_events(tmp_path: pathlib.Path) -> None:
    """Spans become complete events on named rows; the first begins at 0."""
    trace = Trace()
    trace.add("device", "compute", "forward", 10.0, 0.5, 1)
    trace.add("server", "train", "train", 10.25, 0.125, 1)
    path = tmp_path / "trace.json"
    trace.write(path)
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(s["name"], s["pid"], s["ts"], s["dur"], s["args"]) for s in spans] == [
        ("forward", 1, 0.0, 500000.0, {"batch": 1}),
        ("train", 2, 250000.0, 125000.0, {"batch": 1}),
    ]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"device", "server", "compute", "send", "receive", "log", "train"}


def test_a_path_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    """The path is named."""
    with pytest.raises(DataError, match="missing/trace"):
        Trace().write(tmp_path / "missing" / "trace.json")


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ([], [], 0.0),
        ([(0, 1)], [(2, 3)], 0.0),
        ([(0, 10)], [(1, 2), (3, 5), (9, 12)], 4.0),
        ([(0, 2), (4, 6)], [(1, 5)], 2.0),
        ([(0, 1), (1, 2)], [(0, 1), (1, 2)], 2.0),
    ],
)
def test_overlap(first: list[tuple[float, float]], second: list[tuple[float, float]], seconds: float) -> None:
    """Overlap is symmetric and counts only what both share."""
    assert overlap(first, second) == pytest.approx(seconds)
    assert overlap(second, first) == pytest.approx(seconds)
