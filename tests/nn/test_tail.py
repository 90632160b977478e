"""Tests of what a device says and sends of the layers above its tap."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm.errors import ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.checkpoint import Checkpoint
from mobillm.nn.heads import FrozenHead, export_lm_head
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import SideConfig, SideTuned, save_side
from mobillm.nn.streamed import StreamedBackbone
from mobillm.nn.tail import TailBlobs, check_base, describe_tail, upper_weights
from mobillm.spec import ARCHITECTURES, SessionSpec
from tests.nn.tiny import SAMPLES, VOCABULARY, collect, tail_session, tiny_model, tiny_tokenizer


def saved(folder: Path, architecture: str) -> Path:
    """Save a tiny model with its tokenizer and return the directory."""
    model: Any = tiny_model(architecture)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blobs_do_not_depend_on_who_makes_them(architecture: str, tmp_path: Path) -> None:
    """A resident backbone, a streamed one, and one with another tap name the same layers alike."""
    directory = saved(tmp_path, architecture)
    whole = TailBlobs(Backbone.from_pretrained(directory, taps=[1]))
    streamed = TailBlobs(StreamedBackbone.from_pretrained(directory, taps=[1]))
    higher = TailBlobs(StreamedBackbone.from_pretrained(directory, taps=[2]))
    assert list(whole) == list(streamed)
    assert whole.spec == streamed.spec
    assert higher.spec.layers == whole.spec.layers[1:]
    assert higher.spec.ending == whole.spec.ending
    digests = [hashlib.sha256(blob).hexdigest() for blob in streamed]
    assert digests == [*whole.spec.layers, whole.spec.ending]
    assert streamed.size == sum(map(len, whole))


def test_layers_above_the_tap_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass reads the layers below the tap alone; a blob's layer is read for it and dropped."""
    backbone = StreamedBackbone.from_pretrained(saved(tmp_path, "llama"), taps=[1])
    names: list[str] = []
    original = Checkpoint.read

    def read(self: Checkpoint, name: str, target: Tensor) -> None:
        names.append(name)
        original(self, name, target)

    monkeypatch.setattr(Checkpoint, "read", read)
    for _ in range(2):
        collect(backbone, SAMPLES)
    assert names
    assert all(name.startswith("model.layers.0.") for name in names)
    names.clear()
    next(iter(TailBlobs(backbone)))
    layers = {name.split(".")[2] for name in names}
    assert layers == {"1", "2"}


def test_taps_that_leave_nothing_to_train(tmp_path: Path) -> None:
    """Several taps, or the last layer's, are refused with one that would do."""
    for taps in ([1, 2], [3]):
        backbone = Backbone.from_model(tiny_model("llama"), name="tiny", taps=taps)
        with pytest.raises(ModelError, match=r"one tap below layer 3, .* --taps 1, say"):
            TailBlobs(backbone)


def test_models_that_a_server_would_refuse() -> None:
    """What no spec can say of a model is the model's fault: the error says what to use instead."""
    model: Any = tiny_model("llama")
    model.config.rms_norm_eps = 0.0
    backbone = Backbone.from_model(model, name="tiny", taps=[1])
    with pytest.raises(ModelError, match=r"cannot use tiny: tail\.eps is 0\.0; .*; use --side-kind ladder"):
        describe_tail(backbone)


def test_damaged_layers() -> None:
    """A frozen weight that is not finite is found before the server trains above it in vain."""
    model: Any = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float("inf")
    backbone = Backbone.from_model(model, name="tiny", taps=[1])
    with pytest.raises(ModelError, match=r"layer 3 of tiny has values in mlp\.up_proj\.weight that are not"):
        TailBlobs(backbone)


def test_upper_weights_keep_their_type() -> None:
    """What is used on the device is not rounded."""
    backbone = Backbone.from_model(tiny_model("llama"), name="tiny", taps=[1])
    weights = upper_weights(backbone, 1)
    assert len(weights.layers) == 2
    assert all(tensor.dtype == backbone.dtype for layer in weights.layers for tensor in layer.values())
    assert set(weights.ending) == {"norm.weight", "inv_freq"}


def used(backbone: Backbone, spec: SessionSpec, head: FrozenHead | None) -> tuple[SideNetwork, Tensor]:
    """Return a disturbed network above a backbone, and what it makes of samples."""
    network = SideNetwork.from_spec(spec, head, upper_weights(backbone, spec.model.taps[0])).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        outputs = [
            network(collect(backbone, [sample]), torch.tensor([len(sample)])) for sample in SAMPLES
        ]  # each time all layers once more
    return network, torch.cat(outputs)


@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_upper_layers_of_a_streamed_backbone_stay_on_the_disk(
    architecture: str, tap: int, tmp_path: Path
) -> None:
    """They are used two at a time in the memory of the backbone's own, and compute the same to the bit."""
    directory = saved(tmp_path, architecture)
    resident = Backbone.from_pretrained(directory, taps=[tap])
    streamed = StreamedBackbone.from_pretrained(directory, taps=[tap])
    spec, _ = tail_session(resident)
    _, expected = used(resident, spec, None)
    network, found = used(streamed, spec, None)
    assert expected.abs().max() > 0.1
    assert torch.equal(found, expected)
    assert network.upper is not None
    own = {p.untyped_storage().data_ptr() for p in streamed.parts.layers.parameters()}
    frozen = [p for p in network.upper.layers.parameters() if not p.requires_grad]
    assert len(own) == 2
    assert {p.untyped_storage().data_ptr() for p in frozen} <= own


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_above_a_streamed_backbone(architecture: str, tmp_path: Path) -> None:
    """Token by token, each layer is there when it is used."""
    directory = saved(tmp_path, architecture)
    found = []
    for kind in (Backbone, StreamedBackbone):
        backbone = kind.from_pretrained(directory, taps=[1], lm_head=True)
        settings: Any = backbone.model.generation_config
        settings.eos_token_id = None
        data = export_lm_head(backbone.model)
        digest = hashlib.sha256(data).hexdigest()
        spec, _ = tail_session(backbone, task="causal-lm", outputs=VOCABULARY, head=digest)
        network, logits = used(backbone, spec, FrozenHead.from_bytes(data))
        tuned = SideTuned(backbone, network, SideConfig(spec=spec, max_length=16))
        found.append((logits, tuned.generate_tokens([5, 6, 7], 8)))
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[0][1]) == 8
    assert found[0][1] == found[1][1]


def test_adapters_of_another_model(tmp_path: Path) -> None:
    """An adapter is used with what it was trained on alone, whatever holds it; the error names both."""
    directory = saved(tmp_path, "llama")
    spec, _ = tail_session(Backbone.from_pretrained(directory, taps=[1], name="first"))
    check_base(StreamedBackbone.from_pretrained(directory, taps=[1]), spec)
    check_base(Backbone.from_pretrained(directory, taps=[1], dtype="int8"), spec)
    with pytest.raises(ModelError, match=r"qwen has architecture qwen2, .* on first, which has llama; load"):
        check_base(Backbone.from_model(tiny_model("qwen2"), name="qwen", taps=[1]), spec)
    other: Any = tiny_model("llama")
    other.model.layers[1].mlp.up_proj.weight.data += 1
    with pytest.raises(ModelError, match=r"layer 2 of the backbone other has SHA-256 .* on first, where"):
        check_base(Backbone.from_model(other, name="other", taps=[1]), spec)
    save_side(tmp_path / "adapter", b"", SideConfig(spec=spec, max_length=4))
    with pytest.raises(ModelError, match="layer 2 of the backbone other has SHA-256"):
        SideTuned.from_pretrained(Backbone.from_model(other, name="other", taps=[1]), tmp_path / "adapter")
