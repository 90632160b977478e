"""The picture of a run's timeline: which side did what, when."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..device.recording import Timeline

__all__ = ["draw"]

COLOURS = {
    "forward": "#4477aa",
    "quantize": "#66ccee",
    "wait": "#dddddd",
    "send": "#ccbb44",
    "credit": "#dddddd",
    "keep": "#bbbbbb",
    "receive": "#228833",
    "log": "#aa3377",
    "train": "#ee6677",
}
ROWS = ("device compute", "device send", "server receive", "server log", "server train")
OTHER = "#888888"  # of a newer version


def draw(timeline: Timeline, path: Path, *, start: float, seconds: float) -> None:
    """Draw a window of a timeline.

    Args:
        timeline: the run.
        path: where the picture goes; its ending says which format it has.
        start: first second of the window.
        seconds: its length, above 0.

    Raises:
        OSError: the picture cannot be written.

    """
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seen = set()
    # The longest first: what happens inside a forward pass is drawn on top of it.
    for span in sorted(timeline.spans, key=lambda span: -span.duration):
        row = f"{span.side} {span.lane}"
        if row not in ROWS or span.start >= start + seconds or span.end <= start:
            continue
        # A short span would vanish between two pixels.
        width = max(span.duration, seconds / 2000)
        seen.add(span.name)
        axes.barh(
            len(ROWS) - 1 - ROWS.index(row),
            width,
            left=span.start,
            height=0.7,
            color=COLOURS.get(span.name, OTHER),
            edgecolor="white",
            linewidth=0.6,
        )
    axes.set_yticks(range(len(ROWS)), ROWS[::-1])
    axes.set_xlim(start, start + seconds)
    axes.set_xlabel("seconds")
    names = [name for name in COLOURS if name in seen]
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    axes.legend(handles, names, ncols=max(1, len(names)), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
