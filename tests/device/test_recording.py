"""Traces are read back as they were written; files that are none are refused, whatever is in them."""

from __future__ import annotations

import json
import pathlib

import pytest

from mobillm.device.recording import Span, load_trace
from mobillm.device.trace import Trace
from mobillm.errors import DataError


def test_read_back(tmp_path: pathlib.Path) -> None:
    """A trace is read as it was written, from its first span on."""
    trace = Trace()
    trace.clock_error = 0.0005
    trace.add("device", "compute", "forward", 100.0, 0.5, 1)
    trace.add("server", "train", "train", 100.25, 0.125, 1)
    trace.write(tmp_path / "trace.json")
    found = load_trace(tmp_path / "trace.json")
    assert found.spans == (
        Span("device", "compute", "forward", 0.0, 0.5, 1),
        Span("server", "train", "train", 0.25, 0.125, 1),
    )
    assert found.clock_error == 0.0005


def event(**values: object) -> str:
    """Return a trace of one forward pass, with other values."""
    one: dict[str, object] = {"ph": "X", "name": "forward", "pid": 1, "tid": 1, "ts": 0, "dur": 5}
    names = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "device"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "compute"}},
    ]
    return json.dumps({"traceEvents": [*names, one | {"args": {"batch": 1}} | values]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        (event(ts=5).replace('"ts": 5', '"ts": 1e400'), "ts is inf, no number from 0 to 1e"),
        (event(ts=float("nan")), "NaN is no number"),
        (event(dur=float("inf")), "Infinity is no number"),
        (event(dur=-1), "dur is -1, no number"),
        (event(dur=1e15), "no number from 0"),
        (event(ts=10**400), "no number from 0"),
        (event(ts="soon"), "ts is soon, no number"),
        (event(ts=True), "ts is True, no number"),
        (event(args={"batch": -1}), "batch is -1"),
        (event(args={}), "'batch' is missing"),
        (event(args=3), "parts are not those"),
        ('{"traceEvents": [], "otherData": {"clock_error": "good"}}', "clock_error is good"),
    ],
)
def test_hostile_traces(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    """What cannot be computed with is named in one line, without an exception's name."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        load_trace(path)
    assert "Error" not in str(caught.value)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="no trace of a run"):
        load_trace(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": 3}', '{"traceEvents": [], "otherData": 1}'],
)
def test_no_trace(tmp_path: pathlib.Path, text: str) -> None:
    """Other files are refused with their name and with what would do."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json is no trace .*--trace"):
        load_trace(path)


def test_no_file(tmp_path: pathlib.Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(DataError, match=r"missing\.json cannot be read"):
        load_trace(tmp_path / "missing.json")
