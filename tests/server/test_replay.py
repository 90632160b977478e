"""Later epochs: permutations of the samples that depend on seed and epoch alone."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from mobillm.codec import unpack
from mobillm.server.log import ActivationLog
from mobillm.server.replay import Replay
from mobillm.spec import CodecSpec
from tests.sessions import packed, spec

SPEC = spec(codec=CodecSpec(format="f32"))
SIZES = (4, 3, 4, 1)


@pytest.fixture
def log(tmp_path: pathlib.Path) -> Iterator[ActivationLog]:
    """Return a log of five batches, the second held out."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(SPEC, seq, samples=size) for seq, size in zip((1, 3, 4, 5), SIZES, strict=True)])
    log.append([packed(SPEC, 2, heldout=True)])
    yield log
    log.close()


def samples_of(replay: Replay, epoch: int) -> list[bytes]:
    """Return the first tap of each sample of an epoch, in order."""
    found = []
    for index in range(len(replay)):
        (batch,) = replay.batch(epoch, index)
        batch.check(SPEC)
        rows = unpack(batch.headers[0], batch.payloads[0])
        found += [part.tobytes() for part in np.split(rows, np.cumsum(batch.lengths())[:-1])]
    return found


def test_each_epoch_is_a_permutation(log: ActivationLog) -> None:
    """Every sample comes once in each epoch, in batches of the sizes they came in; no held-out one."""
    replay = Replay(SPEC, log)
    assert len(replay) == 4
    assert tuple(replay.batch(2, index)[0].samples for index in range(4)) == SIZES
    epochs = [samples_of(replay, epoch) for epoch in (2, 3, 2)]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    sent = []
    for entry in log.entries:
        batch = log.read(entry)
        if not batch.heldout:
            rows = unpack(batch.headers[0], batch.payloads[0])
            sent += [part.tobytes() for part in np.split(rows, np.cumsum(batch.lengths())[:-1])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(sent)


def test_the_order_depends_on_seed_and_epoch_alone(log: ActivationLog) -> None:
    """Reading in the middle of an epoch gives what reading it from the start gives."""
    whole = samples_of(Replay(SPEC, log), 7)
    (last,) = Replay(SPEC, log).batch(7, 3)
    assert unpack(last.headers[0], last.payloads[0]).tobytes() == whole[-1]
    assert samples_of(Replay(spec(codec=SPEC.codec, seed=4), log), 7) != whole
