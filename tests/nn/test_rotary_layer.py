"""Tests of the rotary decoder layer; transformers' layers are the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from mobillm.nn.adapter import MODULES
from mobillm.nn.lora import LoRALinear
from mobillm.nn.ragged import Ragged
from mobillm.nn.rotary_layer import RMSNorm, RotaryLayer

KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (transformers.LlamaConfig, LlamaDecoderLayer),
    "qwen2": (transformers.Qwen2Config, Qwen2DecoderLayer),
}


def pair(kind: str) -> tuple[Any, RotaryLayer, tuple[Tensor, Tensor]]:
    """Return transformers' layer, ours with its weights, and the rotations of seven positions."""
    make_config, make_layer = KINDS[kind]
    config = make_config(
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    theirs = make_layer(config, 0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.2 if parameter.dim() > 1 else 1.0, 0.3)
    ours = RotaryLayer(
        width=24, inner=40, heads=4, kv_heads=2, eps=1e-5, bias=kind == "qwen2", number=0
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    for name in MODULES[kind]:
        place = next(path for path, _ in ours.named_modules() if path.endswith(name))
        inside = ours.get_submodule(place.rpartition(".")[0])
        setattr(inside, name, LoRALinear(getattr(inside, name), 2))
    positions = LlamaRotaryEmbedding(config)(torch.zeros(1, 7, 24), torch.arange(7)[None])
    return theirs, ours, positions


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_transformers_computes(kind: str) -> None:
    """The same output and the same gradient of the input."""
    theirs, ours, positions = pair(kind)
    both = [torch.randn(1, 7, 24).requires_grad_()]
    both.append(both[0].detach().clone().requires_grad_())
    expected = theirs(both[0], position_embeddings=positions, attention_mask=None)
    out = ours(both[1], position_embeddings=positions, layout=Ragged(torch.tensor([7])))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    weights = torch.randn_like(out)
    for each in (expected, out):
        (each * weights).sum().backward()
    assert both[0].grad is not None
    assert float(both[0].grad.abs().max()) > 0.1
    torch.testing.assert_close(both[1].grad, both[0].grad, rtol=1e-4, atol=1e-3)


def test_nothing_of_a_frozen_norm_is_trained() -> None:
    """The weights of the norms get no gradient, those of LoRA do."""
    _, ours, positions = pair("llama")
    hidden = torch.randn(1, 7, 24)
    ours(hidden, position_embeddings=positions, layout=Ragged(torch.tensor([3, 4]))).sum().backward()
    found = {name for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert len(found) == 2 * len(MODULES["llama"])
    assert all("lora" in name for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(dtype: torch.dtype) -> None:
    """Output and gradient are those of transformers' norm, also where rows are far larger than one."""
    theirs, ours = LlamaRMSNorm(24, eps=1e-5), RMSNorm(24, 1e-5)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    for norm in (theirs, ours):
        norm.to(dtype)
    values = (torch.randn(5, 24) * torch.tensor([[1e-4], [1.0], [1.0], [300.0], [3e4]])).to(dtype)
    both = [values.clone().requires_grad_() for _ in range(2)]
    outs = [norm(each) for norm, each in zip((theirs, ours), both, strict=True)]
    assert torch.equal(*outs)
    weights = torch.randn(5, 24)
    for out in outs:
        (out.float() * weights).sum().backward()
    assert both[0].grad is not None
    assert both[1].grad is not None
    scale = both[0].grad.float().norm(dim=1)
    off = (both[1].grad.float() - both[0].grad.float()).norm(dim=1)
    assert float((off / scale).max()) < (1e-5 if dtype == torch.float32 else 0.02)
