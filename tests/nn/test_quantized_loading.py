"""Tests of loading a model with quantized layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from mobillm.errors import ConfigError, ModelError
from mobillm.nn import quantized_loading
from mobillm.nn.backbone import Backbone
from mobillm.nn.checkpoint import Checkpoint
from mobillm.nn.heads import export_lm_head
from mobillm.nn.quantized import QuantizedLinear, quantized_linear
from mobillm.nn.quantized_loading import load_quantized
from mobillm.nn.saved import SideConfig, save_side
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import SideTuned
from mobillm.nn.workspace import Workspace
from tests.nn.tiny import DECODERS, ENCODERS, SAMPLES, collect, session, tiny_model, tiny_tokenizer


def saved(folder: Path, architecture: str) -> Path:
    """Save a tiny model with its tokenizer and return the directory."""
    model: Any = tiny_model(architecture)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.1), ("int4", 0.3)])
@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_taps_are_nearly_those_of_all_bits(
    architecture: str, dtype: str, error: float, tmp_path: Path
) -> None:
    """Each architecture runs with quantized layers, near its own hidden states; all linear ones are."""
    directory = saved(tmp_path, architecture)
    options: dict[str, Any] = {"taps": [1, 2, 3], "compute_dtype": "float32"}
    whole = Backbone.from_pretrained(directory, dtype="float32", **options)
    backbone = Backbone.from_pretrained(directory, dtype=dtype, **options)
    taps = collect(backbone, SAMPLES)
    for found, expected in zip(taps, collect(whole, SAMPLES), strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert (found - expected).norm() < error * expected.norm()
    for found, expected in zip(collect(backbone.with_taps([2]), SAMPLES), taps[1:2], strict=True):
        assert torch.equal(found, expected)
    matrices = [name for name, p in backbone.parts.layers.named_parameters() if p.dim() > 1]
    assert matrices == []
    assert backbone.model_spec() == whole.model_spec()
    assert backbone.weight_bytes().layer < whole.weight_bytes().layer / 2
    assert backbone.weight_bytes().widest == whole.weight_bytes().widest


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_above_the_tap(architecture: str, tmp_path: Path) -> None:
    """Those above the last tap are not loaded, and read from the disk as they were before quantization."""
    directory = saved(tmp_path, architecture)
    backbone = Backbone.from_pretrained(directory, dtype="int8", taps="1/3")
    whole = Backbone.from_pretrained(directory, dtype="bfloat16", taps="1/3")
    assert backbone.arithmetic.startswith("8 bits computed in ")
    assert backbone.loaded == 1
    assert all(p.is_meta for layer in backbone.parts.layers[1:] for p in layer.parameters())
    for number in range(3):
        read, expected = backbone.layer_weights(number), whole.layer_weights(number)
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in read)
    assert [*backbone.with_taps([0, 1]).taps] == [0, 1]
    with pytest.raises(ConfigError, match=r"taps is \[2\]; expected layers up to 1, .*load with these taps"):
        backbone.with_taps([2])
    assert Backbone.from_pretrained(directory, dtype="int8", taps=[1], lm_head=True).loaded == 3


def test_norms_without_weights(tmp_path: Path) -> None:
    """Where nothing of a layer is left unquantized, the embedding tells the type."""
    config = transformers.OlmoConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    kind: Any = transformers.OlmoForCausalLM
    kind(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    backbone = Backbone.from_pretrained(tmp_path, dtype="int8", taps=[1])
    assert (backbone.dtype, backbone.device.type) == (torch.bfloat16, "cpu")
    assert collect(backbone, SAMPLES)[0].isfinite().all()


def test_a_side_network_that_needs_more_layers(tmp_path: Path) -> None:
    """It is refused with what to load, before anything is read."""
    directory = saved(tmp_path / "model", "llama")
    backbone = Backbone.from_pretrained(directory, dtype="int8", taps=[1])
    spec = session()
    save_side(
        tmp_path, SideNetwork.from_spec(spec).state_bytes(), SideConfig(spec=spec, max_length=8, bits=8)
    )
    with pytest.raises(ModelError, match=r"only 1 layers are loaded, .* needs 3; load it with taps=\["):
        SideTuned.from_pretrained(backbone, tmp_path)


def test_a_side_network_of_other_weights(tmp_path: Path) -> None:
    """What was trained on taps of quantized layers is used on those, and the other way round."""
    directory = saved(tmp_path / "model", "llama")
    quantized, plain = (Backbone.from_pretrained(directory, dtype=name) for name in ("int8", "bfloat16"))
    weights = SideNetwork.from_spec(session()).state_bytes()
    for right, wrong, advice in ((quantized, plain, "int8"), (plain, quantized, "bfloat16")):
        config = SideConfig(spec=session(), max_length=8, bits=right.bits)
        save_side(tmp_path, weights, config)
        assert SideTuned.from_pretrained(right, tmp_path).config.bits == right.bits
        with pytest.raises(ModelError, match=f"load it with --dtype {advice}$"):
            SideTuned.from_pretrained(wrong, tmp_path)


def test_head_and_generation(tmp_path: Path) -> None:
    """The LM head is not quantized, and tokens one by one give the same taps."""
    directory = saved(tmp_path, "llama")
    whole = Backbone.from_pretrained(directory, dtype="bfloat16", lm_head=True)
    backbone = Backbone.from_pretrained(directory, dtype="int8", lm_head=True, taps=[3])
    assert export_lm_head(backbone.model) == export_lm_head(whole.model)
    pieces: list[Tensor] = []
    cache = backbone.extend(SAMPLES[0][:2], lambda _, hidden: pieces.append(hidden.float()))
    backbone.extend(SAMPLES[0][2:], lambda _, hidden: pieces.append(hidden.float()), cache)
    (together,) = collect(backbone, [SAMPLES[0]])
    torch.testing.assert_close(torch.cat(pieces), together.float(), atol=0.1, rtol=0.1)


def test_one_matrix_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights that are quantized, no two are in memory as they are in the file."""
    directory = saved(tmp_path, "llama")
    events: list[str] = []
    read, quantize = Checkpoint.read, quantized_linear

    def reading(self: Checkpoint, name: str, target: Tensor) -> None:
        events.append(name)
        read(self, name, target)

    def quantizing(*arguments: Any) -> QuantizedLinear:
        events.append("quantize")
        return quantize(*arguments)

    monkeypatch.setattr(Checkpoint, "read", reading)
    monkeypatch.setattr(quantized_loading, "quantized_linear", quantizing)
    Backbone.from_pretrained(directory, dtype="int8")
    assert events.count("quantize") == 3 * 7
    matrices = [n for n, event in enumerate(events) if "proj" in event]
    assert [events[n + 1] for n in matrices] == ["quantize"] * len(matrices)


def test_only_some_layers(tmp_path: Path) -> None:
    """Layers above the wanted depth are counted and not read."""
    directory = saved(tmp_path, "gpt2")
    found = load_quantized(
        directory, 8, lm_head=False, workspace=Workspace(), depth=lambda layers: layers - 2
    )
    assert found.loaded == 1
    part = Backbone(found.model, None, name="tiny", taps=[1], bits=8)
    whole = Backbone.from_pretrained(directory, dtype="int8", compute_dtype="bfloat16", taps=[1])
    assert part.weight_bytes() == whole.weight_bytes()
    assert torch.equal(collect(part, SAMPLES)[0], collect(whole, SAMPLES)[0])
    assert all(p.is_meta for p in part.parts.layers[1].parameters())
