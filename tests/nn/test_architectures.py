"""Tests of the architectures whose upper layers can be trained apart."""

from __future__ import annotations

from typing import Any

import pytest

from mobillm.errors import ModelError
from mobillm.nn.architectures import describe
from mobillm.nn.layers import find_parts
from tests.nn.tiny import DECODERS, ENCODERS, tiny_model


def described(architecture: str, **changes: Any) -> dict[str, Any]:
    """Describe a tiny model whose configuration was changed after it was built."""
    model: Any = tiny_model(architecture, lm_head=False)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return describe(find_parts(model))


def test_shapes() -> None:
    """The fields are those of the configuration; OPT has other names for them."""
    rotary = {"intermediate_size": 24, "heads": 2, "kv_heads": 1, "eps": 1e-6}
    assert described("llama") == {"architecture": "llama", **rotary}
    assert described("qwen2") == {"architecture": "qwen2", **rotary}
    assert described("opt") == {"architecture": "opt", **rotary, "kv_heads": 2, "eps": 1e-5}


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_unknown_architectures_are_refused_by_name(architecture: str) -> None:
    """The error names the architecture and what to use instead."""
    if architecture in ("llama", "qwen2", "opt"):
        return
    expected = "do_layer_norm_before = True" if architecture == "opt-350m" else "does not know the archi"
    with pytest.raises(ModelError, match=rf"{expected}.*use --side-kind ladder"):
        described(architecture)


@pytest.mark.parametrize(
    ("architecture", "changes", "text"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = False .* has True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'silu'"),
        ("llama", {"is_causal": False}, "is_causal = True .* has False"),
        ("qwen2", {"is_causal": False}, "is_causal = True"),
        ("opt", {"is_causal": False}, "is_causal = True"),
        ("llama", {"head_dim": 16}, "head_dim = 8 .* has 16"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type = 'default or linear or llama3'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = False"),
        ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim = 16"),
        ("opt", {"activation_function": "gelu"}, "activation_function = 'relu'"),
    ],
)
def test_variants_are_refused_by_field(architecture: str, changes: dict[str, Any], text: str) -> None:
    """A model of a known architecture whose layers compute something else is not taken for one."""
    with pytest.raises(ModelError, match=text):
        described(architecture, **changes)


def test_scaled_rotations_are_refused() -> None:
    """Rotations that change the size of what they turn cannot be told by frequencies alone."""
    model: Any = tiny_model("llama", lm_head=False)
    model.rotary_emb.attention_scaling = 1.2
    with pytest.raises(ModelError, match=r"the rotary scaling = 1\.0 .* has 1\.2"):
        describe(find_parts(model))
