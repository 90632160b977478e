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
from ..nn.upper import FrozenLayers, held_type
from ..protocol import LENGTHS, TARGETS
from ..spec import OptimizerSpec, SessionSpec
from .batch import Batch
from .equalizers import Equalizers
from .upload import Upload
from .weights import Weights

__all__ = ["Trainer", "applied_in", "check_size", "learning_rate", "warm_up"]

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
        self._upload = Upload(self.device)
        if self.device.type == "cuda":
            # Products of fp32 matrices are made of TF32 ones, which have 10 bits of fraction as fp16 has.
            torch.set_float32_matmul_precision("high")
        self.steps = 0
        self.skipped = 0
        self.lr = 0.0
        head = None if spec.head is None else FrozenHead.from_bytes(blobs[spec.head])
        tail = None
        if spec.tail is not None:
            tail = FrozenLayers.from_blobs(spec.tail, blobs).to(held_type(spec, self.device.type))
        self.network = SideNetwork.from_spec(spec, head, tail).to(self.device)
        self._total = None if spec.batches is None else spec.batches * spec.epochs
        self.trained = Weights(self.network.trained(), spec.optimizer)
        self._best: Tensor | None = None  # weights of the best epoch so far, for early stopping

    def unpack(self, parts: Sequence[Batch]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return a batch's taps, lengths and targets, as the network takes them."""
        numbers = [*range(len(self.spec.model.taps)), TARGETS]
        *taps, targets = map(_joined, zip(*(self._unpack_part(part, numbers) for part in parts), strict=True))
        if self.spec.task != "regression":
            targets = targets.long()
        lengths = _joined([unpack_torch(part.headers[LENGTHS], part.payloads[LENGTHS]) for part in parts])
        return taps, lengths.long(), targets

    def _unpack_part(self, part: Batch, numbers: Sequence[int]) -> list[Tensor]:
        sent = self._upload.send([part.payloads[number] for number in numbers])
        headers = [part.headers[number] for number in numbers]
        return [
            unpack_torch(header, octets, self.device, self._equalizers.of(number, header))
            for number, header, octets in zip(numbers, headers, sent, strict=True)
        ]

    def step(self, *parts: Batch) -> float | None:
        """Take one optimizer step.

        Args:
            parts: samples of one batch; several where not all taps were packed alike.

        Returns:
            the batch's mean loss; None when it is not finite and nothing was changed but the count
            of steps.

        """
        taps, lengths, targets = self.unpack(parts)
        self.network.train()
        self.network.begin_step(self.steps)
        loss = self.network.loss(taps, lengths, targets)
        value = float(loss.detach())
        return self.apply(value, self.trained.gradient(loss) if math.isfinite(value) else None)

    def apply(self, loss: float, gradient: Tensor | None) -> float | None:
        """Take an optimizer step with a gradient that has been computed.

        Args:
            loss: of the batch.
            gradient: of all weights, ``[P]``, which is changed; not needed if the loss is not finite.

        Returns:
            as :meth:`step`.

        """
        self.lr = learning_rate(self.spec.optimizer, self.steps, self._total)
        self.steps += 1
        if gradient is None or not math.isfinite(loss) or not self.trained.update(gradient, self.lr):
            self.skipped += 1
            return None
        self.skipped = 0
        self.trained.update_average(self.steps)
        return loss

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Evaluate the weights that would be pulled now.

        Returns:
            ``count``, and if it is not 0 the mean ``loss`` and, where the task has one, ``accuracy``.

        """
        sums: dict[str, float] = {}
        values, own = self.trained.values, self.trained.values.clone()
        values.copy_(self._pulled)
        try:
            for batch in batches:
                for key, value in self.network.evaluate(*self.unpack([batch])).items():
                    sums[key] = sums.get(key, 0.0) + value
        finally:
            values.copy_(own)
        count = sums.get("count", 0.0)
        found = {"count": count}
        if count:
            found["loss"] = sums["loss"] / count
            if "correct" in sums:
                found["accuracy"] = sums["correct"] / count
        return found

    @property
    def _pulled(self) -> Tensor:
        return self.trained.values if self.trained.average is None else self.trained.average

    def keep_best(self) -> None:
        """Remember the weights that would be pulled now as the best ones so far."""
        self._best = self._pulled.clone()

    def use_best(self) -> None:
        """Go back to the weights that :meth:`keep_best` has remembered; nothing is changed without any."""
        if self._best is not None:
            self.trained.values.copy_(self._best)
            self._pulled.copy_(self._best)
        self._best = None

    def weights(self) -> bytes:
        """Return the weights to be pulled (the averaged ones, if the spec asks for them)."""
        return safetensors.torch.save(self.trained.named(self._pulled.cpu()))

    def save(self, progress: dict[str, Any]) -> bytes:
        """Return the whole state as a safetensors file.

        Args:
            progress: plain values to be stored with it.

        """
        moments = self.trained.moments() or (None, None, None)
        kinds = {
            "weight": self.trained.values,
            "average": self.trained.average,
            "best": self._best,
            "first": moments[0],
            "second": moments[1],
        }
        tensors: dict[str, Tensor] = {}
        for kind, values in kinds.items():
            if values is not None:
                named = self.trained.named(values.cpu())
                tensors |= {f"{kind}.{name}": piece for name, piece in named.items()}
        if moments[2] is not None:
            tensors |= {f"count.{name}": moments[2].cpu().clone() for name in self.trained.names}
        plain = {"format": FORMAT, "steps": self.steps, "skipped": self.skipped, "progress": progress}
        # One key: safetensors writes several in any order, and equal states should give equal bytes.
        return safetensors.torch.save(tensors, {"state": json.dumps(plain)})

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
            self._load_tensors(tensors)
        except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as exc:
            raise StorageError(f"the checkpoint does not fit its session ({exc})") from exc
        self.steps = state["steps"]
        self.skipped = state["skipped"]
        progress: dict[str, Any] = state["progress"]
        return progress

    def _load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        def vector(kind: str) -> Tensor:
            return self.trained.vector({name: tensors[f"{kind}.{name}"] for name in self.trained.names})

        one = self.trained.names[0]
        self.trained.values.copy_(vector("weight"))
        if self.trained.average is not None:
            self.trained.average.copy_(vector("average"))
        if f"first.{one}" in tensors:
            self.trained.set_moments(vector("first"), vector("second"), tensors[f"count.{one}"])
        self._best = vector("best").to(self.device) if f"best.{one}" in tensors else None


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def applied_in(data: bytes) -> int:
    """Return the last batch of the first epoch that a checkpoint from :meth:`Trainer.save` has seen.

    Raises:
        StorageError: it is none.

    """
    try:
        return int(json.loads(_metadata(data)["state"])["progress"]["applied"])
    except (KeyError, ValueError, TypeError) as exc:
        raise StorageError(f"the checkpoint cannot be read ({exc})") from exc


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found: dict[str, str] = header["__metadata__"]
    return found
