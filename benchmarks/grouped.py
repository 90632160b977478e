"""Is it faster to train the side networks of many sessions together than one after the other?

``python -m benchmarks.grouped --json grouped.json``. 16 sessions of one shape, one thread: their weights are
stacked, their batches padded to one grid, and one vectorised forward, backward and AdamW step (vmap)
takes the place of 16. Dropout masks are drawn as each session alone would draw them, so that both ways train
the same; that is checked. The time for stacking weights is left out: a server would keep them stacked.

Keys: ``<shape>.grouped_speedup``, ``.solo_seconds`` and ``.grouped_seconds`` of one step of all sessions,
``.difference`` (largest, of the losses), with shapes ``<samples>x<width>x<taps>``.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import write_json
from mobillm.device.packing import pack_batch
from mobillm.nn.dropout import Dropout
from mobillm.server.batch import Batch
from mobillm.server.trainer import Trainer
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

SESSIONS = 16
HIDDEN = 576  # as SmolLM2-135M
REPEATS = 5
SHAPES = ((2, 32, 4), (4, 32, 4), (8, 32, 4), (4, 96, 8), (8, 96, 8), (32, 96, 8))  # samples, width, taps
DROPOUT = 0.1


def make(samples: int, width: int, taps: int) -> tuple[list[Trainer], list[Batch]]:
    """Return the sessions' trainers and a batch of each; sentences have 8 to 16 tokens."""
    trainers, batches = [], []
    for seed in range(SESSIONS):
        spec = SessionSpec(
            task="classification",
            outputs=2,
            model=ModelSpec(
                name="grouped", hidden_size=HIDDEN, layers=32, taps=tuple(range(32 - taps + 1, 33))
            ),
            side=SideSpec(width=width, heads=4, dropout=DROPOUT),
            optimizer=OptimizerSpec(schedule="constant", ema=0.0),
            seed=seed,
        )
        rng = np.random.default_rng(seed)
        lengths = rng.integers(8, 17, samples).tolist()
        hidden = [rng.standard_normal((sum(lengths), HIDDEN)).astype(np.float32) for _ in range(taps)]
        tensors = pack_batch(spec, hidden, lengths, rng.integers(0, 2, samples))
        headers = {number: packed.header for number, packed in tensors.items()}
        payloads: dict[int, bytes | memoryview] = {n: packed.payload for n, packed in tensors.items()}
        trainers.append(Trainer(spec, {}))
        batches.append(Batch(1, samples, False, headers, payloads))
    return trainers, batches


class _Grid:
    """The layout of a padded batch: every sample has the same number of places."""

    full = True

    def __init__(self, samples: int, longest: int, ends: Tensor) -> None:
        self._shape = (samples, longest)
        self._ends = ends

    def pad(self, values: Tensor) -> Tensor:
        return values.reshape(*self._shape, *values.shape[1:])

    def unpad(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *values.shape[2:])

    def pool(self, values: Tensor, how: str) -> Tensor:
        return values.index_select(0, self._ends - 1)


class _Drawn:
    """Dropout masks that were drawn before."""

    def __init__(self, masks: Iterator[Tensor]) -> None:
        self._masks = masks

    def keep(self, like: Tensor, probability: float) -> Tensor:
        return next(self._masks).reshape(like.shape)


class Group:
    """The stacked weights of sessions of one shape, and one step for all of them."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self._trainers = trainers
        self._net = copy.deepcopy(trainers[0].network).train()
        networks = [dict(trainer.network.named_parameters()) for trainer in trainers]
        self._weights = {
            name: torch.stack([network[name].detach() for network in networks]).requires_grad_()
            for name in networks[0]
        }
        self._first = [torch.zeros_like(value) for value in self._weights.values()]
        self._second = [torch.zeros_like(value) for value in self._weights.values()]
        self._steps = 0

    def _masks(self, lengths: Sequence[Tensor], places: int, taps: int, width: int) -> list[Tensor]:
        """Draw what each session alone would draw, in its order, and spread it over the grid."""
        samples = len(lengths[0])
        flat = [(torch.arange(places) < one[:, None]).flatten().nonzero().squeeze(1) for one in lengths]
        masks = [
            torch.zeros(SESSIONS, samples * places, size, dtype=torch.bool)
            for _ in range(taps)
            for size in (HIDDEN, width, width)
        ]
        pooled = torch.zeros(SESSIONS, samples, HIDDEN, dtype=torch.bool)
        for index, trainer in enumerate(self._trainers):
            trainer.network.begin_step(trainer.steps)
            source = trainer.network._source
            for mask in masks:
                like = torch.empty(len(flat[index]), mask.shape[2])
                mask[index].index_copy_(0, flat[index], source.keep(like, 1 - DROPOUT))
            pooled[index] = source.keep(torch.empty(samples, HIDDEN), 1 - DROPOUT)
        return [*masks, pooled]

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one step of every session; return the losses before it."""
        loaded = [t._tensors([batch]) for t, batch in zip(self._trainers, batches, strict=True)]
        lengths = [one[1] for one in loaded]
        samples, places = len(lengths[0]), max(int(one.max()) for one in lengths)
        spec = self._trainers[0].spec
        grids = [torch.zeros(SESSIONS, samples * places, HIDDEN) for _ in spec.model.taps]
        for index, (taps, own, _) in enumerate(loaded):
            flat = (torch.arange(places) < own[:, None]).flatten().nonzero().squeeze(1)
            for grid, tap in zip(grids, taps, strict=True):
                grid[index].index_copy_(0, flat, tap)
        ends = torch.stack([torch.arange(samples) * places + own for own in lengths])
        masks = self._masks(lengths, places, len(spec.model.taps), spec.side.width)

        def loss(weights: dict[str, Tensor], taps: Any, ends: Tensor, targets: Tensor, masks: Any) -> Tensor:
            source: Any = _Drawn(iter(masks))
            for module in self._net.modules():
                if isinstance(module, Dropout):
                    module._source = source
            layout = _Grid(samples, places, ends)
            arguments = (taps, layout, targets)
            found: Tensor = torch.func.functional_call(
                _Loss(self._net), {f"net.{name}": value for name, value in weights.items()}, arguments
            )
            return found

        with sdpa_kernel(SDPBackend.MATH):
            targets = torch.stack([one[2] for one in loaded])
            losses = torch.func.vmap(loss)(self._weights, grids, ends, targets, masks)
            gradients = torch.autograd.grad(losses.sum(), list(self._weights.values()))
        self._update(list(gradients))
        return losses.detach()

    @torch.no_grad()
    def _update(self, gradients: list[Tensor]) -> None:
        """Clip and take an AdamW step of each session."""
        self._steps += 1
        spec = self._trainers[0].spec.optimizer
        norm = sum((one.flatten(1).square().sum(1) for one in gradients), torch.zeros(SESSIONS)).sqrt()
        scale = (spec.clip / (norm + 1e-6)).clamp(max=1.0)
        gradients = [one * scale.view(-1, *[1] * (one.dim() - 1)) for one in gradients]
        values = list(self._weights.values())
        torch._foreach_lerp_(self._first, gradients, 0.1)
        torch._foreach_mul_(self._second, 0.999)
        torch._foreach_addcmul_(self._second, gradients, gradients, 0.001)
        below = torch._foreach_sqrt(self._second)
        torch._foreach_div_(below, (1 - 0.999**self._steps) ** 0.5)
        torch._foreach_add_(below, 1e-8)
        matrices = [value for value in values if value.dim() >= 3]  # one dimension is the sessions'
        torch._foreach_mul_(matrices, 1 - spec.lr * spec.weight_decay)
        torch._foreach_addcdiv_(values, self._first, below, -spec.lr / (1 - 0.9**self._steps))


class _Loss(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, taps: list[Tensor], layout: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.net._pooled(taps, layout), targets)


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of one step of all sessions."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure(samples: int, width: int, taps: int) -> dict[str, float]:
    """Compare both ways for one shape: first that they train the same, then their times."""
    trainers, batches = make(samples, width, taps)
    group = Group(trainers)
    difference = 0.0
    for _ in range(3):
        together = group.step(batches)
        alone = [trainer.step(batch) for trainer, batch in zip(trainers, batches, strict=True)]
        difference = max(difference, float((together - torch.tensor(alone)).abs().max()))
    solo = seconds(lambda: [t.step(batch) for t, batch in zip(trainers, batches, strict=True)])
    grouped = seconds(lambda: group.step(batches))
    return {
        "grouped_speedup": round(solo / grouped, 2),
        "solo_seconds": round(solo, 4),
        "grouped_seconds": round(grouped, 4),
        "difference": difference,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.grouped", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for shape in SHAPES:
        figures["x".join(map(str, shape))] = measure(*shape)
        Console(stderr=True).print(shape, figures["x".join(map(str, shape))])
    write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
