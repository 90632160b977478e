"""Tests of the frozen backbone and its taps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mobillm.errors import ConfigError, ModelError
from mobillm.nn import backbone as backbone_module
from mobillm.nn.backbone import Backbone
from tests.nn.tiny import DECODERS, ENCODERS, SAMPLES, VOCABULARY, collect, tiny_model

ALL = [*DECODERS, *ENCODERS]


def _reference(backbone: Backbone, sample: list[int]) -> list[Tensor]:
    """Return what transformers reports for one sample, from the embedding's output on."""
    base: Any = backbone.model.base_model
    with torch.inference_mode():
        out = base(input_ids=torch.tensor([sample]), output_hidden_states=True, use_cache=False)
    return [hidden[0] for hidden in out.hidden_states]


@pytest.mark.parametrize("architecture", ALL)
def test_taps_equal_hidden_states(architecture: str) -> None:
    """[B-41] [B-42] Taps come in order, ragged, and equal what transformers reports for each sample."""
    backbone = Backbone.from_model(tiny_model(architecture), name="tiny", taps=[0, 1, 2, 3])
    taps = collect(backbone, SAMPLES)
    assert [tuple(tap.shape) for tap in taps] == [(11, 16)] * 4
    start = 0
    for sample in SAMPLES:
        expected = _reference(backbone, sample)
        end = start + len(sample)
        # Transformers reports the last layer after the final norm, so only the lower ones compare.
        for layer in (0, 1, 2):
            torch.testing.assert_close(taps[layer][start:end], expected[layer], atol=2e-4, rtol=2e-4)
        start = end


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt"])
def test_decoders_that_see_both_sides(architecture: str) -> None:
    """A configuration may switch the causal mask off; such a model counts as an encoder."""
    model: Any = tiny_model(architecture, lm_head=False)
    masked = collect(Backbone.from_model(model, name="tiny", taps=[1]), [SAMPLES[0]])[0]
    model.config.is_causal = False
    backbone = Backbone.from_model(model, name="tiny", taps=[1])
    assert not backbone.causal
    (tap,) = collect(backbone, SAMPLES)
    expected = _reference(backbone, SAMPLES[0])[1]
    torch.testing.assert_close(tap[: len(SAMPLES[0])], expected, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(expected, masked, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", ALL)
def test_neighbours_do_not_matter(architecture: str) -> None:
    """A sample's taps are the same alone and beside a longer one."""
    backbone = Backbone.from_model(tiny_model(architecture), name="tiny", taps="all")
    alone = collect(backbone, [SAMPLES[1]])
    beside = collect(backbone, [SAMPLES[0], SAMPLES[1]])
    for one, both in zip(alone, beside, strict=True):
        torch.testing.assert_close(one, both[5:], atol=2e-4, rtol=2e-4)


def test_tap_is_handed_over_at_once_and_the_rest_is_skipped() -> None:
    """Each tap comes before the next layer runs, and nothing after the last tap is computed."""
    model = tiny_model("llama")
    base: Any = model.base_model
    events: list[str] = []
    for number, layer in enumerate(base.layers, 1):
        layer.register_forward_pre_hook(lambda *_, n=number: events.append(f"layer {n}"))
    base.norm.register_forward_pre_hook(lambda *_: events.append("norm"))
    backbone = Backbone.from_model(model, name="tiny", taps=[1, 2])
    backbone.forward(SAMPLES, lambda index, _: events.append(f"tap {index}"))
    assert events == ["layer 1", "tap 0", "layer 2", "tap 1"]


def test_parts_are_smaller_where_layers_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest inner state of a part stays below its bound, down to the least part."""
    backbone = Backbone.from_model(tiny_model("llama"), name="tiny", taps="all")
    assert backbone.part == 512
    state = 4 * backbone.weight_bytes().widest
    monkeypatch.setattr(backbone_module, "_STATE_BYTES", 300 * state)
    assert backbone.part == 300
    monkeypatch.setattr(backbone_module, "_STATE_BYTES", state)
    assert backbone.part == 256


def test_batches_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch goes through a layer in parts of bounded size; its taps come whole and in order."""
    model = tiny_model("llama")
    whole = Backbone.from_model(model, name="tiny", taps="all")
    expected = collect(whole, SAMPLES)
    sizes: list[tuple[int, ...]] = []
    base: Any = model.base_model
    handle = base.layers[1].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:2]))
    monkeypatch.setattr(backbone_module, "_PART", 8)
    samples = [SAMPLES[1], SAMPLES[2], SAMPLES[0], SAMPLES[1]]
    found = collect(whole, samples)
    handle.remove()
    assert sizes == [(2, 4), (1, 5), (1, 2)]  # 2 * 5 and 3 * 4 tokens would be too many
    for tap, other in zip(found, expected, strict=True):
        torch.testing.assert_close(tap[:2], other[5:7], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(tap[2:6], other[7:], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(tap[6:11], other[:5], atol=2e-4, rtol=2e-4)


def test_a_model_that_works_between_its_layers() -> None:
    """Where the layers are not all there is, batches go through the whole model one after the other."""
    model = tiny_model("llama")
    base: Any = model.base_model

    def forward(input_ids: Tensor, **_: Any) -> None:
        hidden = base.embed_tokens(input_ids)
        rotary = base.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
        for layer in base.layers:
            hidden = 2 * layer(hidden, position_embeddings=rotary)

    base.forward = forward
    backbone = Backbone.from_model(model, name="tiny", taps="all")
    found: list[tuple[int, int]] = []
    backbone.forward_all([SAMPLES[:1]] * 2, lambda batch, index, _: found.append((batch, index)))
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    taps = collect(backbone, SAMPLES[:1])
    with torch.inference_mode():
        rotary = base.rotary_emb(taps[0], torch.arange(len(SAMPLES[0]))[None])
        expected = base.layers[1](2 * taps[0][None], position_embeddings=rotary)
    assert torch.equal(taps[1], expected[0])


def test_hooks_are_gone_after_an_error() -> None:
    """An error of the callback leaves no hook on the model."""
    backbone = Backbone.from_model(tiny_model("gpt2"), name="tiny", taps="all")

    def fail(_index: int, _hidden: Tensor) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        backbone.forward(SAMPLES, fail)
    assert not any(module._forward_hooks for module in backbone.model.modules())
    assert len(collect(backbone, SAMPLES)) == 3


@pytest.mark.parametrize("architecture", list(DECODERS))
def test_extend_equals_forward(architecture: str) -> None:
    """Tokens that come one after the other give the taps of the whole sample."""
    backbone = Backbone.from_model(tiny_model(architecture), name="tiny", taps="all")
    whole = collect(backbone, [SAMPLES[0]])
    cache: Any = None
    pieces: list[list[Tensor]] = [[], [], []]
    for part in (SAMPLES[0][:2], SAMPLES[0][2:3], SAMPLES[0][3:]):
        cache = backbone.extend(part, lambda index, hidden: pieces[index].append(hidden.clone()), cache)
    for tap, found in zip(whole, pieces, strict=True):
        torch.testing.assert_close(tap, torch.cat(found), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", ALL)
def test_fingerprint(architecture: str) -> None:
    """The model spec states the taps' true width, also where embeddings are narrower."""
    backbone = Backbone.from_model(tiny_model(architecture), name="tiny", taps="every:2")
    spec = backbone.model_spec()
    assert (spec.hidden_size, spec.layers, spec.taps) == (16, 3, (2, 3))
    assert backbone.causal is (architecture in DECODERS)
    assert collect(backbone, SAMPLES)[0].shape[1] == spec.hidden_size
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training


def test_positions() -> None:
    """RoBERTa's position table holds fewer positions than rows; too long a sample is refused."""
    assert Backbone.from_model(tiny_model("bert"), name="tiny").positions == 32
    backbone = Backbone.from_model(tiny_model("roberta"), name="tiny")
    assert backbone.positions == 30
    with pytest.raises(ModelError, match="31 tokens but tiny takes at most 30"):
        collect(backbone, [[5] * 31])


def test_bad_samples() -> None:
    """No samples, an empty one and generation by an encoder are clear errors."""
    backbone = Backbone.from_model(tiny_model("bert"), name="tiny")
    with pytest.raises(ModelError, match="no samples"):
        collect(backbone, [])
    with pytest.raises(ModelError, match="sample 1 has no tokens"):
        collect(backbone, [[1], []])
    for wrong in (-1, VOCABULARY):
        with pytest.raises(
            ModelError, match=rf"sample 1 has the token id {wrong}, .* embeddings of 0 to 39; use"
        ):
            collect(backbone, [[1], [2, wrong]])
    with pytest.raises(ModelError, match="encoder, which cannot generate"):
        backbone.extend([1], lambda *_: None)
    with pytest.raises(ModelError, match="has no tokenizer"):
        backbone.tokenize(["a"], 4)


def test_unsuitable_models() -> None:
    """Encoder-decoders, shared layers and plain modules are refused by name."""
    t5 = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    with pytest.raises(ModelError, match="encoder-decoder"):
        Backbone.from_model(transformers.T5Model(t5), name="t5")
    albert = transformers.AlbertConfig(
        vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=4, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="no list of 4 layers"):
        Backbone.from_model(transformers.AlbertModel(albert), name="albert")
    with pytest.raises(ModelError, match="no transformers model"):
        Backbone.from_model(nn.Linear(2, 2), name="linear")


def test_from_pretrained_errors(tmp_path: Path) -> None:
    """A missing model and a wrong dtype are one clear sentence."""
    with pytest.raises(ModelError, match="cannot load the model"):
        Backbone.from_pretrained(tmp_path, local_files_only=True)
    with pytest.raises(ModelError, match="there is no model at"):
        Backbone.from_pretrained(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="cannot read the GGUF file"):
        Backbone.from_pretrained(tmp_path, gguf_file="bad.gguf")
    with pytest.raises(ConfigError, match="dtype"):
        Backbone.from_pretrained(tmp_path, dtype="int7")
