"""Tests of the settings that a run has where nothing else is asked for."""

from __future__ import annotations

import dataclasses

import pytest

from mobillm.defaults import defaults_of
from mobillm.device.dataset import Example
from mobillm.device.finetune import _prepare
from mobillm.nn.backbone import Backbone
from mobillm.spec import OptimizerSpec, SideSpec
from tests.nn.tiny import tiny_model, tiny_tokenizer

DATA = [Example(f"w{number} w5", target=number % 2) for number in range(40)]


@pytest.mark.parametrize(("kind", "lr", "batches"), [("ladder", 5e-4, 2), ("tail", 1e-3, 3)])
def test_a_program_gets_what_the_command_gets(kind: str, lr: float, batches: int) -> None:
    """Steps and their size are those of the kind of side network, but for what is asked for."""
    taps = defaults_of(kind).taps
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=taps)
    spec = _prepare(backbone, DATA, {"side": SideSpec(kind=kind)}).spec
    assert (spec.optimizer, spec.batches, spec.epochs) == (OptimizerSpec(lr=lr), batches, 4)
    own = dataclasses.replace(spec.optimizer, lr=0.5)
    asked = _prepare(
        backbone, DATA, {"side": SideSpec(kind=kind), "optimizer": own, "batch_size": 5, "epochs": 1}
    )
    assert (asked.spec.optimizer, asked.spec.batches, asked.spec.epochs) == (own, 8, 1)
