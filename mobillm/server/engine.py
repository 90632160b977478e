"""What a session needs of whatever trains it: the engine of a server, and its worker for each session."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

from ..spec import SessionSpec
from .batch import Batch
from .blobs import BlobReader
from .checkpoints import Checkpoints
from .equalizers import Equalizers
from .log import ActivationLog
from .progress import Progress
from .reader import Entry

__all__ = ["Engine", "Job", "Saved", "Status", "Step", "Worker"]


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What a worker trains.

    Attributes:
        name: the session's name, for logs and for fair turns.
        spec: the session.
        blobs: where the frozen weights are that the spec names.
        checkpoints: of the session.
        log_path: the activation log.
        log: opens it on first use, and returns it.
        equalizers: those of the batches that were received.
        tenant: whose share of the training device the start is taken from; it would set the session itself
            back by many steps.

    """

    name: str
    spec: SessionSpec
    blobs: BlobReader
    checkpoints: Checkpoints
    log_path: pathlib.Path
    log: Callable[[], ActivationLog]
    equalizers: Equalizers
    tenant: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """How far a worker has come.

    Attributes:
        steps: optimizer steps taken.
        skipped: batches in a row whose loss was not finite.
        lr: learning rate of the last step.
        progress: where in the epochs it is.

    """

    steps: int
    skipped: int
    lr: float
    progress: Progress


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        loss: of the batch; None when it is not finite and the weights were not changed.
        start, duration: in microseconds, on the clock of :func:`time.monotonic_ns`.

    """

    loss: float | None
    start: int
    duration: int


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is on the disk: its bytes, and the seconds that it took."""

    size: int
    seconds: float


class Worker(Protocol):
    """Trains one session, one piece after the other.

    Cancelling a call waits for a piece of work that has begun: nothing is left half done. Every call may
    raise StorageError (a file is damaged, or the disk full) and EngineError (there is nowhere to train now).
    """

    @property
    def status(self) -> Status:
        """How far it has come with the last piece that is whole."""

    @property
    def restored(self) -> bool:
        """Whether it began with a checkpoint."""

    async def train(self, item: Batch | Entry) -> Step | None:
        """Train on the next batch of the first epoch; None: it is held out, and only noted."""

    async def train_again(self, epoch: int, index: int) -> Step:
        """Train on a batch of a later epoch; ``index`` counts from 0."""

    async def judge(self) -> dict[str, float]:
        """Evaluate at the end of an epoch, for early stopping; return figures as :meth:`evaluate` does."""

    async def settle(self) -> tuple[dict[str, float], Saved]:
        """Go back to the best weights, if early stopping asks for it; evaluate them, write a checkpoint."""

    async def evaluate(self) -> tuple[int, dict[str, float]]:
        """Evaluate on the held-out batches that are durable.

        Returns:
            the steps behind the weights; and ``count`` (samples) with the values that are finite.

        """

    async def weights(self) -> tuple[int, bytes]:
        """Return the steps behind the weights, and the weights as a safetensors file."""

    async def save(self) -> Saved | None:
        """Write a checkpoint; None: the worker has lost its state, and the next call restores it."""

    async def close(self) -> None:
        """Free what it holds; can be called more than once."""


class Engine(Protocol):
    """Makes workers."""

    async def start(self) -> None:
        """Get ready.

        Raises:
            EngineError: it cannot be used.

        """

    async def begin(self, job: Job) -> Worker:
        """Return a worker that is where the session's newest checkpoint left it, or new.

        Raises:
            ModelError: a blob does not fit the spec.
            StorageError: all checkpoints are damaged, or a blob is.
            EngineError: there is nowhere to train now.

        """

    async def close(self) -> None:
        """End it; its workers are closed."""
