"""Tests of LoRA beside a frozen linear layer; PEFT is the oracle."""

from __future__ import annotations

import copy
from typing import Any, cast

import peft
import torch
from torch import nn

from mobillm.nn.adapter import SCALE
from mobillm.nn.lora import LoRALinear, products


def test_it_starts_as_the_frozen_layer() -> None:
    """Nothing is added at first; only the two matrices are trained, from the first step on."""
    frozen = nn.Linear(6, 5).requires_grad_(False)
    layer = LoRALinear(frozen, 3)
    values = torch.randn(7, 6)
    assert torch.equal(layer(values), frozen(values))
    layer(values).sum().backward()
    assert layer.lora_B.grad is not None
    assert layer.lora_B.grad.abs().sum() > 0
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_it_computes_what_peft_computes() -> None:
    """The same matrices give the same output and gradients, and A is drawn from the same range."""
    model = nn.Sequential(nn.Linear(6, 5))
    config = peft.LoraConfig(r=3, lora_alpha=int(3 * SCALE), target_modules=["0"])
    wrapped: Any = peft.get_peft_model(cast(Any, model), config)
    theirs = wrapped.base_model.model[0]
    layer = LoRALinear(theirs.base_layer, 3)
    largest = [
        float(matrix.detach().abs().max()) for matrix in (layer.lora_A, theirs.lora_A["default"].weight)
    ]
    assert all(0.2 < value <= 6**-0.5 for value in largest)
    with torch.no_grad():
        layer.lora_B.normal_()
        theirs.lora_A["default"].weight.copy_(layer.lora_A)
        theirs.lora_B["default"].weight.copy_(layer.lora_B)
    values = torch.randn(3, 7, 6)
    both = [values.clone().requires_grad_() for _ in range(2)]
    outs = [module(x) for module, x in zip((layer, theirs), both, strict=True)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(both[0].grad, both[1].grad)
    torch.testing.assert_close(layer.lora_A.grad, theirs.lora_A["default"].weight.grad)
    torch.testing.assert_close(layer.lora_B.grad, theirs.lora_B["default"].weight.grad)


def test_several_layers_of_the_same_values() -> None:
    """Together they compute what each computes alone, forward and backward."""
    layers = [LoRALinear(nn.Linear(6, width).requires_grad_(False), 3) for width in (5, 8, 2)]
    for layer in layers:
        nn.init.normal_(layer.lora_B)
    values = torch.randn(2, 7, 6)
    found = []
    for together in (False, True):
        inputs = values.clone().requires_grad_()
        outs = products(inputs, layers) if together else [layer(inputs) for layer in layers]
        sum(
            ((number + 1) * out.square().sum() for number, out in enumerate(outs)), torch.zeros(())
        ).backward()
        trained = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
        found.append([*outs, inputs.grad, *(p.grad for p in trained)])
        for parameter in trained:
            parameter.grad = None
    for alone, joined in zip(*found, strict=True):
        assert alone is not None
        torch.testing.assert_close(joined, alone)


def test_a_frozen_layer_of_another_type() -> None:
    """A bf16 layer under fp32 values computes what its weights compute in fp32, forward and backward."""
    frozen = nn.Linear(6, 5).bfloat16().requires_grad_(False)
    layer, wide = LoRALinear(frozen, 3), LoRALinear(copy.deepcopy(frozen).float(), 3)
    with torch.no_grad():
        layer.lora_B.normal_()
        wide.lora_A.copy_(layer.lora_A)
        wide.lora_B.copy_(layer.lora_B)
    values = torch.randn(7, 6)
    both = [values.clone().requires_grad_() for _ in range(2)]
    outs = [module(x) for module, x in zip((layer, wide), both, strict=True)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    assert both[0].grad is not None
    torch.testing.assert_close(both[0].grad, both[1].grad)
    torch.testing.assert_close(layer.lora_B.grad, wide.lora_B.grad)
    assert frozen.weight.dtype == torch.bfloat16


def test_types() -> None:
    """Computing is in the type of what comes in; the matrices and their gradients are fp32."""
    layer = LoRALinear(nn.Linear(6, 5).bfloat16().requires_grad_(False), 3)
    out = layer(torch.randn(7, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.lora_B.grad is not None
    assert layer.lora_B.grad.dtype == torch.float32
