"""The demo's device process: what it keeps for the baseline."""

from __future__ import annotations

import torch

from mobillm.cli.demo_device import Recorder
from mobillm.nn.backbone import Backbone
from tests.nn.tiny import SAMPLES, tiny_model


def test_recorder_keeps_last_tokens() -> None:
    """The features are the last tap's rows of each sample's last token; taps are passed on unchanged."""
    plain = Backbone.from_model(tiny_model("llama"), None, name="tiny", taps="all")
    recorder = Recorder(plain.model, None, name="tiny", taps=plain.taps)
    ends = [4, 6, 10]  # of samples of 5, 2 and 4 tokens
    seen: list[torch.Tensor] = []
    recorder.forward(SAMPLES, lambda _, hidden: seen.append(hidden.clone()))
    expected: list[torch.Tensor] = []
    plain.forward(SAMPLES, lambda _, hidden: expected.append(hidden.clone()))
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert torch.equal(torch.from_numpy(recorder.features[0]), expected[-1][ends].float())
