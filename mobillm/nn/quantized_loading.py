"""Load a model with its linear layers quantized, one after the other: never is one whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .checkpoint import Checkpoint
from .layers import find_parts
from .quantized import quantized_linear, weight_of
from .skeleton import build_skeleton, find_names, layer_prefixes, load_rest
from .stored import StoredLayers
from .workspace import Workspace

__all__ = ["Quantized", "load_quantized"]


class Quantized(NamedTuple):
    """A model with quantized layers.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        stored: its layers as they were.
        loaded: layers that are in memory, the lowest ones.

    """

    model: nn.Module
    tokenizer: Any
    stored: StoredLayers
    loaded: int


def load_quantized(
    directory: Path, bits: int, *, lm_head: bool, workspace: Workspace, depth: Callable[[int], int]
) -> Quantized:
    """Load a model and its tokenizer; what is no linear layer of a layer is held in bf16.

    Args:
        directory: of the model, stored as safetensors.
        bits: of the weights, 8 or 4.
        lm_head: whether the LM head is loaded too.
        workspace: for weights that are expanded.
        depth: gives, of the number of layers, how many of the lowest ones are loaded.

    Raises:
        ConfigError: this torch cannot compute with so many bits.
        ModelError: the model cannot be used, or is not stored under the names that its modules have.

    """
    checkpoint = Checkpoint(directory)
    model, tokenizer = build_skeleton(directory, torch.bfloat16, lm_head)
    names = find_names(model, checkpoint)
    parts = find_parts(model)
    stored = StoredLayers.find(model, parts, names, checkpoint)
    wanted = depth(len(parts.layers))
    for number, (prefix, layer) in enumerate(zip(layer_prefixes(model, parts), parts.layers, strict=True)):
        loaded = number < wanted
        for path, module in list(layer.named_modules()):
            own = {name: f"{prefix}.{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
            if "weight" in own and weight_of(module, module.get_parameter("weight")) is not None:
                found = {
                    name: _read(module.get_parameter(name), names.pop(full), checkpoint, loaded)
                    for name, full in own.items()
                }
                weight = weight_of(module, found["weight"])
                assert weight is not None
                place, _, leaf = path.rpartition(".")
                new = quantized_linear(weight, found.get("bias"), bits, workspace)
                setattr(layer.get_submodule(place), leaf, new)
        if not loaded:
            for name, _ in layer.named_parameters():
                names.pop(f"{prefix}.{name}")
    load_rest(model, names, checkpoint)
    return Quantized(model, tokenizer, stored, wanted)


def _read(parameter: nn.Parameter, name: str, checkpoint: Checkpoint, loaded: bool) -> torch.Tensor:
    """Read a tensor in fp32, so that nothing is rounded twice; one that is not wanted stays on meta."""
    found = torch.empty(parameter.shape, device="cpu" if loaded else "meta")
    if loaded:
        checkpoint.read(name, found)
    return found
