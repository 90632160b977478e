"""Training of one side network: torch only, no network, no files.

Everything a step depends on is in the trainer's state (weights, averages, optimizer moments, the number
of steps) or in the spec (the seed of dropout and initialisation), so a restored trainer continues bit
for bit on the same machine.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..codec import unpack_torch
from ..errors import ConfigError, StorageError
from ..nn.heads import FrozenHead
from ..nn.side import SideNetwork
from ..nn.upper import FrozenLayers
from ..protocol import LENGTHS, TARGETS
from ..spec import OptimizerSpec, SessionSpec
from .batch import Batch
from .equalizers import Equalizers

__all__ = ["Trainer", "check_size", "learning_rate", "warm_up"]

FORMAT = "mobillm checkpoint 1"


def warm_up() -> None:
    """Load what torch imports with a process's first optimizer, about a second's worth of modules.

    Then, unless the program has done so, it leaves all that is loaded out of garbage collections: one of the
    300,000 objects that torch makes stops every thread for 0.14 s, as long as eight steps of a small session.
    """
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def check_size(spec: SessionSpec, limit: int) -> None:
    """Check a network's size before memory is taken for it.

    Args:
        spec: the session.
        limit: parameters that it may have.

    Raises:
        ConfigError: it would have more.

    """
    count = SideNetwork.count(spec)
    if count > limit:
        smaller = "a smaller side.width, fewer taps or fewer outputs" if spec.tail is None else "a higher tap"
        expected = f"at most {limit} on this server; choose {smaller}"
        raise ConfigError("the side network's number of parameters", count, expected)


def learning_rate(spec: OptimizerSpec, step: int, total: int | None) -> float:
    """Return the learning rate of a step.

    ``onecycle`` is the cosine policy of Smith and Topin (arXiv 1708.07120), equal to torch's OneCycleLR
    with its defaults: from lr/25 up, then down to lr/250000. Steps after ``total`` keep the last rate.

    Args:
        spec: optimizer and schedule.
        step: from 0.
        total: steps of the whole session; None when it is not known (``constant`` only).

    """
    if total is None:
        return spec.lr
    if spec.schedule == "onecycle":
        top = spec.warmup * total - 1  # the step with the highest rate, as torch counts
        if top > 0 and step <= top:
            return _cosine(spec.lr / 25, spec.lr, step / top)
        return _cosine(spec.lr, spec.lr / 250_000, min(1.0, (step - top) / (total - 1 - top)))
    rise = max(1, round(spec.warmup * total))
    if step < rise:
        return spec.lr * (step + 1) / rise
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * (1.0 - min(1.0, (step - rise) / max(1, total - rise)))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


class Trainer:
    """Train a session's side network, one batch at a time, in one thread.

    Args:
        spec: the session.
        blobs: the frozen weights that the spec names, by SHA-256 in hex.
        device: torch device, for example ``cpu`` or ``cuda``.
        equalizers: those of the session; None when no batch is equalized.

    Raises:
        ModelError: a blob does not fit the spec.

    Attributes:
        steps: optimizer steps taken.
        skipped: batches in a row whose loss was not finite, and which were not trained on.
        lr: learning rate of the last step.

    """

    def __init__(
        self,
        spec: SessionSpec,
        blobs: Mapping[str, bytes],
        device: str = "cpu",
        equalizers: Equalizers | None = None,
    ) -> None:
        self.spec = spec
        self._equalizers = equalizers or Equalizers()
        self.device = torch.device(device)
        self.steps = 0
        self.skipped = 0
        self.lr = 0.0
        head = None if spec.head is None else FrozenHead.from_bytes(blobs[spec.head])
        tail = None if spec.tail is None else FrozenLayers.from_blobs(spec.tail, blobs)
        self.network = SideNetwork.from_spec(spec, head, tail).to(self.device)
        self._total = None if spec.batches is None else spec.batches * spec.epochs
        self._parameters = self.network.trained()
        decay = [p for p in self._parameters.values() if p.ndim >= 2]
        plain = [p for p in self._parameters.values() if p.ndim < 2]
        groups = [
            {"params": params, "weight_decay": rate}
            for params, rate in ((decay, spec.optimizer.weight_decay), (plain, 0.0))
            if params
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=spec.optimizer.lr, fused=True)
        self._best: dict[str, Tensor] = {}  # weights of the best epoch so far, for early stopping
        self._average: dict[str, Tensor] = {}
        if spec.optimizer.ema:
            self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    def _tensors(self, parts: Sequence[Batch]) -> tuple[list[Tensor], Tensor, Tensor]:
        def load(tensor: int) -> Tensor:
            found = [self._load_part(part, tensor) for part in parts]
            return found[0] if len(found) == 1 else torch.cat(found)

        taps = [load(tensor) for tensor in range(len(self.spec.model.taps))]
        targets = load(TARGETS)
        if self.spec.task != "regression":
            targets = targets.long()
        return taps, load(LENGTHS).long().cpu(), targets

    def _load_part(self, part: Batch, tensor: int) -> Tensor:
        header = part.headers[tensor]
        equalizer = self._equalizers.of(tensor, header)
        value: Tensor = unpack_torch(header, part.payloads[tensor], self.device, equalizer)
        return value

    def step(self, *parts: Batch) -> float | None:
        """Take one optimizer step.

        Args:
            parts: samples of one batch; several where not all taps were packed alike.

        Returns:
            the batch's mean loss; None when it is not finite and nothing was changed but the count
            of steps.

        """
        taps, lengths, targets = self._tensors(parts)
        self.lr = learning_rate(self.spec.optimizer, self.steps, self._total)
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr
        self.network.train()
        self.network.begin_step(self.steps)
        loss = self.network.loss(taps, lengths, targets)
        value = float(loss.detach())
        self.steps += 1
        if not math.isfinite(value):
            self.skipped += 1
            return None
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.spec.optimizer.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            self.skipped += 1
            return None
        self._optimizer.step()
        self.skipped = 0
        self._update_average()
        return value

    def _update_average(self) -> None:
        # A short memory first: otherwise the average would remember the initial weights for long.
        decay = min(self.spec.optimizer.ema, (1 + self.steps) / (10 + self.steps))
        for name, average in self._average.items():
            average.lerp_(self._parameters[name].detach(), 1.0 - decay)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluate the weights that would be pulled now.

        Returns:
            ``count``, and if it is not 0 the mean ``loss`` and, where the task has one, ``accuracy``.

        """
        sums: dict[str, float] = {}
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._load_parameters(self._average)
        try:
            for batch in batches:
                for key, value in self.network.evaluate(*self._tensors([batch])).items():
                    sums[key] = sums.get(key, 0.0) + value
        finally:
            self._load_parameters(own)
        count = sums.get("count", 0.0)
        values = {"count": count}
        if count:
            values["loss"] = sums["loss"] / count
            if "correct" in sums:
                values["accuracy"] = sums["correct"] / count
        return values

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)

    def keep_best(self) -> None:
        """Remember the weights that would be pulled now as the best ones so far."""
        values = self._average or self._parameters
        self._best = {name: value.detach().clone() for name, value in values.items()}

    def use_best(self) -> None:
        """Go back to the weights that :meth:`keep_best` has remembered; nothing is changed without any."""
        self._load_parameters(self._best)
        for name, average in self._average.items():
            average.copy_(self._best.get(name, average))
        self._best = {}

    def weights(self) -> bytes:
        """Return the weights to be pulled (the averaged ones, if the spec asks for them)."""
        values = self._average or self._parameters
        tensors = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        return safetensors.torch.save(tensors)

    def save(self, progress: dict[str, Any]) -> bytes:
        """Return the whole state as a safetensors file.

        Args:
            progress: plain values to be stored with it.

        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            if name in self._average:
                tensors[f"average.{name}"] = self._average[name]
            if name in self._best:
                tensors[f"best.{name}"] = self._best[name]
            state = self._optimizer.state.get(parameter)
            if state:
                tensors[f"first.{name}"] = state["exp_avg"]
                tensors[f"second.{name}"] = state["exp_avg_sq"]
                tensors[f"count.{name}"] = state["step"]
        copies = {name: value.cpu().contiguous() for name, value in tensors.items()}
        plain = {"format": FORMAT, "steps": self.steps, "skipped": self.skipped, "progress": progress}
        # One key: safetensors writes several in any order, and equal states should give equal bytes.
        return safetensors.torch.save(copies, {"state": json.dumps(plain)})

    def load(self, data: bytes) -> dict[str, Any]:
        """Restore a state from :meth:`save` and return the values stored with it.

        Raises:
            StorageError: the file is not a checkpoint of this spec.

        """
        try:
            tensors = safetensors.torch.load(data)
            state = json.loads(_metadata(data)["state"])
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}, not {FORMAT!r}")
            for name, parameter in self._parameters.items():
                self._load_one(name, parameter, tensors)
            best = (name for name in self._parameters if f"best.{name}" in tensors)
            self._best = {name: tensors[f"best.{name}"].to(self.device) for name in best}
        except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as exc:
            raise StorageError(f"the checkpoint does not fit its session ({exc})") from exc
        self.steps = state["steps"]
        self.skipped = state["skipped"]
        progress: dict[str, Any] = state["progress"]
        return progress

    def _load_one(self, name: str, parameter: Tensor, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            parameter.copy_(tensors[f"weight.{name}"])
            if name in self._average:
                self._average[name].copy_(tensors[f"average.{name}"])
        if f"first.{name}" in tensors:
            self._optimizer.state[parameter] = {
                "step": tensors[f"count.{name}"].to(self.device),
                "exp_avg": tensors[f"first.{name}"].to(self.device),
                "exp_avg_sq": tensors[f"second.{name}"].to(self.device),
            }


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found: dict[str, str] = header["__metadata__"]
    return found
