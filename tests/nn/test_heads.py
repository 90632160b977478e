"""Tests of the exported LM head and the pooled head."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mobillm.errors import ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.heads import FrozenHead, PooledHead, export_lm_head
from tests.nn.tiny import DECODERS, SAMPLES, collect, tiny_model


@pytest.mark.parametrize("architecture", list(DECODERS))
def test_logits_equal_the_models(architecture: str) -> None:
    """[B-41] [W-15] On the last tap, before the final norm, the head gives the model's own logits."""
    model = tiny_model(architecture)
    head = FrozenHead.from_bytes(export_lm_head(model))
    backbone = Backbone.from_model(model, name="tiny", taps="all")
    last = collect(backbone, [SAMPLES[0]])[-1]
    with torch.inference_mode():
        own: Tensor = model(input_ids=torch.tensor([SAMPLES[0]]), use_cache=False).logits[0]
        ours = head.logits(head.normalise(last))
    torch.testing.assert_close(ours, own, atol=2e-4, rtol=2e-4)
    assert (head.hidden_size, head.vocabulary) == (16, 40)
    assert not list(head.parameters())
    assert not head.state_dict()


@pytest.mark.parametrize(
    ("architecture", "norm", "softcap", "names"),
    [
        ("llama", "rmsnorm", None, {"head.weight", "norm.weight"}),
        ("gemma2", "rmsnorm", 4.0, {"head.weight", "norm.weight"}),
        ("gpt2", "layernorm", None, {"head.weight", "norm.weight", "norm.bias"}),
        ("opt-350m", "none", None, {"head.weight", "project.weight"}),
    ],
)
def test_format(architecture: str, norm: str, softcap: float | None, names: set[str]) -> None:
    """[W-13] [W-14] [W-15] The bytes are the same each time; Gemma's weight is the one in effect."""
    model = tiny_model(architecture)
    data = export_lm_head(model)
    assert data == export_lm_head(model)
    tensors = safetensors.torch.load(data)
    assert set(tensors) == names
    length = int.from_bytes(data[:8], "little")
    settings = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["mobillm"])
    assert (settings["norm"], settings["softcap"]) == (norm, softcap)
    if architecture == "gemma2":
        weight = model.get_parameter("model.norm.weight")
        torch.testing.assert_close(tensors["norm.weight"], weight + 1.0)


def test_unknown_architecture_is_refused() -> None:
    """A model that does something else after its last layer is not exported wrongly."""
    model = tiny_model("llama")
    model.get_submodule("lm_head").register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    with pytest.raises(ModelError, match="cannot be exported"):
        export_lm_head(model)
    with pytest.raises(ModelError, match="loaded without its LM head"):
        export_lm_head(tiny_model("llama", lm_head=False))


SETTINGS: dict[str, object] = {"norm": "none", "eps": 0, "softcap": None, "scale": 1, "format": 1}


def head_of(settings: object, **changes: Tensor) -> bytes:
    """Return a small head as another writer would make it."""
    tensors = {"head.weight": torch.ones(40, 8), "project.weight": torch.ones(8, 16)} | changes
    return safetensors.torch.save(tensors, {"mobillm": json.dumps(settings)})


def test_a_head_of_another_writer() -> None:
    """[W-13] [W-14] [W-15] Numbers may be whole, and ``format`` left out."""
    head = FrozenHead.from_bytes(head_of({"norm": "none", "eps": 0, "softcap": 2, "scale": 3}))
    logits = head.logits(head.normalise(torch.full((1, 16), 1 / 128)))
    torch.testing.assert_close(logits, torch.full((1, 40), 2 * math.tanh(3 / 2)))


def test_damaged_bytes() -> None:
    """[W-16] Bytes that are no head, or whose tensors do not fit, are refused; the text says why."""
    data = export_lm_head(tiny_model("opt-350m"))
    for wrong in (b"", b"garbage", data[: len(data) // 2], bytes(64)):
        with pytest.raises(ModelError, match="is no safetensors file"):
            FrozenHead.from_bytes(wrong)
    with pytest.raises(ModelError, match="__metadata__ lacks the key 'mobillm'"):
        FrozenHead.from_bytes(safetensors.torch.save(safetensors.torch.load(data)))
    for text in ("{", "[" * 100_000):
        with pytest.raises(ModelError, match="settings are no JSON"):
            FrozenHead.from_bytes(safetensors.torch.save(safetensors.torch.load(data), {"mobillm": text}))
    with pytest.raises(ModelError, match="settings are no map"):
        FrozenHead.from_bytes(head_of([1]))
    with pytest.raises(ModelError, match="settings lack 'eps'"):
        FrozenHead.from_bytes(head_of({key: value for key, value in SETTINGS.items() if key != "eps"}))
    with pytest.raises(ModelError, match="1 settings that this version does not know"):
        FrozenHead.from_bytes(head_of(SETTINGS | {"another": 1}))
    with pytest.raises(ModelError, match=r"project\.weight has shape \(7, 16\), expected \(8, 16\)"):
        FrozenHead.from_bytes(head_of(SETTINGS, **{"project.weight": torch.zeros(7, 16)}))
    with pytest.raises(ModelError, match=r"lacks a matrix head\.weight"):
        FrozenHead.from_bytes(head_of(SETTINGS, **{"head.weight": torch.zeros(8)}))
    with pytest.raises(ModelError, match="has a tensor other than"):
        FrozenHead.from_bytes(head_of(SETTINGS, another=torch.zeros(8)))
    for name in ("", "forward", "training", "_settings"):  # not even those that a module has already
        with pytest.raises(ModelError, match="has a tensor other than"):
            FrozenHead.from_bytes(head_of(SETTINGS, **{name: torch.zeros(8)}))
    for dtype in (torch.uint8, torch.float64, torch.complex64):
        with pytest.raises(ModelError, match=r"head\.weight holds torch\..*, expected F32, F16 or BF16"):
            FrozenHead.from_bytes(head_of(SETTINGS, **{"head.weight": torch.zeros(40, 8, dtype=dtype)}))
    changes: list[dict[str, object]] = [
        {"norm": "batch"}, {"norm": []}, {"eps": math.nan}, {"format": 2}, {"eps": "x"}, {"scale": True},
        {"softcap": 0}, {"eps": 10**400}, {"scale": 10**400}, {"scale": math.inf},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ModelError, match="settings this version cannot use"):
            FrozenHead.from_bytes(head_of(SETTINGS | change))


def test_pooled_head_shapes() -> None:
    """The pooled head gives logits, or one value per sample, and starts at zero."""
    vector = torch.randn(3, 16)
    assert torch.equal(PooledHead(16, 4)(vector), torch.zeros(3, 4))
    assert torch.equal(PooledHead(16, 1)(vector), torch.zeros(3))
    assert isinstance(PooledHead(16, 4), nn.Module)
