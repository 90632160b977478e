"""Steps taken together: as alone but for rounding, with all state, counts and errors each session's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mobillm.server.batch import Batch
from mobillm.server.together import Grid, fits, shape_of, step_together
from mobillm.server.trainer import Trainer
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from tests.sessions import packed, spec

SESSIONS = 4


def sessions(**changes: Any) -> list[Trainer]:
    """Return sessions of one shape that differ in all that may differ."""
    optimizers = (
        OptimizerSpec(lr=5e-3, schedule="constant", clip=0.05),  # clips each step
        OptimizerSpec(lr=1e-2, schedule="onecycle", ema=0.0),
        OptimizerSpec(lr=5e-3, schedule="linear", clip=0.0, weight_decay=0.0),
        OptimizerSpec(lr=2e-3, schedule="constant"),
    )
    return [
        Trainer(spec(seed=seed, batches=20, optimizer=optimizer, **changes), {})
        for seed, optimizer in enumerate(optimizers)
    ]


def next_batches(trainers: list[Trainer], number: int) -> list[Batch]:
    """Return a batch of each session, with 2 to 5 samples."""
    return [
        packed(trainer.spec, 10 * number + index, samples=2 + (index + number) % SESSIONS)
        for index, trainer in enumerate(trainers)
    ]


def spoilt(batch: Batch) -> Batch:
    """Return a batch in fp32 with a value that is not finite."""
    tap = np.frombuffer(batch.payloads[0], np.float32).copy()
    tap[-1] = np.inf
    return dataclasses.replace(batch, payloads={**batch.payloads, 0: memoryview(tap.tobytes())})


def assert_close(together: list[Trainer], alone: list[Trainer]) -> None:
    """Compare weights and averages: ten steps of at most 1e-2 may differ by rounding alone."""
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one.trained.values, two.trained.values, rtol=0, atol=2e-5)
        assert (one.steps, one.skipped, one.lr) == (two.steps, two.skipped, two.lr)
        if one.trained.average is not None:
            torch.testing.assert_close(one.trained.average, two.trained.average, rtol=0, atol=2e-5)


def test_as_alone() -> None:
    """Sessions at different steps, two of which join later, with checkpoints and evaluation in between."""
    together, alone = sessions(), sessions()
    start = [trainer.trained.values.clone() for trainer in alone]
    for number in range(10):
        batches = next_batches(together, number)
        alone_losses = [t.step(batch) for t, batch in zip(alone, batches, strict=True)]
        joined = SESSIONS if number >= 3 else 2
        losses = step_together(together[:joined], [[batch] for batch in batches[:joined]])
        losses += [t.step(batch) for t, batch in zip(together[joined:], batches[joined:], strict=True)]
        for own, other in zip(losses, alone_losses, strict=True):
            assert own == pytest.approx(other, abs=1e-5)
        if number == 5:
            again = sessions()
            for new, old in zip(again, together, strict=True):
                new.load(old.save({}))
                assert old.evaluate(batches[:1])["count"] == 2 + number % SESSIONS
            together = again
    assert_close(together, alone)
    for trainer, before in zip(together, start, strict=True):
        assert float((trainer.trained.values - before).abs().max()) > 1e-3


def test_parts_that_were_packed_in_different_ways() -> None:
    """A batch may come in several parts."""
    codec = CodecSpec(format="asym4", block=32, bits=(4, 8))
    together, alone = sessions(codec=codec)[:2], sessions(codec=codec)[:2]
    parts = [[packed(t.spec, 1), packed(t.spec, 2, samples=3)] for t in together]
    step_together(together, parts)
    for trainer, batch in zip(alone, parts, strict=True):
        trainer.step(*batch)
    assert_close(together, alone)


def test_a_loss_that_is_not_finite_is_its_sessions_own() -> None:
    """That session skips the step and changes nothing; the others do not notice."""
    codec = CodecSpec(format="f32")
    together, alone = sessions(codec=codec), sessions(codec=codec)
    before = b""
    for number in range(4):
        batches = next_batches(together, number)
        if number == 2:
            batches[1] = spoilt(batches[1])
            before = together[1].save({})
        losses = step_together(together, [[batch] for batch in batches])
        for trainer, batch in zip(alone, batches, strict=True):
            trainer.step(batch)
        if number == 2:
            assert [loss is None for loss in losses] == [False, True, False, False]
            assert (together[1].steps, together[1].skipped) == (3, 1)
            other = sessions(codec=codec)[1]
            other.load(before)
            assert torch.equal(other.trained.values, together[1].trained.values)
    assert together[1].skipped == 0
    assert_close(together, alone)


def test_an_error_is_its_sessions_own() -> None:
    """The others take the step that they take alone, to the bit."""
    together, alone = sessions(), sessions()
    batches = next_batches(together, 1)
    wrong = dict(batches[2].headers)
    del wrong[1]
    results = step_together(
        together,
        [[dataclasses.replace(b, headers=wrong) if index == 2 else b] for index, b in enumerate(batches)],
    )
    assert isinstance(results[2], KeyError)
    for index in (0, 1, 3):
        assert results[index] == alone[index].step(batches[index])
        assert together[index].save({}) == alone[index].save({})
    assert together[2].save({}) == alone[2].save({})


def test_shapes() -> None:
    """What follows from sizes must be equal; names, seeds, tapped layers, formats and optimizers need not."""
    what = spec()
    model = ModelSpec(name="other", hidden_size=16, layers=9, taps=(1, 9))
    alike = spec(seed=9, model=model, optimizer=OptimizerSpec(schedule="constant"), codec=CodecSpec())
    assert shape_of(what, "cpu") == shape_of(alike, "cpu") is not None
    others: list[SessionSpec] = [
        spec(outputs=3),
        spec(task="regression", outputs=1),
        spec(model=dataclasses.replace(what.model, taps=(4,))),
        spec(model=dataclasses.replace(what.model, hidden_size=32)),
        *(spec(side=dataclasses.replace(what.side, **{key: value})) for key, value in _SIDES.items()),
    ]
    for other in others:
        assert shape_of(other, "cpu") not in (None, shape_of(what, "cpu"))
    assert shape_of(what, "cuda") != shape_of(what, "cpu")
    assert shape_of(spec(side=SideSpec(kind="parallel")), "cpu") is None


_SIDES: dict[str, Any] = {"width": 16, "heads": 4, "dropout": 0.2, "causal": False, "pool": "mean"}


def test_what_pays() -> None:
    """Batches of about one size that are small, alone and together."""
    what = spec(side=SideSpec(width=32, heads=4))
    small = Grid.of([packed(what, 1, samples=4)])
    assert (small.sessions, small.samples) == (1, 4)
    assert small.own == small.places >= small.tokens
    assert fits(what, small | small | small)
    assert not fits(what, Grid(1, 32, 32, 1024, 1024))
    ten = Grid(1, 10, 10, 100, 100)
    assert not fits(what, ten | Grid(1, 1, 10, 10, 10))  # nine tenths of the second one's part are padding
    eight = Grid(1, 16, 16, 256, 256)
    groups = [eight]
    while fits(what, groups[-1] | eight):
        groups.append(groups[-1] | eight)
    assert groups[-1].sessions == 8
    wide = spec(model=ModelSpec(name="x", hidden_size=8192, layers=32, taps=tuple(range(1, 33))))
    assert not fits(wide, Grid(1, 8, 8, 64, 64) | Grid(1, 8, 8, 64, 64))
