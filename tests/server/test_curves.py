"""Curves as TensorBoard reads them."""

from __future__ import annotations

import logging
import pathlib
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobillm.protocol import Metrics
from mobillm.server.curves import Curves
from mobillm.server.meter import Meter
from tests.conftest import Run
from tests.sessions import device, serving, spec, submit, train


def read(folder: pathlib.Path, tag: str) -> list[tuple[int, float]]:
    """Return the steps and values of one curve."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_restart_does_not_zigzag(tmp_path: pathlib.Path) -> None:
    """Steps that were repeated after a crash replace those before it."""
    for steps in (range(1, 6), range(4, 8)):
        curves = Curves(tmp_path)
        for step in steps:
            curves.add("a", Metrics(step=step, epoch=1, loss=None if step == 2 else step / 2, lr=0.1))
        curves.close("a")
        curves.close("a")
        curves.close()
    assert [step for step, _ in read(tmp_path / "a", "train/loss")] == [1, 3, 4, 5, 6, 7]


def test_a_session_is_drawn(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and rate over all epochs, held-out figures after each epoch that is judged."""
    monkeypatch.setattr("mobillm.server.training.METRICS_INTERVAL", 0.0)

    async def main() -> str:
        meter = Meter()
        meter.curves = Curves(tmp_path / "curves")
        async with serving(tmp_path / "data", meter=meter) as server, device(server) as client:
            session = await client.open(spec(batches=2, epochs=2, early_stopping=2))
            await submit(session, 1, 2)
            await submit(session, 3, 3, heldout=True)
            await session.finish()
            await session.wait_finished()
            return session.id.hex()

    folder = tmp_path / "curves" / run_once(main())
    assert [step for step, _ in read(folder, "train/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in read(folder, "train/lr")][-1] == 4
    assert [step for step, _ in read(folder, "heldout/accuracy")] == [2, 4, 4]


def test_where_nothing_can_be_written(bound_by_permissions: pathlib.Path) -> None:
    """It is found before anything is trained."""
    file = bound_by_permissions / "file"
    file.write_text("")
    with pytest.raises(FileExistsError):
        Curves(file)
    closed = bound_by_permissions / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        Curves(closed)


def test_training_outlives_its_curves(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that fails under the curves of a session costs one line of the log."""
    monkeypatch.setattr("mobillm.server.training.METRICS_INTERVAL", 0.0)

    async def main() -> None:
        meter = Meter()
        meter.curves = Curves(tmp_path / "curves")
        shutil.rmtree(tmp_path / "curves")
        (tmp_path / "curves").write_text("no directory")
        async with serving(tmp_path / "data", meter=meter) as server, device(server) as client:
            session, _ = await train(client, spec(batches=3, epochs=2), 3)
            assert session.finished is not None
            assert session.finished.steps == 6
            text = f"session {session.id.hex()}: its curves are drawn no more"
            assert [text in record.getMessage() for record in caplog.records] == [True]

    with caplog.at_level(logging.WARNING, "mobillm"):
        run_once(main())
