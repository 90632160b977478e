"""Ladders computed together: the numbers of each alone, and nothing of one in another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mobillm.nn.grouped import Group, Item, can_group
from mobillm.nn.side import SideNetwork
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

WIDTH = 12
LENGTHS = ([3, 1, 5], [4], [2, 2, 2, 2])  # of three sessions; the last one's fill their grid


def make(task: str = "classification", seed: int = 0, **side: Any) -> SideNetwork:
    """Return a network whose weights are none of them zero."""
    spec = SessionSpec(
        task=task,
        outputs=1 if task == "regression" else 3,
        model=ModelSpec(name="x", hidden_size=WIDTH, layers=4, taps=(1, 2, 4)),
        side=SideSpec(**({"width": 6, "heads": 2, "dropout": 0.3} | side)),
        optimizer=OptimizerSpec(schedule="constant"),
        seed=seed,
    )
    network = SideNetwork.from_spec(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    network.begin_step(7 * seed)
    return network.train()


def batch(network: SideNetwork, lengths: list[int]) -> Item:
    """Return a batch of a network."""
    generator = torch.Generator().manual_seed(100 + network.spec.seed)
    taps = [3.0 * torch.randn(sum(lengths), WIDTH, generator=generator) for _ in network.spec.model.taps]
    targets = torch.randint(0, 3, (len(lengths),), generator=generator)
    if network.spec.task == "regression":
        targets = targets.float()
    return Item(network, taps, torch.tensor(lengths), targets)


def together(items: list[Item]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return the losses of all sessions, and the gradients of each by name."""
    named = [dict(item.network.named_parameters()) for item in items]
    wide = [name for name in named[0] if name.startswith("body.down.") and name.endswith("weight")]
    down = [torch.stack([one[name].detach() for name in wide]).requires_grad_() for one in named]
    rest = {
        name: torch.stack([one[name].detach() for one in named]).requires_grad_()
        for name in named[0]
        if name not in wide
    }
    losses = Group(items).losses(down, rest)
    found = torch.autograd.grad(losses.sum(), [*down, *rest.values()])
    gradients = []
    for index in range(len(items)):
        own = dict(zip(wide, found[index], strict=True))
        others = zip(rest, found[len(items) :], strict=True)
        gradients.append(own | {name: value[index] for name, value in others})
    return losses.detach(), gradients


@pytest.mark.parametrize(
    ("task", "side"),
    [
        ("classification", {}),
        ("classification", {"dropout": 0.0}),
        ("classification", {"causal": False, "pool": "mean"}),
        ("classification", {"causal": False, "pool": "first"}),
        ("regression", {"pool": "mean"}),
        ("regression", {"width": 8, "heads": 1}),
    ],
)
def test_as_alone(task: str, side: dict[str, Any]) -> None:
    """Losses and all gradients, with dropout's masks, are those of each network alone, but for rounding."""
    items = [batch(make(task, seed, **side), lengths) for seed, lengths in enumerate(LENGTHS)]
    losses, gradients = together(items)
    for index, item in enumerate(items):
        item.network.begin_step(7 * index)
        loss = item.network.loss(item.taps, item.lengths, item.targets)
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-5, atol=1e-6)
        named = dict(item.network.named_parameters())
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            torch.testing.assert_close(gradients[index][name], gradient, rtol=1e-4, atol=1e-5)


def test_nothing_enters_another_session() -> None:
    """Values that are not finite change neither losses nor gradients of the others, not by one bit."""
    items = [batch(make(seed=seed), lengths) for seed, lengths in enumerate(LENGTHS)]
    losses, gradients = together(items)
    for item in items:
        item.network.begin_step(7 * item.network.spec.seed)
    items[1].taps[0][2] = torch.inf
    spoilt, others = together(items)
    assert not bool(torch.isfinite(spoilt[1]))
    for index in (0, 2):
        assert spoilt[index] == losses[index]
        for name, value in gradients[index].items():
            assert torch.equal(others[index][name], value)


def test_which_networks_can() -> None:
    """Ladders with a trained head can; other kinds, and those with the backbone's head, cannot."""
    spec = make().spec
    assert can_group(spec)
    assert not can_group(dataclasses.replace(spec, side=SideSpec(kind="parallel")))
    language = dataclasses.replace(spec, task="causal-lm", head="0" * 64)
    assert not can_group(language)
