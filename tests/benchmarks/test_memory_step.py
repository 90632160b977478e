"""Tests of the methods whose memory is compared, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, memory_step, shapes
from benchmarks.harness import peak_bytes

TINY: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 64},
    "llama": {"model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 1},
}
COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}


# PEFT 0.21 knows only the old names of what transformers 5.23 calls activation checkpointing.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TINY)
def test_what_is_trained(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each method trains the weights it is named after, and takes its step."""
    monkeypatch.setenv("MOBILLM_CACHE", str(tmp_path))
    monkeypatch.setitem(shapes.SHAPES, name, ("float32", TINY[name] | COMMON))
    shapes._write(name, tmp_path / f"random-{name}")
    step = memory_step.Job.step
    trained: list[set[str]] = []

    def watched(job: memory_step.Job, model: Any) -> None:
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        step(job, model)
        trained.append(
            {key for key, parameter in model.named_parameters() if not parameter.equal(before[key])}
        )

    monkeypatch.setattr(memory_step.Job, "step", watched)
    for method in ("inference", "lst", "full", "lora", "lora_checkpointing", "bitfit"):
        memory_step.METHODS[method](memory_step.Job(name, 4, 8, []))
    full, lora, checkpointed, bitfit = trained
    assert any(key.endswith("fc2.weight" if name == "opt" else "down_proj.weight") for key in full)
    assert lora == checkpointed
    assert len([key for key in lora if "lora_B" in key]) == 2 * 2  # q and v of two layers
    assert all("lora_" in key or "score" in key for key in lora)
    ending = "bias" if name == "opt" else "norm.weight"
    assert bitfit
    assert all(key.endswith(ending) or key.startswith("score") for key in bitfit)


def test_texts_have_the_wanted_length() -> None:
    """A text of a number of tokens has that number, with the start token."""
    tokenizer = shapes._tokenizer(60)
    ids = tokenizer(shapes.words(9, 0, 60))["input_ids"]
    assert len(ids) == 8
    assert min(ids) >= 3


def test_peak() -> None:
    """The peak is at least what the interpreter takes."""
    assert peak_bytes() > 10 << 20


def test_every_method_can_be_asked_for() -> None:
    """The two programs name the same methods; ours are compared with all others."""
    assert set(memory.METHODS) == set(memory_step.METHODS)
    found = memory.ratios({"lora": 300, "mobillm": 200, "mobillm_int8": 100})
    assert found["ratio.lora_over_mobillm_int8"] == 3.0
    assert found["ratio.mobillm_over_mobillm_int8"] == 2.0
