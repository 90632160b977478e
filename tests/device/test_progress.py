"""Figures of a run: what the server reports, moved to the device's clock."""

from __future__ import annotations

import types
from typing import Any, cast

import pytest

from mobillm.device.progress import TRAIN, Watch
from mobillm.device.trace import Trace
from mobillm.protocol import Metrics
from tests.sessions import spec


def watch_on(busy: list[tuple[float, float]], offset: float | None = 0.0) -> tuple[Watch, Any, Trace]:
    """Return a watch on an uplink and a pipeline that only hold figures."""
    keepalive = types.SimpleNamespace(clock_offset=offset, round_trip=0.004)
    session = types.SimpleNamespace(connection=types.SimpleNamespace(keepalive=keepalive))
    uplink = types.SimpleNamespace(
        session=session, bytes_sent=0, metrics=None, on_metrics=None, spec=spec(epochs=3)
    )
    pipeline = types.SimpleNamespace(busy=busy, samples=7, held=11)
    trace = Trace()
    return Watch(cast(Any, uplink), cast(Any, pipeline), trace), uplink, trace


def report(uplink: Any, metrics: Metrics) -> None:
    """Act as the uplink does when METRICS come."""
    uplink.metrics = metrics
    uplink.on_metrics(metrics)


def test_before_anything_happened() -> None:
    """All figures have a value from the start."""
    watch, _, _ = watch_on([])
    progress = watch.progress("forward", 100, 30)
    assert (progress.step, progress.loss, progress.both_busy) == (0, None, 0.0)
    assert (progress.samples, progress.queue_bytes, progress.epochs) == (7, 11, 3)
    assert (watch.device_busy, watch.server_busy) == (0.0, 0.0)


def test_overlap_is_on_one_clock() -> None:
    """The server's spans are moved by the offset of the clocks before they are compared."""
    watch, uplink, trace = watch_on([(10.0, 11.0), (11.0, 12.0)], offset=100.0)
    spans = ((TRAIN, 1, 111_000_000, 500_000), (99, 1, 0, 1))
    report(uplink, Metrics(stream=1, step=1, epoch=1, loss=0.5, busy=0.5, queue=2, spans=spans))
    assert watch.both_busy() == pytest.approx(0.25)
    assert (watch.device_busy, watch.server_busy) == (2.0, 0.5)
    ((*names, start, duration, batch),) = trace.spans
    assert (names, batch) == (["server", "train", "train"], 1)
    assert (start, duration) == pytest.approx((11.0, 0.5))
    assert trace.clock_error == 0.002  # half a round trip
    progress = watch.progress("train", 100, 30)
    assert (progress.step, progress.loss, progress.queue_batches) == (1, 0.5, 2)


def test_link_rate() -> None:
    """The rate is that of the bytes since the window began."""
    watch, uplink, _ = watch_on([])
    assert watch.link_rate() == 0.0
    uplink.bytes_sent = 1_000_000
    assert watch.link_rate() > 0.0
