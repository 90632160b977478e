"""Layers, norms and limits of models, found without a list of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mobillm.errors import ModelError
from mobillm.nn.layers import find_parts
from tests.nn.tiny import DECODERS, ENCODERS, tiny_model


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_parts(architecture: str) -> None:
    """Three layers of width 16, causal for decoders only, with or without a task head."""
    for lm_head in (False, True):
        parts = find_parts(tiny_model(architecture, lm_head=lm_head))
        assert len(parts.layers) == 3
        assert parts.hidden_size == 16
        assert parts.causal == (architecture in DECODERS)


def test_post_norm_opt() -> None:
    """The 350M-style OPT has no final norm and projects to its narrower embedding."""
    parts = find_parts(tiny_model("opt-350m"))
    assert parts.final_norm is None
    assert isinstance(parts.project_out, nn.Linear)
    assert parts.project_out.weight.shape == (8, 16)
    usual = find_parts(tiny_model("opt"))
    assert isinstance(usual.final_norm, nn.LayerNorm)
    assert usual.project_out is None


def test_positions() -> None:
    """RoBERTa's first rows of the position table are not positions."""
    assert find_parts(tiny_model("bert")).positions == 32
    roberta: Any = tiny_model("roberta")
    padding = roberta.config.pad_token_id
    assert find_parts(roberta).positions == 32 - padding - 1


def test_refusals() -> None:
    """Encoder-decoders and what is no transformers model are named, with what to use."""
    config = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="encoder-decoder; use a decoder"):
        find_parts(transformers.T5Model(config))
    with pytest.raises(ModelError, match="no transformers model"):
        find_parts(torch.nn.Linear(2, 2))
