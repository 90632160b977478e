"""Tests of the files of a PEFT adapter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from mobillm.nn.adapter import MODULES, adapter_json
from mobillm.nn.backbone import Backbone
from mobillm.spec import ARCHITECTURES
from tests.nn.tiny import tail_session, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_layer_has_lora(architecture: str) -> None:
    """The names are those of all linear layers inside a layer of the architecture, and of no others."""
    model: Any = tiny_model(architecture, lm_head=False)
    found = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert set(MODULES[architecture]) == found


def test_content() -> None:
    """It says which layers have LoRA, and that the head is saved with it."""
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1])
    content = json.loads(adapter_json(tail_session(backbone)[0]))
    assert content["layers_to_transform"] == [1, 2]
    assert (content["r"], content["lora_alpha"]) == (4, 8)
    assert content["modules_to_save"] == ["score"]
    assert content["base_model_name_or_path"] == "tiny"
    assert content["lora_dropout"] == 0.0
