"""What a Ray worker process runs: one session's learner, which reads the log and writes checkpoints itself.

Batches come from the activation log on shared storage, so only where they are in it crosses the network; what
goes back is figures, and weights when a device pulls them. Nothing here needs Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import torch

from ..spec import SessionSpec
from .blobs import BlobReader
from .checkpoints import Checkpoints
from .engine import Saved, Status, Step
from .equalizers import Equalizers
from .learner import Learner, Piece
from .reader import Entry, LogReader
from .replay import Replay
from .trainer import Trainer

__all__ = ["ActorSpec", "SessionActor"]

T = TypeVar("T")
Reply: TypeAlias = tuple[T, Status]  # a method's result, and how far training has come with it


@dataclasses.dataclass(frozen=True, slots=True)
class ActorSpec:
    """What an actor is made of.

    Attributes:
        spec: the session.
        blobs: directory of the frozen weights that the spec names.
        directory: the session's; the same on all nodes.
        log_path: its activation log.
        device: torch device to train on.
        threads: torch threads; the order of floating-point sums depends on it, so it is the same everywhere.

    """

    spec: SessionSpec
    blobs: pathlib.Path
    directory: pathlib.Path
    log_path: pathlib.Path
    device: str
    threads: int


class SessionActor:
    """Trains one session in a process of its own; called by one caller, one call at a time.

    Each method that reads batches is first told of the entries that the log has got since the last one.

    Args:
        made_of: the session and where its files are.

    """

    def __init__(self, made_of: ActorSpec) -> None:
        torch.set_num_threads(made_of.threads)
        self._spec = made_of
        self._checkpoints = Checkpoints(made_of.directory)
        self._log = LogReader(made_of.log_path)
        self._equalizers = Equalizers()

    @functools.cached_property
    def _learner(self) -> Learner:
        blobs = BlobReader(self._spec.blobs).read_all(self._spec.spec)
        trainer = Trainer(self._spec.spec, blobs, self._spec.device, self._equalizers)
        return Learner(trainer, self._checkpoints)

    @functools.cached_property
    def _replay(self) -> Replay:
        return Replay(self._spec.spec, self._log)

    def _extend(self, entries: Sequence[Entry]) -> None:
        # Some may have been told of before: whoever called does not know how a call ended that it gave up.
        for entry in entries[len(self._log.entries) - entries[0].seq + 1 :] if entries else ():
            if entry.equalizers:
                self._equalizers.add(self._log.read(entry))
            self._log.entries.append(entry)

    def _reply(self, value: T) -> Reply[T]:
        return value, self._learner.status

    def restore(self) -> Reply[bool]:
        """Go where the newest checkpoint is; tell whether there was one.

        Raises:
            ModelError: a blob does not fit the spec.
            StorageError: all checkpoints are damaged, or a blob is.

        """
        return self._reply(self._learner.restored)

    def train(self, entries: Sequence[Entry], seq: int) -> Reply[Step | None]:
        """Train on a batch of the first epoch; None: it is held out, and only noted."""
        self._extend(entries)
        entry = self._log.entries[seq - 1]
        if entry.heldout:
            self._learner.hold_out(seq)
            return self._reply(None)
        return self._reply(self._learner.step(Piece([self._log.read(entry)], seq, 1, 0)))

    def train_again(self, entries: Sequence[Entry], epoch: int, index: int) -> Reply[Step]:
        """Train on a batch of a later epoch; the log is complete by then."""
        self._extend(entries)
        parts = self._replay.batch(epoch, index)
        piece = Piece(parts, self._learner.progress.applied, epoch, index + 1)
        return self._reply(self._learner.step(piece))

    def judge(self, entries: Sequence[Entry]) -> Reply[dict[str, float]]:
        """Judge an epoch that is over by the held-out batches."""
        self._extend(entries)
        return self._reply(self._learner.judge(self._log))

    def settle(self, entries: Sequence[Entry]) -> Reply[tuple[dict[str, float], Saved]]:
        """Go back to the best weights, evaluate them, and write a checkpoint of them."""
        self._extend(entries)
        values = self._learner.settle(self._log)
        return self._reply((values, self._save()))

    def evaluate(self, entries: Sequence[Entry]) -> Reply[dict[str, float]]:
        """Evaluate on the held-out batches that are durable."""
        self._extend(entries)
        return self._reply(self._learner.evaluate(self._log))

    def weights(self) -> Reply[bytes]:
        """Return the weights as a safetensors file."""
        return self._reply(self._learner.trainer.weights())

    def save(self) -> Reply[Saved]:
        """Write a checkpoint."""
        return self._reply(self._save())

    def _save(self) -> Saved:
        start = time.monotonic()
        data = self._learner.save()
        self._checkpoints.save(self._learner.trainer.steps, data)
        return Saved(len(data), time.monotonic() - start)
