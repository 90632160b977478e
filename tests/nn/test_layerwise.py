"""Tests of running a model's layers one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mobillm.nn.layers import find_parts
from mobillm.nn.layerwise import Layerwise, NotLayerwiseError
from tests.nn.tiny import DECODERS, ENCODERS, tiny_model

INPUTS = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), "use_cache": False}


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_two_batches_in_turn(architecture: str) -> None:
    """Batches that take turns have the hidden states of batches that run alone, and the model is whole."""
    model: Any = tiny_model(architecture)
    parts = find_parts(model)
    other = INPUTS | {"input_ids": torch.tensor([[11, 12, 13, 14]])}
    with torch.inference_mode():
        expected = [parts.base(**inputs, output_hidden_states=True) for inputs in (INPUTS, other)]
        layerwise = Layerwise(parts)
        runs = [layerwise.begin(dict(inputs), 3) for inputs in (INPUTS, other)]
        for layer in range(2):
            for run, whole in zip(runs, expected, strict=True):
                assert torch.equal(run.hidden, whole.hidden_states[layer])
                layerwise.advance(run, layer)
        for run, whole in zip(runs, expected, strict=True):
            assert torch.equal(run.hidden, whole.hidden_states[2])
    assert not any("StandIn" in type(module).__name__ for module in model.modules())


class Tuples(torch.nn.Module):
    """A layer that returns a tuple, as those of older models do."""

    def __init__(self, layer: torch.nn.Module, size: int) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the layer and return its output first."""
        return (self.layer(*arguments, **named),) * self.size


def _unpacking(model: Any, size: int) -> Any:
    """Make a model's layers return tuples, of which the model takes the first and uses the last."""
    base = model.base_model
    for number in range(3):
        base.layers[number] = Tuples(base.layers[number], size)

    def forward(input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden, last = base.embed_tokens(input_ids), 1.0
        positions = torch.arange(input_ids.shape[1])[None]
        rotary = base.rotary_emb(hidden, positions)
        for layer in base.layers:
            outputs = layer(hidden, position_embeddings=rotary)
            hidden, last = outputs[0], outputs[size - 1]
        return hidden, last

    base.forward = forward
    return model


def test_layers_that_return_tuples() -> None:
    """Hidden states are the first of a tuple."""
    model = _unpacking(tiny_model("llama", lm_head=False), 1)
    layerwise = Layerwise(find_parts(model))
    with torch.inference_mode():
        expected = model(**INPUTS)[0]
        for _ in range(2):
            run = layerwise.begin(dict(INPUTS), 3)
            for layer in range(3):
                layerwise.advance(run, layer)
            assert torch.equal(run.hidden, expected)


def test_layers_that_return_more() -> None:
    """A model that uses more of a layer than its hidden states cannot be run layer by layer."""
    model: Any = _unpacking(tiny_model("llama", lm_head=False), 2)
    before = list(model.layers)
    with pytest.raises(NotLayerwiseError):
        Layerwise(find_parts(model)).begin(dict(INPUTS), 3)
    assert list(model.layers) == before


def test_one_layer() -> None:
    """Of a model that is tapped after its first layer only that one is called."""
    layerwise = Layerwise(find_parts(tiny_model("llama")))
    with torch.inference_mode():
        assert len(layerwise.begin(dict(INPUTS), 1).calls) == 1
        assert len(layerwise.begin(dict(INPUTS), 3).calls) == 3
