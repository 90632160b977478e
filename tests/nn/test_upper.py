"""Tests of the layers above a tap; the whole model with PEFT's adapter is the oracle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mobillm.errors import ModelError
from mobillm.nn import compute, upper
from mobillm.nn.backbone import Backbone
from mobillm.nn.cross_entropy import IGNORED
from mobillm.nn.heads import FrozenHead, export_lm_head
from mobillm.nn.ragged import Ragged
from mobillm.nn.saved import SideConfig, save_side
from mobillm.nn.side import SideCache, SideNetwork
from mobillm.nn.sidetuned import SideTuned
from mobillm.nn.tail import upper_weights
from mobillm.nn.upper import FrozenLayers
from mobillm.spec import ARCHITECTURES
from tests.nn.tiny import SAMPLES, VOCABULARY, collect, tail_session, tiny_model, tiny_tokenizer

LENGTHS = torch.tensor([len(sample) for sample in SAMPLES])
ALIKE = [[7, 5, 9, 4], [7, 5, 9], [7, 5, 3, 8, 9]]  # two tokens are the same


def tiny(architecture: str = "llama", tap: int = 1) -> Backbone:
    """Return a tiny decoder with one tap."""
    model = tiny_model(architecture, lm_head=False)
    return Backbone.from_model(model, tiny_tokenizer(), name="tiny", taps=[tap])


def disturbed(network: SideNetwork) -> SideNetwork:
    """Give every trained weight a random value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.trained().values():
            parameter.normal_(0.0, 0.2, generator=generator)
    return network.eval()


def with_peft(model: Any, folder: Path, outputs: int) -> Any:
    """Load the adapter of a directory onto a classifier made of the whole model, with PEFT."""
    model.config.num_labels, model.config.pad_token_id = outputs, 0
    kind: Any = transformers.AutoModelForSequenceClassification
    classifier = kind.from_config(model.config)
    classifier.model.load_state_dict(model.state_dict())
    return peft.PeftModel.from_pretrained(classifier, str(folder)).eval()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_computes_the_same_from_the_saved_adapter(architecture: str, tap: int, tmp_path: Path) -> None:
    """[W-20] A saved adapter on the whole model gives the logits that the side network gives from its tap."""
    backbone = tiny(architecture, tap)
    spec, _ = tail_session(backbone, outputs=3)
    network = disturbed(SideNetwork.from_spec(spec, tail=upper_weights(backbone, tap)))
    save_side(tmp_path, network.state_bytes(), SideConfig(spec=spec, max_length=8))
    ids = torch.zeros(3, 5, dtype=torch.int64)
    for row, sample in enumerate(SAMPLES):
        ids[row, : len(sample)] = torch.tensor(sample)
    model = with_peft(backbone.model, tmp_path, 3)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
        ours = network(collect(backbone, SAMPLES), LENGTHS)
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def language(architecture: str, tap: int) -> tuple[Backbone, SideNetwork]:
    """Return a tiny decoder with its LM head and one tap, and a disturbed network for causal-lm above it."""
    model = tiny_model(architecture, lm_head=True)
    backbone = Backbone.from_model(model, tiny_tokenizer(), name="tiny", taps=[tap])
    data = export_lm_head(model)
    head = FrozenHead.from_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    spec, _ = tail_session(backbone, task="causal-lm", outputs=head.vocabulary, head=digest)
    assert spec.blobs == (digest, *spec.tail.layers, spec.tail.ending) if spec.tail else False
    return backbone, disturbed(SideNetwork.from_spec(spec, head, upper_weights(backbone, tap)))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_continues_texts_as_the_tail_does(architecture: str, tap: int, tmp_path: Path) -> None:
    """[W-22] A saved adapter for causal-lm on the whole model gives each token's logits."""
    backbone, network = language(architecture, tap)
    save_side(tmp_path, network.state_bytes(), SideConfig(spec=network.spec, max_length=8))
    taps = collect(backbone, SAMPLES)
    model: Any = peft.PeftModel.from_pretrained(cast(Any, backbone.model), str(tmp_path)).eval()
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=torch.tensor([sample])).logits[0] for sample in SAMPLES])
        ours = network(taps, LENGTHS)
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    targets = torch.tensor([(7 * n) % VOCABULARY if n % 3 else IGNORED for n in range(len(theirs))])
    expected = torch.nn.functional.cross_entropy(theirs, targets, ignore_index=IGNORED)
    torch.testing.assert_close(network.loss(taps, LENGTHS, targets), expected)
    figures = network.evaluate(taps, LENGTHS, targets)
    assert figures["count"] == (targets != IGNORED).sum()
    assert figures["loss"] == pytest.approx(float(expected) * figures["count"], rel=1e-5)
    nothing = network.train().loss(taps, LENGTHS, torch.full_like(targets, IGNORED))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.detach()) == 0.0
    assert all(not bool(p.grad.any()) for p in network.trained().values() if p.grad is not None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_one_by_one(architecture: str) -> None:
    """With the keys and values of earlier tokens, new ones get the logits of the whole sample."""
    backbone, network = language(architecture, 1)
    taps = collect(backbone, SAMPLES[:1])
    with torch.no_grad():
        whole = network(taps, LENGTHS[:1])
    pieces: list[Tensor] = []
    caches: list[SideCache | None] = [None]
    for start, end in ((0, 2), (2, 3), (3, 5)):
        logits, cache = network.step([taps[0][start:end]], caches[-1])
        pieces.append(logits)
        caches.append(cache)
    assert [cache[0][0].shape[2] for cache in caches if cache] == [2, 3, 5]  # a step adds to none of them
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-5, atol=1e-5)
    final, _ = network.step([taps[0][3:]], caches[2], last=True)
    torch.testing.assert_close(final, whole[-1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tap", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_are_continued_as_by_the_whole_model(architecture: str, tap: int) -> None:
    """What is generated token by token is what the network says of the whole text."""
    backbone, network = language(architecture, tap)
    tuned = SideTuned(backbone, network, SideConfig(spec=network.spec, max_length=30))
    for prompt in SAMPLES:
        tokens = list(prompt)
        for token in tuned.generate_tokens(prompt, 6):
            (states,) = collect(backbone, [tokens])
            with torch.no_grad():
                assert int(network([states], torch.tensor([len(tokens)]))[-1].argmax()) == token
            tokens.append(token)
        assert len(tokens) > len(prompt)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blobs_hold_all_that_is_needed(architecture: str) -> None:
    """[W-17] [W-18] A network from blobs is that from the backbone in bf16, which is what blobs hold."""
    backbone = tiny(architecture)
    backbone.model.to(torch.bfloat16)
    spec, blobs = tail_session(backbone)
    assert spec.tail is not None
    far = disturbed(SideNetwork.from_spec(spec, tail=FrozenLayers.from_blobs(spec.tail, blobs)))
    near = disturbed(SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1)))
    taps = collect(backbone, SAMPLES)
    with torch.no_grad():
        assert torch.equal(far(taps, LENGTHS), near(taps, LENGTHS))
    assert far.state_bytes() == near.state_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_layers_that_compute_in_fp32(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without instructions for bf16 the layers compute what their weights compute in fp32, and stay bf16."""
    taps = collect(tiny(architecture), SAMPLES)
    outputs, states = [], []
    for wide, native in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(compute, "has_native_bf16", lambda native=native: native)
        backbone = tiny(architecture)
        backbone.model.to(torch.bfloat16)
        if wide:
            backbone.model.to(torch.float32)
        spec, _ = tail_session(backbone)
        network = disturbed(SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1))).train()
        out = network.upper(taps[-1], Ragged(LENGTHS)) if network.upper is not None else None
        assert out is not None
        out.square().sum().backward()
        outputs.append(out.detach())
        states.append({name: p.grad for name, p in network.trained().items() if p.grad is not None})
        frozen = [p for p in network.parameters() if not p.requires_grad]
        assert {p.dtype for p in frozen} == {torch.float32 if wide else torch.bfloat16}
    assert [out.dtype for out in outputs] == [torch.float32, torch.float32, torch.bfloat16]
    torch.testing.assert_close(outputs[0], outputs[1])
    for name, gradient in states[0].items():
        torch.testing.assert_close(gradient, states[1][name], rtol=1e-4, atol=1e-4)


def gradients(backbone: Backbone, samples: list[list[int]]) -> dict[str, Tensor]:
    """Return the gradients of one step on some samples, by name."""
    spec, _ = tail_session(backbone)
    network = disturbed(SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1))).train()
    targets = torch.tensor([len(sample) % 2 for sample in samples])
    lengths = torch.tensor([len(sample) for sample in samples])
    network.loss(collect(backbone, samples), lengths, targets).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in network.trained().items() if p.grad is not None}
    assert len(found) == len(network.trained())
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    return found


@pytest.mark.parametrize(
    "samples",
    [SAMPLES, [[3], [9, 4], *([[5]] * 8), list(range(3, 29))], ALIKE],
    ids=["together", "apart", "alike"],
)
def test_a_batch_is_the_mean_of_its_samples(samples: list[list[int]]) -> None:
    """Samples side by side do not see one another, forward or backward, however they are laid out."""
    backbone = tiny()
    together = gradients(backbone, samples)
    alone = [gradients(backbone, [sample]) for sample in samples]
    for name, gradient in together.items():
        mean = torch.stack([one[name] for one in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)


def test_what_samples_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers see the rows at which a batch's samples begin alike once, and the result is of all rows."""
    backbone = tiny()
    spec, _ = tail_session(backbone)
    network = SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1))
    assert network.upper is not None
    seen: list[int] = []

    def noted(_module: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].shape[1])

    network.upper.layers[0].register_forward_pre_hook(noted)
    for samples, rows in ((ALIKE, 8), (SAMPLES, 11), (ALIKE[:1], 4)):
        layout = Ragged(torch.tensor([len(sample) for sample in samples]))
        out = network.upper(collect(backbone, samples)[-1], layout)
        assert (len(out), seen[-1]) == (layout.tokens, rows)


@pytest.mark.parametrize("which", ["last", "second"])
@pytest.mark.parametrize("samples", [SAMPLES, ALIKE], ids=["together", "alike"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_are_wanted(architecture: str, samples: list[list[int]], which: str) -> None:
    """Leaving out what nothing looks at changes neither the other rows nor any gradient."""
    backbone, layout = tiny(architecture), Ragged(torch.tensor([len(sample) for sample in samples]))
    spec, _ = tail_session(backbone)
    tap = collect(backbone, samples)[-1]
    found = []
    wanted = {"last": layout.ends - 1, "second": layout.starts + 1}[which]
    for rows in (None, wanted):
        network = disturbed(SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1))).train()
        assert network.upper is not None
        out = network.upper(tap, layout, rows)
        out = out[wanted] if rows is None else out
        out.square().sum().backward()
        gradients = {name: p.grad for name, p in network.trained().items() if p.grad is not None}
        found.append((out.detach(), gradients))
    (whole, of_whole), (part, of_part) = found
    assert part.shape == (len(SAMPLES), 16)
    torch.testing.assert_close(part, whole)
    assert len(of_whole) > 10
    assert of_part.keys() == of_whole.keys()
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_part[name], gradient, rtol=1e-4, atol=1e-5)


def test_large_batches_compute_layers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not kept for the backward pass is computed again, with the same gradients."""
    backbone = tiny("opt")
    kept = gradients(backbone, SAMPLES)
    calls: list[object] = []

    def counted(layer: object, *values: Any, **named: Any) -> Any:
        calls.append(layer)
        return checkpoint(cast(Any, layer), *values, **named)

    monkeypatch.setattr(upper, "checkpoint", counted)
    monkeypatch.setattr(upper, "KEPT", 10 * upper.inner_bytes(tail_session(backbone)[0]))
    again = gradients(backbone, SAMPLES)
    assert len(calls) == 2
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())
    calls.clear()
    gradients(backbone, SAMPLES[:2])
    assert calls == []


def test_weights_are_shared_not_copied() -> None:
    """A resident backbone's layers are used where they lie; nothing of them is trained or saved."""
    backbone = tiny()
    spec, _ = tail_session(backbone)
    network = SideNetwork.from_spec(spec, tail=upper_weights(backbone, 1))
    own = {p.data_ptr() for p in network.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in backbone.parts.layers[1:].parameters()} < own
    assert set(safetensors.torch.load(network.state_bytes())) == set(network.trained())
    frozen = sum(p.numel() // 10 for p in network.parameters() if not p.requires_grad)
    assert SideNetwork.count(spec) == sum(p.numel() for p in network.trained().values()) + frozen


def _spoil(blobs: dict[str, bytes], digest: str, **tensors: Tensor | None) -> dict[str, bytes]:
    found = safetensors.torch.load(blobs[digest]) | tensors
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    return blobs | {digest: safetensors.torch.save(kept)}


def test_blobs_that_do_not_fit_are_refused() -> None:
    """[W-19] A tensor too few or too many, of another shape or type, and bytes that are no such file."""
    spec, blobs = tail_session(tiny())
    assert spec.tail is not None
    layer, ending = spec.tail.layers[1], spec.tail.ending
    half = torch.zeros(16, dtype=torch.bfloat16)
    name = "input_layernorm.weight"
    cases = [
        (_spoil(blobs, layer, **{name: None}), rf"layer 3: .* lack \['{name}'\]"),
        (_spoil(blobs, layer, secret=half), "layer 3: .* have 1 tensors too many"),
        (_spoil(blobs, layer, **{name: half[:8]}), rf"layer 3: {name} is \[8\] .*, not \[16\]"),
        (_spoil(blobs, layer, **{name: half.float()}), r"blob 2 .* torch\.float32, expected torch\.bfloat16"),
        (_spoil(blobs, ending, inv_freq=None), "rotary frequencies"),
        (_spoil(blobs, ending, inv_freq=torch.ones(5)), r"inv_freq is \[5\]"),
        (_spoil(blobs, ending, **{"norm.bias": half}), r"norm\.the tail's weights .* 1 tensors too many"),
        (blobs | {layer: b"\x08" * 40}, "blob 2 of the tail is no safetensors file"),
    ]
    for changed, text in cases:
        with pytest.raises(ModelError, match=text) as caught:
            SideNetwork.from_spec(spec, tail=FrozenLayers.from_blobs(spec.tail, changed))
        assert "secret" not in str(caught.value)
    with pytest.raises(ModelError, match="do not go together"):
        SideNetwork.from_spec(spec)
