"""GGUF files as model directories."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from mobillm.errors import ModelError
from mobillm.nn.gguf import dequantized_directory
from mobillm.nn.models import resolve_model


def test_real_file_is_dequantized_once() -> None:
    """SmolLM2's directory holds bf16 weights of the known shape, and is not made again."""
    path = Path(resolve_model("smollm2"))
    directory = dequantized_directory(path)
    weights = directory / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert dequantized_directory(path) == directory
    assert weights.stat().st_mtime_ns == made
    with safetensors.safe_open(str(weights), "pt") as file:
        embedding = file.get_slice("model.embed_tokens.weight")
        assert list(embedding.get_shape()) == [49152, 576]
        assert embedding[:2].dtype == torch.bfloat16


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file and one that is no GGUF are refused in one sentence, and leave nothing behind."""
    monkeypatch.setenv("MOBILLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="there is no GGUF file"):
        dequantized_directory(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("this is no model")
    with pytest.raises(ModelError, match="cannot read the GGUF file"):
        dequantized_directory(tmp_path / "text.gguf")
    assert list((tmp_path / "cache").iterdir()) == []
