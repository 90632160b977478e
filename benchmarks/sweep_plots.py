"""Pictures of a sweep: a heat map of time, bars of where it goes, accuracy against bytes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

if TYPE_CHECKING:
    from benchmarks.sweep_points import Point

__all__ = ["draw"]

Known = Sequence[tuple["Point", dict[str, Any]]]

CONDITIONS = "SmolLM2-135M, 8 taps, 20 ms"
WHERE = {
    "device": ("device computes", "#4477aa"),
    "link": ("link alone", "#ccbb44"),
    "server": ("server alone", "#ee6677"),
    "idle": ("nothing", "#dddddd"),
}


def draw(known: Known, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw what the points allow; return the files."""
    grid = [(point, figures) for point, figures in known if _is_grid(point)]
    trained = [(point, figures) for point, figures in known if figures["accuracy"] is not None]
    drawn = []
    if grid:
        drawn += [_heat(grid, folder / "sweep-time.png"), _bars(grid, folder / "sweep-where.png")]
    if trained:
        drawn.append(_accuracy(trained, folder / "sweep-accuracy.png"))
    return drawn


def _is_grid(point: Point) -> bool:
    return bool(point.rate) and (point.taps, point.tokens, point.side, point.rtt) == (
        "every:4",
        "all",
        "ladder",
        20,
    )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _heat(grid: Known, path: pathlib.Path) -> pathlib.Path:
    bits = sorted({point.bits for point, _ in grid})
    rates = sorted({point.rate for point, _ in grid})
    times = {(point.bits, point.rate): figures["wall"] for point, figures in grid}
    table = [[times.get((b, rate), float("nan")) for rate in rates] for b in bits]
    figure = _figure(6, 4)
    axes = figure.subplots()
    image = axes.imshow(table, cmap="viridis_r", norm="log", aspect="auto", origin="lower")
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(bits)), [str(b) for b in bits])
    axes.set_title(f"seconds of a run over a link, {CONDITIONS}")
    axes.set_xlabel("Mbit/s")
    axes.set_ylabel("bits of a value")
    dark = max(times.values()) ** 0.5 * min(times.values()) ** 0.5
    for row, b in enumerate(bits):
        for column, rate in enumerate(rates):
            if (b, rate) in times:
                seconds = times[b, rate]
                colour = "white" if seconds > dark else "black"
                axes.text(column, row, f"{seconds:.1f}", ha="center", va="center", color=colour)
    figure.colorbar(image, format="%g", label="seconds, first forward pass to last step")
    figure.savefig(path, dpi=110)
    return path


def _bars(grid: Known, path: pathlib.Path) -> pathlib.Path:
    rates = sorted({point.rate for point, _ in grid})
    figure = _figure(11, 3.4)
    parts = figure.subplots(1, len(rates), squeeze=False)[0]
    for axes, rate in zip(parts, rates, strict=True):
        row = sorted(((p.bits, f) for p, f in grid if p.rate == rate), key=lambda item: item[0])
        bottom = [0.0] * len(row)
        for name, (label, colour) in WHERE.items():
            heights = [figures["where"][name] for _, figures in row]
            axes.bar([str(b) for b, _ in row], heights, bottom=bottom, color=colour, label=label)
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        axes.set_title(f"{rate:g} Mbit/s")
        axes.set_xlabel("bits")
    parts[0].set_ylabel("seconds")
    figure.suptitle(f"where the time goes, {CONDITIONS}")
    figure.legend(*parts[-1].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=110)
    return path


def _accuracy(trained: Known, path: pathlib.Path) -> pathlib.Path:
    figure = _figure(7, 4)
    axes = figure.subplots()
    for point, figures in trained:
        special = point.side != "ladder" or point.taps != "every:4"
        size = figures["bytes"] / 1e6
        axes.plot(
            size, figures["accuracy"], "s" if special else "o", color="#ee6677" if special else "#4477aa"
        )
        name = f"{point.bits} bits"
        if point.taps != "every:4":
            name += f", taps {point.taps}"
        if point.side != "ladder":
            name += f", {point.side}, {point.tokens}"
        axes.annotate(
            name,
            (size, figures["accuracy"]),
            textcoords="offset points",
            xytext=(5, -12 if special else 4),
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("SmolLM2-135M, short messages of two classes")
    axes.set_xlabel("MB sent")
    axes.set_ylabel("held-out accuracy")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path
