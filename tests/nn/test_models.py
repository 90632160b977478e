"""Tests of model names, and of the two real models that need no hub."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm.errors import ModelError
from mobillm.nn import models
from mobillm.nn.backbone import Backbone
from mobillm.nn.heads import FrozenHead, export_lm_head
from mobillm.nn.models import local_directory, resolve_model
from tests.nn.tiny import collect


def test_names(tmp_path: Path) -> None:
    """Directories, GGUF files and hub names pass; what looks like a missing file is refused."""
    file = tmp_path / "m.gguf"
    file.touch()
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model(str(file)) == str(file)
    assert resolve_model("facebook/opt-125m") == "facebook/opt-125m"
    assert resolve_model("gpt2") == "gpt2"
    for name in ("./none", str(tmp_path / "none"), "none.gguf", ""):
        with pytest.raises(ModelError, match=r"there is no model at .*smollm2, stories15m"):
            resolve_model(name)
    (tmp_path / "m.bin").touch()
    with pytest.raises(ModelError, match=r"is no \.gguf file"):
        resolve_model(str(tmp_path / "m.bin"))


def test_local_directory(tmp_path: Path) -> None:
    """A directory is taken as it is; a hub name needs the hub, unless it is here."""
    assert local_directory(str(tmp_path), local_files_only=True) == tmp_path
    with pytest.raises(ModelError, match="cannot load the model 'nobody/nothing'"):
        local_directory("nobody/nothing", local_files_only=True)


def test_failed_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the error says what to do, and the cache stays empty."""

    def offline(*_args: Any, **_kwargs: Any) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="first\nERROR: no route to host\n")

    monkeypatch.setenv("MOBILLM_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", offline)
    for name in models.SHORT_NAMES:
        with pytest.raises(
            ModelError, match=f"cannot fetch the model '{name}': ERROR: no route to host; check"
        ):
            resolve_model(name)
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another SHA-256 is refused, and nothing is installed from it."""
    monkeypatch.setenv("MOBILLM_CACHE", str(tmp_path))
    (tmp_path / "stories15M.bin").write_bytes(b"x")
    (tmp_path / "tokenizer_legacy.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"stories15M.bin of the model 'stories15m' has SHA-256"):
        resolve_model("stories15m")
    assert len(list(tmp_path.iterdir())) == 2


def test_stories_tells_a_story() -> None:
    """The converted model keeps full precision, its tokenizer and its wits."""
    backbone = Backbone.from_pretrained(resolve_model("stories15m"), lm_head=True, name="stories15m")
    assert backbone.dtype == torch.float32
    assert backbone.model_spec().to_map() == {
        "name": "stories15m",
        "hidden_size": 288,
        "layers": 6,
        "taps": [4, 6],
    }
    (tokens,) = backbone.tokenize(["Once upon a time, there was a café."], 64)
    assert tokens[0] == 1
    assert backbone.tokenizer.decode(tokens[1:]) == "Once upon a time, there was a café."
    head = FrozenHead.from_bytes(export_lm_head(backbone.model))
    (tokens,) = backbone.tokenize(["Once upon a time"], 64)
    cache, new = None, tokens
    for _ in range(12):
        taps: dict[int, Tensor] = {}
        cache = backbone.extend(new, taps.__setitem__, cache)
        new = [int(head.logits(head.normalise(taps[1][-1])).argmax())]
        tokens = [*tokens, *new]
    assert "there was a little girl named Lily" in backbone.tokenizer.decode(tokens)


def test_smollm2_loads_and_taps() -> None:
    """SmolLM2 comes dequantized to bf16, with the attention sink in its first token."""
    name = resolve_model("smollm2")
    assert name == resolve_model("smollm2")
    backbone = Backbone.from_pretrained(name, name="smollm2")
    spec = backbone.model_spec()
    assert (spec.hidden_size, spec.layers) == (576, 30)
    assert spec.taps == (4, 8, 12, 16, 20, 24, 28, 30)
    assert (backbone.dtype, backbone.causal, backbone.positions) == (torch.bfloat16, True, 8192)
    taps = collect(backbone, backbone.tokenize(["The capital of France is Paris.", "Good"], 16))
    assert {tuple(tap.shape) for tap in taps} == {(10, 576)}
    assert float(taps[3][0].abs().max()) > 10_000 > float(taps[3][1:8].abs().max())
