"""How a run goes and how it went: figures for a progress display and for the end."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import TYPE_CHECKING

from ..protocol import Metrics
from .trace import Trace, overlap

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .uplink import Uplink

__all__ = ["Progress", "Report", "Watch"]

SPAN_NAMES = ("receive", "train", "log")
TRAIN = 1
RATE_WINDOW = 1.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a run goes.

    Attributes:
        stage: ``connect``, ``upload`` (of blobs, which ``step`` and ``total_steps`` count then), ``forward``,
            ``train``, ``pull`` or ``done``.
        samples, total_samples: that went through the forward pass, in earlier runs too, and that will.
        samples_per_second: of the forward pass, from its begin to its last batch.
        step, total_steps: optimizer steps of the server.
        epoch, epochs: the server's epoch, from 1.
        loss: training loss as the server last reported it; None before that.
        bytes_sent: over the connection so far.
        link_rate: bytes per second, over the last second.
        queue_bytes: packed bytes that wait on the device.
        queue_batches: batches that wait at the server.
        both_busy: part of the streaming time in which both sides computed, 0 to 1.
        elapsed: seconds since the start.

    """

    stage: str
    samples: int = 0
    total_samples: int = 0
    samples_per_second: float = 0.0
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    bytes_sent: int = 0
    link_rate: float = 0.0
    queue_bytes: int = 0
    queue_batches: int = 0
    both_busy: float = 0.0
    elapsed: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run went.

    Attributes:
        session: the session's name, 32 hex digits.
        steps: optimizer steps; of a detached run those that had been taken when the device left.
        loss: mean training loss of the last epoch; None when nothing was trained, or the run is detached.
        stopped: epoch after which early stopping ended training, and the one whose weights were kept; None
            when it did not.
        detached: whether the device left before the end of training.
        samples, tokens: that went through the forward pass.
        seconds: from the start to the saved result.
        stream_seconds: from the first forward pass to the last batch sent.
        bytes_sent: over the connection.
        blob_bytes: of frozen weights among them, which the server lacked.
        bytes_fp16: what the same activations take in fp16.
        device_busy, server_busy: seconds of computing.
        device_rested: seconds in which the device did not compute because of ``duty``.
        both_busy: part of the streaming time in which both sides computed, 0 to 1.
        losses: connections that were lost and made again.
        evaluation: figures of the held-out part, computed by the server; None without one.
        output: directory of the result; None when it was not saved.
        trace_error: why the trace could not be written; None when it was, or was not asked for.

    """

    session: str
    steps: int
    loss: float | None
    stopped: tuple[int, int] | None
    detached: bool
    samples: int
    tokens: int
    seconds: float
    stream_seconds: float
    bytes_sent: int
    blob_bytes: int
    bytes_fp16: int
    device_busy: float
    device_rested: float
    server_busy: float
    both_busy: float
    losses: int
    evaluation: dict[str, float] | None
    output: str | None
    trace_error: str | None = None


class Watch:
    """Collect the figures of one run.

    Args:
        uplink: the session.
        pipeline: the device's pipeline.
        trace: where the server's timings are noted.

    Attributes:
        sent_before: samples that the server had before this run, which goes on with a session.

    """

    def __init__(self, uplink: Uplink, pipeline: Pipeline, trace: Trace) -> None:
        self._uplink = uplink
        self._pipeline = pipeline
        self._trace = trace
        self._server_busy: list[tuple[float, float]] = []
        self._loss: float | None = None
        self._sent: collections.deque[tuple[float, int]] = collections.deque()
        self._start = time.monotonic()
        self.sent_before = 0
        uplink.on_metrics = self._on_metrics

    def _on_metrics(self, metrics: Metrics) -> None:
        if metrics.loss is not None:
            self._loss = metrics.loss
        connection = self._uplink.session.connection
        offset = connection.keepalive.clock_offset or 0.0
        if connection.keepalive.round_trip is not None:
            # Half a round trip is the most that the offset can be off, whichever way was the slower one.
            self._trace.clock_error = connection.keepalive.round_trip / 2
        for kind, seq, start, duration in metrics.spans:
            if kind >= len(SPAN_NAMES):
                continue  # of a newer server
            begun = start / 1e6 - offset
            self._trace.add("server", SPAN_NAMES[kind], SPAN_NAMES[kind], begun, duration / 1e6, seq)
            if kind == TRAIN:
                self._server_busy.append((begun, begun + duration / 1e6))

    @property
    def server_busy(self) -> float:
        """Seconds that the server spent on training this session."""
        return self._uplink.metrics.busy if self._uplink.metrics else 0.0

    @property
    def device_busy(self) -> float:
        """Seconds that the compute thread computed."""
        return sum(end - start for start, end in self._pipeline.busy)

    def samples_per_second(self) -> float:
        """Return the samples per second of the forward pass."""
        busy = list(self._pipeline.busy)
        streaming = busy[-1][1] - busy[0][0] if busy else 0.0
        return self._pipeline.samples / streaming if streaming else 0.0

    def both_busy(self) -> float:
        """Return the part of the streaming time in which both sides computed."""
        busy = list(self._pipeline.busy)
        streaming = busy[-1][1] - busy[0][0] if busy else 0.0
        return overlap(busy, sorted(self._server_busy)) / streaming if streaming else 0.0

    def link_rate(self) -> float:
        """Return the bytes per second of the last second."""
        now = time.monotonic()
        self._sent.append((now, self._uplink.bytes_sent))
        while len(self._sent) > 2 and self._sent[1][0] < now - RATE_WINDOW:
            self._sent.popleft()
        (before, count), (_, latest) = self._sent[0], self._sent[-1]
        return (latest - count) / (now - before) if now > before else 0.0

    def progress(self, stage: str, total_samples: int, total_steps: int) -> Progress:
        """Return how the run goes."""
        metrics = self._uplink.metrics
        return Progress(
            stage=stage,
            samples=self.sent_before + self._pipeline.samples,
            total_samples=total_samples,
            samples_per_second=self.samples_per_second(),
            step=metrics.step if metrics else 0,
            total_steps=total_steps,
            epoch=metrics.epoch if metrics else 0,
            epochs=self._uplink.spec.epochs,
            loss=self._loss,
            bytes_sent=self._uplink.bytes_sent,
            link_rate=self.link_rate(),
            queue_bytes=self._pipeline.held,
            queue_batches=metrics.queue if metrics else 0,
            both_busy=self.both_busy(),
            elapsed=time.monotonic() - self._start,
        )
