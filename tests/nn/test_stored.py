"""Tests of where layers lie in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mobillm.nn.checkpoint import Checkpoint
from mobillm.nn.layers import find_parts
from mobillm.nn.skeleton import build_skeleton, find_names
from mobillm.nn.stored import StoredLayers
from tests.nn.tiny import tiny_model, tiny_tokenizer


def test_a_layer_is_read_in_the_wanted_type(tmp_path: Path) -> None:
    """Each tensor comes under its name in the layer, and is the caller's."""
    model: Any = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    skeleton, _ = build_skeleton(tmp_path, torch.bfloat16, False)
    stored = StoredLayers.find(skeleton, find_parts(skeleton), find_names(skeleton, checkpoint), checkpoint)
    assert len(stored.names) == 3
    for dtype in (torch.float32, torch.bfloat16):
        for number, layer in enumerate(find_parts(model).layers):
            found = stored.read(number, dtype)
            assert found.keys() == dict(layer.named_parameters()).keys()
            for name, parameter in layer.named_parameters():
                assert torch.equal(found[name], parameter.detach().to(dtype))
    stored.read(0, torch.float32)["mlp.up_proj.weight"].zero_()
    assert bool(stored.read(0, torch.float32)["mlp.up_proj.weight"].any())
