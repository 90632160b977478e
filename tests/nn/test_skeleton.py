"""Tests of models without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm.errors import ModelError
from mobillm.nn.checkpoint import Checkpoint
from mobillm.nn.layers import find_parts
from mobillm.nn.skeleton import build_skeleton, find_names, layer_prefixes, load_rest, name_of
from tests.nn.tiny import tiny_model, tiny_tokenizer


def saved(folder: Path) -> Path:
    """Save a tiny model with its head and tokenizer and return the directory."""
    model: Any = tiny_model("llama")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lm_head", [True, False])
def test_built_without_weights_and_loaded(lm_head: bool, tmp_path: Path) -> None:
    """All parameters are on the meta device, found under their names in the file, and loaded as asked."""
    directory = saved(tmp_path)
    model, tokenizer = build_skeleton(directory, torch.bfloat16, lm_head)
    assert all(p.is_meta for p in model.parameters())
    assert tokenizer("w5")["input_ids"]
    checkpoint = Checkpoint(directory)
    names = find_names(model, checkpoint)
    assert set(names) == {name for name, _ in model.named_parameters()}
    prefix = "model." if lm_head else ""
    assert layer_prefixes(model, find_parts(model)) == [f"{prefix}layers.{n}" for n in range(3)]
    embedding = model.get_submodule(f"{prefix}embed_tokens")
    assert name_of(model, embedding) == f"{prefix}embed_tokens"
    kept = names.pop(f"{prefix}norm.weight")
    assert kept == "model.norm.weight"
    load_rest(model, names, checkpoint)
    expected = tiny_model("llama", lm_head).bfloat16().state_dict()
    for name, parameter in model.named_parameters():
        assert parameter.is_meta == (name == f"{prefix}norm.weight")
        if not parameter.is_meta and lm_head:
            assert torch.equal(parameter, expected[name])


def test_no_model(tmp_path: Path) -> None:
    """A directory without a model is refused by name."""
    with pytest.raises(ModelError, match=r"cannot load the model .*give a directory that holds one"):
        build_skeleton(tmp_path, "auto", False)
