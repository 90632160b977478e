"""``mobillm trace summary`` and ``plot`` on a trace of a run that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobillm.cli import main
from mobillm.device.trace import Trace
from tests.cli.commands import fails


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a trace in which the device is critical and once waits for credit."""
    run = Trace()
    run.clock_error = 0.0002
    for batch in range(1, 6):
        begun = 10.0 + batch
        run.add("device", "compute", "forward", begun, 1.0, batch)
        run.add("device", "send", "send", begun + 0.9, 0.1, batch)
        run.add("server", "log", "log", begun + 1.0, 0.01, batch)
        run.add("server", "train", "train", begun + 1.01, 0.5, batch)
    run.add("device", "compute", "wait", 13.5, 0.25, 3)
    run.add("device", "send", "credit", 13.5, 0.25, 3)
    path = tmp_path / "trace.json"
    run.write(path)
    return path


def test_summary(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Critical stage, efficiency, the bubble with its cause, and how well the clocks agree."""
    assert main(["trace", "summary", str(trace)]) == 0
    text = capsys.readouterr().out
    assert "critical stage: device; pipeline efficiency 0.937" in text
    assert "0.250 s the server's memory" in text
    assert "0.250 s at 2.50 s before batch 4" in text
    assert "agree within 0.20 ms" in text


def test_summary_for_machines(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as JSON."""
    assert main(["trace", "summary", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["critical"] == "device"
    assert found["causes"] == {"credit": pytest.approx(0.25)}


def test_plot(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture lies beside the trace unless it is named."""
    pytest.importorskip("matplotlib")
    assert main(["trace", "plot", str(trace), "--seconds", "3"]) == 0
    assert trace.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    named = trace.parent / "pictures" / "run.svg"
    assert main(["trace", "plot", str(trace), "--out", str(named), "--start", "0"]) == 0
    assert b"<svg" in named.read_bytes()
    assert str(named) in capsys.readouterr().out


def test_what_is_wrong(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, another file, another kind of picture, a time that is none."""
    assert "missing" in fails(capsys, "trace", "summary", "missing")
    trace.with_name("other").write_text("{}")
    assert "--trace" in fails(capsys, "trace", "summary", str(trace.with_name("other")))
    assert ".png, .svg or .pdf" in fails(capsys, "trace", "plot", str(trace), "--out", "x.bmp", status=2)
    text = fails(capsys, "trace", "plot", str(trace), "--start", "100", status=2)
    assert "--start is 100.0; expected a second before the end of the trace, 5." in text
    picture = trace.rename(trace.with_suffix(".png"))
    assert "another file than the trace" in fails(capsys, "trace", "plot", str(picture), status=2)
    picture.rename(trace)
    assert "no number of seconds" in fails(capsys, "trace", "plot", str(trace), "--start", "-1", status=2)
