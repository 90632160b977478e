"""Tests of computing in another type than that of the weights."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobillm.errors import ConfigError
from mobillm.nn import compute
from mobillm.nn.backbone import Backbone
from mobillm.nn.compute import Expansion, compute_type, has_native_bf16, make_expansion
from mobillm.nn.heads import export_lm_head
from mobillm.nn.layers import find_parts
from mobillm.nn.workspace import Workspace
from tests.nn.tiny import DECODERS, ENCODERS, SAMPLES, collect, tiny_model


def expanded(architecture: str, taps: Any = (0, 1, 2, 3)) -> Backbone:
    """Return a tiny model in bf16 that computes in fp32."""
    model = tiny_model(architecture).bfloat16()
    expansion = make_expansion(model, "float32", Workspace())
    return Backbone(model, None, name="tiny", taps=list(taps), expansion=expansion)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_taps_are_those_of_the_same_weights_in_fp32(architecture: str) -> None:
    """bf16 weights that are expanded compute what the rounded weights compute in fp32, bit for bit."""
    backbone = expanded(architecture)
    rounded = Backbone.from_model(tiny_model(architecture).bfloat16().float(), name="tiny", taps=[0, 1, 2, 3])
    for ours, theirs in zip(collect(backbone, SAMPLES), collect(rounded, SAMPLES), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert (backbone.dtype, backbone.compute_dtype) == (torch.bfloat16, torch.float32)
    assert backbone.arithmetic != rounded.arithmetic


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_model_is_as_it_was(architecture: str) -> None:
    """After a forward, one that ends early or breaks off included, the weights are the bf16 ones again."""
    backbone = expanded(architecture, [1])
    before = {name: p.data_ptr() for name, p in backbone.model.named_parameters()}

    def fails(*_: Any) -> None:
        raise KeyError

    collect(backbone, SAMPLES)
    with pytest.raises(KeyError):
        backbone.forward(SAMPLES, fails)
    with pytest.raises(KeyError):
        backbone.extend([5, 6], fails)
    backbone.extend([5, 6], lambda *_: None)
    assert {name: p.data_ptr() for name, p in backbone.model.named_parameters()} == before
    assert all(p.dtype == torch.bfloat16 for p in backbone.model.parameters())


def test_only_one_module_is_expanded_at_a_time() -> None:
    """The workspace is that of the largest matrix, not of a layer or the model."""
    backbone = expanded("llama")
    collect(backbone, SAMPLES)
    assert backbone._expansion is not None
    assert backbone._expansion.workspace.nbytes == 4 * 16 * 24


@pytest.mark.parametrize("architecture", DECODERS)
def test_head_and_generation(architecture: str) -> None:
    """The exported head is that of the model without expansion, and tokens one by one give the same taps."""
    plain = tiny_model(architecture).bfloat16()
    backbone = expanded(architecture, [3])
    assert export_lm_head(backbone.model) == export_lm_head(plain)
    pieces: list[Tensor] = []
    cache = backbone.extend(SAMPLES[0][:2], lambda _, hidden: pieces.append(hidden.clone()))
    backbone.extend(SAMPLES[0][2:], lambda _, hidden: pieces.append(hidden.clone()), cache)
    (whole,) = collect(backbone, [SAMPLES[0]])
    assert all(piece.dtype == torch.float32 for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=2e-4, rtol=2e-4)


def test_single_tokens_are_not_worth_it() -> None:
    """For one token no matrix is expanded; what comes out is in the wanted type all the same."""
    backbone = expanded("llama", [3])
    (alone,) = collect(backbone, [[5]])
    assert alone.dtype == torch.float32
    assert backbone._expansion is not None
    assert backbone._expansion.workspace.nbytes == 4 * 16  # of the norms
    rounded = Backbone.from_model(tiny_model("llama").bfloat16().float(), name="tiny", taps=[3])
    torch.testing.assert_close(alone, collect(rounded, [[5]])[0], rtol=5e-2, atol=5e-2)


class Scaled(nn.Module):
    """A module with a weight of its own around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.full((16,), 1.5, dtype=torch.bfloat16))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale what the inner module gives."""
        out: Tensor = self.inner(hidden) * self.scale
        assert self.scale.dtype == out.dtype == torch.float32
        return out


def test_a_weight_around_a_module() -> None:
    """A module that runs others meanwhile keeps its own weights."""
    model: Any = tiny_model("llama").bfloat16()
    for layer in model.model.layers:
        layer.mlp = Scaled(layer.mlp)
    Expansion(model, find_parts(model), torch.float32, Workspace())
    with torch.inference_mode():
        found = model.model(torch.tensor([SAMPLES[0]])).last_hidden_state
    reference: Any = tiny_model("llama").bfloat16().float()
    for layer in reference.model.layers:
        layer.mlp.down_proj.weight.data *= 1.5
    reference.model.norm = model.model.norm
    with torch.inference_mode():
        expected = reference.model(torch.tensor([SAMPLES[0]])).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("native", [True, False])
def test_types(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Automatic is bf16 only for bf16 weights on a CPU that has it; what is asked for is taken."""
    monkeypatch.setattr(compute, "has_native_bf16", lambda: native)
    assert compute_type("auto", torch.bfloat16) == (torch.bfloat16 if native else torch.float32)
    assert compute_type("auto", torch.float16) == torch.float32
    for dtype in (torch.float32, torch.float64):
        assert compute_type("auto", dtype) == dtype
    assert compute_type("bfloat16", torch.float32) == compute_type(torch.bfloat16, torch.float32)
    assert compute_type("float32", torch.bfloat16) == torch.float32
    for wrong in ("float16", torch.int8, "fast"):
        with pytest.raises(ConfigError, match="auto, float32 or bfloat16"):
            compute_type(wrong, torch.bfloat16)
    model = tiny_model("llama")
    assert make_expansion(model, "auto", Workspace()) is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_native_bf16(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On x86 it is what the processor says of AVX512_BF16, not what oneDNN would emulate."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    flags = Path("/proc/cpuinfo").read_text()
    expected = "avx512_bf16" in flags if machine == "x86_64" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert has_native_bf16() == expected
