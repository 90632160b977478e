"""Tests of a backbone with a saved side network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm.errors import ConfigError, ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import CONFIG_FILE, WEIGHTS_FILE, SideConfig, SideTuned, save_side
from mobillm.spec import SessionSpec
from tests.nn.tiny import collect, language_session, session, tiny_model, tiny_tokenizer


def _disturbed(network: SideNetwork) -> SideNetwork:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return network


def _backbone(architecture: str, lm_head: bool = True) -> Backbone:
    return Backbone.from_model(
        tiny_model(architecture, lm_head), tiny_tokenizer(), name="tiny", taps="every:2"
    )


def _generator(directory: Path, architecture: str, **side: Any) -> SideTuned:
    backbone = _backbone(architecture)
    spec, head = language_session(backbone.model, **side)
    network = _disturbed(SideNetwork.from_spec(spec, head))
    save_side(directory, network.state_bytes(), SideConfig(spec=spec, max_length=16))
    return SideTuned.from_pretrained(backbone, directory)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "ladder"), ("gpt2", "ladder"), ("opt-350m", "ladder"), ("gemma2", "parallel")],
)
def test_generate_equals_recomputation(tmp_path: Path, architecture: str, kind: str) -> None:
    """Greedy decoding with both caches picks the tokens that whole forwards pick."""
    tuned = _generator(tmp_path, architecture, kind=kind)
    settings: Any = tuned.backbone.model.generation_config
    settings.eos_token_id = None
    tokens = [5, 6, 7]
    for _ in range(10):
        taps = collect(tuned.backbone, [tokens])
        with torch.no_grad():
            tokens.append(int(tuned.network(taps, torch.tensor([len(tokens)]))[-1].argmax()))
    assert tuned.generate_tokens([5, 6, 7], 10) == tokens[3:]


def test_generation_ends(tmp_path: Path) -> None:
    """Generation stops at the end token and at the model's last position, and decodes to text."""
    tuned = _generator(tmp_path, "llama")
    settings: Any = tuned.backbone.model.generation_config
    settings.eos_token_id = None
    free = tuned.generate_tokens([5], 100, temperature=5.0)
    assert len(free) == 32  # 32 positions, and one token after the last of them
    stop = next(index for index in range(2, len(free)) if free[index] not in free[:index])
    settings.eos_token_id = [free[stop]]
    assert tuned.generate_tokens([5], 100, temperature=5.0) == free[:stop]
    (prompt,) = tuned.backbone.tokenize(["w5"], 8)
    added = tuned.generate_tokens(prompt, 100)
    assert tuned.generate("w5", 100) == tuned.backbone.tokenizer.decode(added, skip_special_tokens=True)


def test_sampling_follows_the_seed(tmp_path: Path) -> None:
    """Sampling repeats with its seed and leaves the process's random state alone."""
    tuned = _generator(tmp_path, "llama")
    state = torch.random.get_rng_state()
    runs = [tuned.generate_tokens([5, 6], 12, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_predict(tmp_path: Path, architecture: str) -> None:
    """Predictions come in the order of the texts and do not depend on the batch size."""
    backbone = _backbone(architecture, lm_head=False)
    spec = session(outputs=3, causal=backbone.causal, pool="mean")
    network = _disturbed(SideNetwork.from_spec(spec))
    config = SideConfig(spec=spec, max_length=4, labels=("bad", "fair", "good"))
    save_side(tmp_path, network.state_bytes(), config)
    tuned = SideTuned.from_pretrained(backbone, tmp_path)
    texts = ["w5 w6 w7 w8 w9 w10", "w4", "w30 w31 w32", "w20 w21"]
    all_at_once, by_two = tuned.predict(texts), tuned.predict(texts, batch_size=2)
    (alone,) = tuned.predict([texts[1]])
    assert [entry.label for entry in all_at_once] == [entry.label for entry in by_two]
    assert all_at_once[1].scores == pytest.approx(alone.scores, abs=1e-5)
    for entry in all_at_once:
        assert sum(entry.scores) == pytest.approx(1.0, abs=1e-5)
        best = entry.scores.index(max(entry.scores))
        assert (entry.label, entry.value) == (("bad", "fair", "good")[best], None)
    assert tuned.predict([]) == []


def test_predict_closes_texts(tmp_path: Path) -> None:
    """A text without a final mark is given the ending that the training texts had."""
    backbone = _backbone("llama", lm_head=False)
    spec = session(outputs=2, causal=True)
    network = _disturbed(SideNetwork.from_spec(spec))
    for ending, same in ((" .", True), ("", False)):
        config = SideConfig(spec=spec, max_length=8, ending=ending)
        save_side(tmp_path, network.state_bytes(), config)
        tuned = SideTuned.from_pretrained(backbone, tmp_path)
        open_text, closed = (entry.scores for entry in tuned.predict([" w5 w6 ", "w5 w6 ."]))
        assert (open_text == pytest.approx(closed, abs=1e-5)) is same
        save_side(tmp_path, network.state_bytes(), dataclasses.replace(config, pairs=True))
        tuned = SideTuned.from_pretrained(backbone, tmp_path)
        open_pair, closed_pair = (e.scores for e in tuned.predict([(" w7", "w5 "), ("w7", "w5 .")]))
        assert (open_pair == pytest.approx(closed_pair, abs=1e-5)) is same


def test_predict_values(tmp_path: Path) -> None:
    """A regression gives values without labels."""
    backbone = _backbone("gpt2", lm_head=False)
    spec = session("regression", 1)
    network = _disturbed(SideNetwork.from_spec(spec)).eval()
    save_side(tmp_path, network.state_bytes(), SideConfig(spec=spec, max_length=8))
    (entry,) = SideTuned.from_pretrained(backbone, tmp_path).predict(["w5 w6"])
    with torch.no_grad():
        value = network(collect(backbone.with_taps("all"), [[1, 5, 6]]), torch.tensor([3]))
    assert (entry.label, entry.scores) == (None, ())
    assert entry.value == pytest.approx(float(value), abs=1e-5)


def test_backbone_must_fit(tmp_path: Path) -> None:
    """Another backbone, another LM head and a missing directory are refused by name."""
    tuned = _generator(tmp_path, "llama")
    other = SideConfig(spec=session(width=4), max_length=4)
    with pytest.raises(ModelError, match=r"cannot read the side network in '.*none'"):
        SideTuned.from_pretrained(tuned.backbone, tmp_path / "none")
    with pytest.raises(ModelError, match="the LM head of tiny has SHA-256"):
        SideTuned.from_pretrained(_backbone("gpt2"), tmp_path)
    wide = other.spec.to_map()
    wide["model"]["hidden_size"] = 32
    save_side(tmp_path, b"", dataclasses.replace(other, spec=SessionSpec.from_map(wide)))
    with pytest.raises(
        ModelError, match=r"has hidden size 16, but the side network was trained with tiny, .* 32"
    ):
        SideTuned.from_pretrained(tuned.backbone, tmp_path)
    with pytest.raises(ModelError, match="use generate"):
        tuned.predict(["w4"])
    with pytest.raises(ConfigError, match="temperature"):
        tuned.generate("w4", 1, temperature=-1.0)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        tuned.generate("w4", 0)
    for seed in (-1, 1 << 63):
        with pytest.raises(ConfigError, match="seed"):
            tuned.generate("w4", 1, seed=seed)


def test_prompts_that_do_not_fit(tmp_path: Path) -> None:
    """A prompt may fill every position; a longer one and an empty one are refused, nothing is cut."""
    tuned = _generator(tmp_path, "llama")
    settings: Any = tuned.backbone.model.generation_config
    settings.eos_token_id = None
    assert len(tuned.generate(" ".join(["w5"] * 31), 3).split()) == 1  # with the start token 32 positions
    with pytest.raises(ModelError, match=r"more than 32 tokens, the most that tiny takes; shorten it"):
        tuned.generate(" ".join(["w5"] * 32), 3)
    for empty in ("", " \n"):
        with pytest.raises(ModelError, match="the prompt is empty"):
            tuned.generate(empty, 3)
    with pytest.raises(ModelError, match="not valid Unicode"):
        tuned.generate("w5 \ud800", 3)


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    """Weights that training blew up are named as the cause; finite ones are not blamed."""
    tuned = _generator(tmp_path, "llama")
    with pytest.raises(ModelError, match="an output of the side network is not finite"):
        tuned.check_finite(torch.tensor([float("inf")]))
    backbone = _backbone("llama", lm_head=False)
    for spec in (session(), session("regression", 1)):
        network = SideNetwork.from_spec(spec)
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))
        save_side(tmp_path / spec.task, network.state_bytes(), SideConfig(spec=spec, max_length=8))
        broken = SideTuned.from_pretrained(backbone, tmp_path / spec.task)
        with pytest.raises(ModelError, match=r"weights are not finite; .* too large a learning rate"):
            broken.predict(["w5"])
    with torch.no_grad():
        for parameter in tuned.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="weights are not finite"):
        tuned.generate("w5", 3)


def test_empty_texts(tmp_path: Path) -> None:
    """An empty text, and a pair with an empty half, are refused by their number."""
    backbone, spec = _backbone("llama", lm_head=False), session()
    config = SideConfig(spec=spec, max_length=8)
    save_side(tmp_path, SideNetwork.from_spec(spec).state_bytes(), config)
    tuned = SideTuned.from_pretrained(backbone, tmp_path)
    bad: list[str | tuple[str, str]] = ["", " ", ("w5", ""), ("", "w5")]
    for text in bad:
        with pytest.raises(ModelError, match="text 2 is empty; leave it out"):
            tuned.predict(["w5", text])


def test_damaged_weights(tmp_path: Path) -> None:
    """Weights of another run, and what is no safetensors, are refused with the files' names."""
    backbone, spec = _backbone("llama", lm_head=False), session()
    config = SideConfig(spec=spec, max_length=8)
    save_side(tmp_path, SideNetwork.from_spec(spec).state_bytes(), config)
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(_disturbed(SideNetwork.from_spec(spec)).state_bytes())
    with pytest.raises(ModelError, match=rf"{WEIGHTS_FILE} and .*{CONFIG_FILE} do not belong together"):
        SideTuned.from_pretrained(backbone, tmp_path)
    save_side(tmp_path, b"no safetensors", config)
    with pytest.raises(ModelError, match=rf"{WEIGHTS_FILE}: .* cannot be read: .*; copy the whole directory"):
        SideTuned.from_pretrained(backbone, tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot read the side network in"):
        SideTuned.from_pretrained(backbone, tmp_path)
