"""Tests of predicting what a run needs."""

from __future__ import annotations

import dataclasses

import pytest

from mobillm.device.plan import Job, ModelFigures, choose, predict
from mobillm.errors import ConfigError

MIB = 1 << 20
MODEL = ModelFigures(
    layers=24,
    hidden_size=1024,
    inner_size=4096,
    itemsize=4,
    weight_bytes=1200 * MIB,
    layer_bytes=48 * MIB,
    outside_bytes=10 * MIB,
    base_bytes=300 * MIB,
    part=1024,
    layer_seconds=1e-5,
)
JOB = Job(samples=1000, length=100, batch=16, taps=(8, 16, 24))


def test_traffic_and_time_are_exact() -> None:
    """Traffic is that of the packed format; time is that of the slower side."""
    found = predict(MODEL, JOB, link=1e6)
    assert found.token_bytes == 3 * (1024 // 2 + 4 * 1024 // 64)
    assert found.traffic_bytes == 100_000 * found.token_bytes
    assert found.compute_seconds == pytest.approx(100_000 * 24 * 1e-5)
    assert found.link_seconds == pytest.approx(found.traffic_bytes / 1e6)
    assert found.seconds == found.link_seconds
    assert predict(MODEL, JOB).seconds == predict(MODEL, JOB).compute_seconds
    lower = dataclasses.replace(JOB, taps=(8,))
    assert predict(MODEL, lower).compute_seconds == pytest.approx(100_000 * 8 * 1e-5)


def test_memory() -> None:
    """Weights are all or two layers; hidden states and packed taps grow with the batch, inner ones do not."""
    whole, streamed = predict(MODEL, JOB), predict(MODEL, dataclasses.replace(JOB, streamed=True))
    assert whole.weights_bytes == 1200 * MIB
    assert streamed.weights_bytes == 106 * MIB
    parts = whole.weights_bytes + whole.work_bytes + whole.packed_bytes
    assert whole.memory_bytes == MODEL.base_bytes + parts
    double = predict(MODEL, dataclasses.replace(JOB, batch=32))
    assert double.packed_bytes == 2 * whole.packed_bytes
    assert whole.work_bytes < double.work_bytes < 2 * whole.work_bytes
    together = predict(MODEL, dataclasses.replace(JOB, streamed=True), span=4096)
    assert together.packed_bytes == 3 * streamed.packed_bytes  # 4,800 tokens instead of 1,600


def test_what_fits_is_left_alone() -> None:
    """Without limits, or with wide ones, nothing changes."""
    assert choose(MODEL, JOB, memory_limit=None, link=None, span=4096)[::2] == (JOB, [])
    assert choose(MODEL, JOB, memory_limit=4096 * MIB, link=1e9, span=4096)[::2] == (JOB, [])


def test_changes_for_the_memory() -> None:
    """Layers go to the disk first, then batches shrink, and each change is explained."""
    job, found, reasons = choose(MODEL, JOB, memory_limit=600 * MIB, link=None, span=0)
    assert (job.streamed, job.batch) == (True, 16)
    assert found.memory_bytes <= 600 * MIB
    assert len(reasons) == 1
    assert "above the limit" in reasons[0]
    tight = found.memory_bytes - 10 * MIB
    job, found, reasons = choose(MODEL, JOB, memory_limit=tight, link=None, span=0)
    assert job.batch < 16
    assert found.memory_bytes <= tight
    assert reasons[1] == f"batches of {job.batch} instead of 16 samples, to stay below the limit"


def test_changes_for_the_link() -> None:
    """Bits are saved until the link keeps up; when they do not suffice it is said."""
    need = predict(MODEL, JOB).traffic_bytes / predict(MODEL, JOB).compute_seconds
    job, found, reasons = choose(MODEL, JOB, memory_limit=None, link=0.8 * need, span=0)
    assert job.format == "asym3"
    assert found.link_seconds <= found.compute_seconds
    assert len(reasons) == 1
    job, _, reasons = choose(MODEL, JOB, memory_limit=None, link=0.1 * need, span=0)
    assert job.format == "asym2"
    assert "fewer taps" in reasons[-1]
    plain = dataclasses.replace(JOB, format="asym2")
    assert choose(MODEL, plain, memory_limit=None, link=0.1 * need, span=0)[0] == plain


def test_nothing_fits() -> None:
    """A limit below the code itself is an error that names what is needed."""
    with pytest.raises(ConfigError, match=r"200 MiB.*at least \d+ MiB.*300 MiB of it are Python"):
        choose(MODEL, JOB, memory_limit=200 * MIB, link=None, span=4096)


def test_weights_that_are_expanded_or_cannot_be_streamed() -> None:
    """The expanded weights of a module come on top; without streaming only batches can shrink."""
    model = dataclasses.replace(MODEL, workspace_bytes=16 * MIB, streamable=False)
    for streamed in (True, False):
        job = dataclasses.replace(JOB, streamed=streamed)
        assert predict(model, job).memory_bytes == predict(MODEL, job).memory_bytes + 16 * MIB
    lower = dataclasses.replace(JOB, taps=(8, 12, 16))
    assert predict(MODEL, lower).memory_bytes == predict(MODEL, JOB).memory_bytes
    assert predict(model, lower).memory_bytes == predict(model, JOB).memory_bytes - 8 * 48 * MIB
    limit = predict(model, JOB).memory_bytes - 1
    job, _, reasons = choose(model, JOB, memory_limit=limit, link=None, span=0)
    assert (job.streamed, job.batch, len(reasons)) == (False, 8, 1)
    with pytest.raises(ConfigError, match="for single samples;"):
        choose(model, JOB, memory_limit=1000 * MIB, link=None, span=0)
