"""Tests of the figures of a side network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mobillm.errors import ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.evaluation import binary_scores, evaluate, pearson
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import SideConfig, SideTuned, save_side
from tests.nn.tiny import SAMPLES, collect, language_session, session, tiny_model, tiny_tokenizer


def _tuned(folder: Path, task: str, **options: Any) -> SideTuned:
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps="all")
    if task == "causal-lm":
        spec, head = language_session(backbone.model)
        network = SideNetwork.from_spec(spec, head)
    else:
        spec = session(task, **options)
        network = SideNetwork.from_spec(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    save_side(folder, network.state_bytes(), SideConfig(spec=spec, max_length=16))
    return SideTuned.from_pretrained(backbone, folder)


def test_classification(tmp_path: Path) -> None:
    """Loss and accuracy equal those of the network on all samples, however they are cut into batches."""
    tuned = _tuned(tmp_path, "classification", outputs=3)
    targets = [0, 2, 1]
    with torch.no_grad():
        logits = tuned.network(collect(tuned.backbone, SAMPLES), torch.tensor([5, 2, 4]))
    figures = evaluate(tuned, [(SAMPLES[:2], targets[:2]), (SAMPLES[2:], targets[2:])])
    assert figures["samples"] == 3
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.tensor(targets))), rel=1e-4)
    assert figures["accuracy"] == pytest.approx(
        sum(int(row.argmax()) == target for row, target in zip(logits, targets, strict=True)) / 3
    )
    assert "f1" not in figures


def test_two_classes_have_f1_and_mcc(tmp_path: Path) -> None:
    """Two classes add F1 and Matthews' coefficient."""
    figures = evaluate(_tuned(tmp_path, "classification", outputs=2), [(SAMPLES, [0, 1, 1])])
    assert {"f1", "mcc"} <= figures.keys()


def test_regression(tmp_path: Path) -> None:
    """The mean squared error is that of the predicted values."""
    tuned = _tuned(tmp_path, "regression", outputs=1)
    with torch.no_grad():
        values = tuned.network(collect(tuned.backbone, SAMPLES), torch.tensor([5, 2, 4]))
    figures = evaluate(tuned, [(SAMPLES, (values + 2.0).tolist())])
    assert figures["mse"] == figures["loss"] == pytest.approx(4.0, rel=1e-4)
    assert figures["pearson"] == pytest.approx(1.0, abs=1e-4)


def test_causal_lm(tmp_path: Path) -> None:
    """Loss, perplexity and accuracy count only tokens with a target."""
    tuned = _tuned(tmp_path, "causal-lm")
    targets = [6, 7, 8, 9, -100, 4, -100, -100, 13, 14, -100]
    with torch.no_grad():
        logits = tuned.network(collect(tuned.backbone, SAMPLES), torch.tensor([5, 2, 4])).float()
    wanted = torch.tensor(targets)
    figures = evaluate(tuned, [(SAMPLES[:1], targets[:5]), (SAMPLES[1:], targets[5:])])
    assert (figures["samples"], figures["tokens"]) == (3, 7)
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(logits, wanted)), rel=1e-4)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    kept = wanted != -100
    accuracy = float((logits.argmax(-1) == wanted)[kept].float().mean())
    assert figures["accuracy"] == pytest.approx(accuracy)


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    """No samples, and samples without a token that counts, are errors, not figures."""
    with pytest.raises(ModelError, match="no samples"):
        evaluate(_tuned(tmp_path, "classification"), [])
    with pytest.raises(ModelError, match="no tokens"):
        evaluate(_tuned(tmp_path, "causal-lm"), [([[5]], [-100])])


def test_binary_scores() -> None:
    """A worked example: 2 hits, 1 false alarm, 1 miss, 3 rejections; and one without any class 1."""
    found = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    classes = torch.tensor([1, 1, 0, 1, 0, 0, 0])
    scores = binary_scores(found, classes)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["mcc"] == pytest.approx((2 * 3 - 1) / math.sqrt(3 * 3 * 4 * 4))
    assert binary_scores(torch.zeros(3), torch.zeros(3)) == {"f1": 0.0, "mcc": 0.0}


def test_pearson() -> None:
    """Linear relations have the correlation 1 or -1; what does not vary has 0."""
    values = torch.tensor([1.0, 2.0, 4.0])
    assert pearson(3 * values + 1, values) == pytest.approx(1.0)
    assert pearson(-values, values) == pytest.approx(-1.0)
    assert pearson(torch.ones(3), values) == 0.0
