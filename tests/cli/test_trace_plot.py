"""The picture of a timeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillm.device.recording import Span, Timeline


def test_only_the_window_is_drawn(tmp_path: Path) -> None:
    """Spans before and after it, and rows of a newer version, are left out, in the legend, too."""
    pytest.importorskip("matplotlib")
    from mobillm.cli.trace_plot import draw

    spans = (
        Span("device", "compute", "forward", 0.0, 1.0, 1),
        Span("device", "dream", "sleep", 1.2, 0.1, 1),
        Span("server", "train", "train", 1.0, 1.0, 1),
        Span("server", "log", "log", 9.0, 1.0, 1),
    )
    path = tmp_path / "window.svg"
    draw(Timeline(spans, None), path, start=1.1, seconds=2.0)
    text = path.read_text()
    assert "<!-- train -->" in text
    assert "<!-- forward -->" not in text.replace("<!-- server", "")
    assert "<!-- sleep -->" not in text
