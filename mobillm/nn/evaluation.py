"""How good a side network is on samples whose targets are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from .sidetuned import SideTuned

__all__ = ["Samples", "binary_scores", "evaluate", "pearson"]

Samples = tuple[Sequence[Sequence[int]], Sequence[float]]  # token ids of each sample, and the targets


def evaluate(tuned: SideTuned, batches: Iterable[Samples]) -> dict[str, float]:
    """Compute a task's figures over batches of samples.

    Args:
        tuned: backbone and side network.
        batches: token ids and targets of each batch: a class or a value for each sample, or for
            causal-lm the next token of each token, -100 where it does not count.

    Returns:
        ``samples`` and the mean ``loss``; for classification ``accuracy``, and with two classes ``f1``
        of class 1 and ``mcc``; for regression ``mse`` and ``pearson``; for causal-lm ``perplexity``,
        ``accuracy`` of the next token and ``tokens``, the number of those that count.

    Raises:
        ConfigError: a target does not fit the task.
        ModelError: there are no samples or no tokens that count, the backbone cannot run one, or an
            output is not finite.

    """
    if tuned.config.spec.task == "causal-lm":
        return _evaluate_language(tuned, batches)
    outputs: list[Tensor] = []
    targets: list[float] = []
    for samples, wanted in batches:
        taps, lengths = _taps(tuned, samples)
        with torch.no_grad():
            outputs.append(tuned.network(taps, lengths).float().cpu())
        tuned.check_finite(outputs[-1])
        targets += wanted
    if not outputs:
        raise ModelError("there are no samples to evaluate; give at least one")
    found = torch.cat(outputs)
    if tuned.config.spec.task == "regression":
        values = torch.tensor(targets, dtype=torch.float32)
        mse = float(F.mse_loss(found, values))
        return {"samples": len(targets), "loss": mse, "mse": mse, "pearson": pearson(found, values)}
    classes = torch.tensor(targets, dtype=torch.int64)
    best = found.argmax(-1)
    figures: dict[str, float] = {
        "samples": len(targets),
        "loss": float(F.cross_entropy(found, classes)),
        "accuracy": float((best == classes).double().mean()),
    }
    if found.shape[1] == 2:
        figures |= binary_scores(best, classes)
    return figures


def _evaluate_language(tuned: SideTuned, batches: Iterable[Samples]) -> dict[str, float]:
    count = 0
    sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
    for samples, wanted in batches:
        taps, lengths = _taps(tuned, samples)
        targets = torch.tensor(wanted, dtype=torch.int64, device=tuned.backbone.device)
        figures = tuned.network.evaluate(taps, lengths, targets)
        tuned.check_finite(torch.tensor([float(value) for value in figures.values()]))
        for name, value in figures.items():
            sums[name] += value
        count += len(samples)
    tokens = sums["count"]
    if not tokens:
        raise ModelError("there are no tokens to evaluate; give longer samples")
    loss = sums["loss"] / tokens
    return {
        "samples": count,
        "tokens": int(tokens),
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": sums["correct"] / tokens,
    }


def _taps(tuned: SideTuned, samples: Sequence[Sequence[int]]) -> tuple[list[Tensor], Tensor]:
    taps: list[Tensor] = []
    tuned.backbone.forward(samples, lambda _, hidden: taps.append(hidden.clone()))
    return taps, torch.tensor([len(sample) for sample in samples], device=tuned.backbone.device)


def binary_scores(found: Tensor, classes: Tensor) -> dict[str, float]:
    """Return F1 of class 1 and Matthews' correlation coefficient; 0 where a ratio has no denominator.

    Args:
        found: ``[B]`` predicted classes, 0 or 1.
        classes: ``[B]`` true classes, 0 or 1.

    """
    positive, true = found == 1, classes == 1
    hits = int((positive & true).sum())
    false_alarms = int((positive & ~true).sum())
    misses = int((~positive & true).sum())
    rejections = int((~positive & ~true).sum())
    either = 2 * hits + false_alarms + misses
    spread = math.sqrt(
        (hits + false_alarms) * (hits + misses) * (rejections + false_alarms) * (rejections + misses)
    )
    return {
        "f1": 2 * hits / either if either else 0.0,
        "mcc": (hits * rejections - false_alarms * misses) / spread if spread else 0.0,
    }


def pearson(found: Tensor, values: Tensor) -> float:
    """Return the correlation of two ``[B]`` tensors; 0 where either does not vary."""
    a, b = found.double() - found.double().mean(), values.double() - values.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0.0 else 0.0
