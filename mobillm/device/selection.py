"""Which tokens of a batch are sent: all, those that enter the loss, or one for each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..spec import IGNORED, SessionSpec

if TYPE_CHECKING:
    from .pipeline import TokenBatch

__all__ = ["Selection", "select"]


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What is sent of one batch.

    Attributes:
        rows: int64 positions among the batch's tokens, ascending; None sends all.
        lengths: tokens of each sample that are sent.
        targets: for them.

    """

    rows: npt.NDArray[np.int64] | None
    lengths: list[int]
    targets: Sequence[float]


def select(spec: SessionSpec, batch: TokenBatch) -> Selection:
    """Choose the tokens that ``spec.tokens`` names.

    Raises:
        DataError: a sample has no token that enters the loss.

    """
    lengths = [len(sample) for sample in batch.input_ids]
    if spec.tokens == "all":
        return Selection(None, lengths, batch.targets)
    ends = np.cumsum(lengths, dtype=np.int64)
    if spec.tokens == "last":
        return Selection(ends - 1, [1] * len(lengths), batch.targets)
    targets = np.asarray(batch.targets)
    counted = targets != IGNORED
    starts = ends - np.asarray(lengths, dtype=np.int64)
    kept = np.add.reduceat(counted, starts, dtype=np.int64)
    if not kept.all():
        sample = int(np.flatnonzero(kept == 0)[0])
        raise DataError(f"sample {sample} of a batch has no token to predict; leave it out")
    return Selection(np.flatnonzero(counted), kept.tolist(), targets[counted].tolist())
