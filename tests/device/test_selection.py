"""Which tokens of a batch leave the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobillm.device.pipeline import TokenBatch
from mobillm.device.selection import select
from mobillm.errors import DataError
from mobillm.spec import SideSpec
from tests.sessions import spec

PARALLEL = SideSpec(kind="parallel")
LANGUAGE: dict[str, Any] = {"task": "causal-lm", "outputs": 100, "head": "ab" * 32, "side": PARALLEL}


def test_all() -> None:
    """Nothing is left out, and no row is copied."""
    batch = TokenBatch([[5, 6, 7], [8]], [0, 1])
    found = select(spec(), batch)
    assert (found.rows, found.lengths, found.targets) == (None, [3, 1], [0, 1])


def test_last() -> None:
    """One token of each sample, with the sample's target."""
    batch = TokenBatch([[5, 6, 7], [8], [9, 9]], [0, 1, 0])
    found = select(spec(side=PARALLEL, tokens="last"), batch)
    assert found.rows is not None
    assert found.rows.tolist() == [2, 3, 5]
    assert (found.lengths, found.targets) == ([1, 1, 1], [0, 1, 0])


def test_loss() -> None:
    """Only tokens with a target; the lengths count those that are left."""
    batch = TokenBatch([[5, 6, 7], [8, 9, 4, 4]], [-100, 7, -100, 9, 4, 4, -100])
    found = select(spec(**LANGUAGE, tokens="loss"), batch)
    assert found.rows is not None
    assert found.rows.dtype == np.int64
    assert found.rows.tolist() == [1, 3, 4, 5]
    assert (found.lengths, found.targets) == ([1, 3], [7, 9, 4, 4])


def test_a_sample_without_a_target() -> None:
    """It cannot be sent: a length is at least 1."""
    batch = TokenBatch([[5, 6], [8, 9]], [6, -100, -100, -100])
    with pytest.raises(DataError, match=r"sample 1 .*leave it out"):
        select(spec(**LANGUAGE, tokens="loss"), batch)
