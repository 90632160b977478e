"""Later epochs, read from the activation log: a seeded shuffle of samples, cut into batches again."""

from __future__ import annotations

import bisect
import itertools

import numpy as np

from ..spec import SessionSpec
from .batch import Batch, Slice, join
from .reader import LogReader

__all__ = ["Replay"]


class Replay:
    """The batches of the epochs after the first.

    Batch *i* of every epoch has as many samples as training batch *i* had when it was received; which
    samples these are is a permutation that depends on the spec's seed and the epoch alone.

    Args:
        spec: the session.
        log: its log, complete.

    """

    def __init__(self, spec: SessionSpec, log: LogReader) -> None:
        self._spec = spec
        self._log = log
        self._entries = [entry for entry in log.entries if not entry.heldout]
        counts = [entry.samples for entry in self._entries]
        self._ends = list(itertools.accumulate(counts))
        self._starts = [list(itertools.accumulate(entry.lengths, initial=0)) for entry in self._entries]
        self._epoch = 0
        self._order: list[int] = []

    def __len__(self) -> int:
        """Return the batches of one epoch."""
        return len(self._entries)

    def batch(self, epoch: int, index: int) -> list[Batch]:
        """Read one batch, in parts that are each packed alike; see :func:`join`.

        Args:
            epoch: from 2.
            index: from 0.

        Raises:
            StorageError: a record of the log is damaged.

        """
        if epoch != self._epoch:
            samples = self._ends[-1]
            generator = np.random.Generator(np.random.PCG64([self._spec.seed, epoch]))
            self._order = generator.permutation(samples).tolist()
            self._epoch = epoch
        begin = self._ends[index - 1] if index else 0
        slices = [self._slice(sample) for sample in self._order[begin : self._ends[index]]]
        return join(slices, targets_by_token=self._spec.task == "causal-lm")

    def _slice(self, sample: int) -> Slice:
        where = bisect.bisect_right(self._ends, sample)
        inside = sample - (self._ends[where - 1] if where else 0)
        starts = self._starts[where]
        return Slice(self._log.read(self._entries[where]), inside, starts[inside], starts[inside + 1])
