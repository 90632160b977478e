"""Curves of a convergence study: accuracy against what the device gives for it."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

__all__ = ["draw"]

Curve = list[tuple[float, float]]  # samples that were trained on, mean score
# Weights in the layers of SmolLM2-135M; a token's forward pass takes two FLOPs for each.
LAYER_VALUES = 106.2e6
COLOURS = {
    "lora": "#4477aa",
    "full": "#66ccee",
    "bitfit": "#228833",
    "head": "#bbbbbb",
    "mobillm": "#ee6677",
    "mobillm_int8": "#ccbb44",
    "mobillm_tail": "#aa3377",
    "mobillm_tail_int8": "#882255",
    "mobillm_tail_half": "#332288",
}


def _forwards(method: str) -> float:
    """Return what a sample costs the device in forward passes of the whole model, by counting products.

    A frozen matrix is multiplied once more for the gradient of its input, a trained one twice more. A head
    alone and the ladder need none of that; a tail runs the layers below the tap only.
    """
    known = {"full": 3.0, "lora": 2.0, "bitfit": 2.0, "mobillm_tail_half": 1 / 2}
    return known.get(method, 1 / 3 if method.startswith("mobillm_tail") else 1.0)


def draw(
    curves: Mapping[str, Mapping[int, Curve]],
    runs: Mapping[str, Sequence[dict[str, Any]]],
    seconds: Mapping[str, float],
    passes: Callable[[str, int], float],
    path: pathlib.Path,
) -> Figure:
    """Draw scores against device seconds, FLOPs and bytes.

    Args:
        curves: of each method and number of epochs.
        runs: one run of each seed, of those methods that send something.
        seconds: of a sample on the device, for the methods whose time was measured.
        passes: how often the device computes a sample, by method and epochs.
        path: of the picture.

    Returns:
        What was drawn.

    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    time, work, sent = figure.subplots(1, 3, sharey=True)
    tokens = statistics.mean(run["tokens"] for found in runs.values() for run in found)
    for method, budgets in curves.items():
        for epochs, curve in budgets.items():
            line = ("-" if epochs > 1 else "--") if len(curve) > 1 else ""
            style = {"color": COLOURS[method], "marker": "o", "linestyle": line}
            label = f"{method}, {epochs} epochs" if epochs > 1 else f"{method}, 1 epoch"
            samples = [count * passes(method, epochs) / epochs for count, _ in curve]
            scores = [score for _, score in curve]
            whole = curve[-1][0] / epochs
            flops = 2 * LAYER_VALUES * tokens / whole * _forwards(method) / 1e12
            work.plot([count * flops for count in samples], scores, label=label, **style)
            if method in seconds:
                time.plot([count * seconds[method] for count in samples], scores, **style)
            if method in runs:
                megabytes = statistics.mean(run["bytes"] for run in runs[method]) / 1e6
                sent.plot([megabytes], scores[-1:], **style)
            else:
                sent.axhline(scores[-1], color=COLOURS[method], linestyle=":", linewidth=1)
    for axes in (time, work):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    time.set(xlabel="seconds of the device's core", ylabel="dev, %")
    work.set(xlabel="TFLOP on the device")
    sent.set(xlabel="MB sent (dotted: trains on the device)", xlim=(0, None))
    work.legend(fontsize=7)
    for axes in (time, work, sent):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return figure
