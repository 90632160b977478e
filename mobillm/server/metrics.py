"""Prometheus metrics; ``docs/operating.md`` says what each one means.

Labels are bounded: no metric has a session, a device, an address or a tenant for a label. Those are in
the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import ConfigError
from ..protocol import VERSION
from ..transport import Address, Server
from ..version import __version__
from .gateway import Gateway
from .meter import Meter
from .monitor import Monitor
from .summary import STATES, state_of

__all__ = ["PrometheusMeter"]

logger = logging.getLogger("mobillm.server")

_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PrometheusMeter(Meter):
    """Counters and histograms of one server; what can be read off its sessions is read when it is scraped.

    Args:
        address: where the endpoint listens; port 0 lets the system choose.

    Attributes:
        registry: what an exposition is made from.
        monitor: the endpoint; None before :meth:`start`.

    """

    def __init__(self, address: Address) -> None:
        # They double the series, for what the time of a scrape tells.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._address = address
        self.monitor: Monitor | None = None
        self.registry = CollectorRegistry()
        info = Info("mobillm_build", "Version of the server and of the wire protocol", registry=self.registry)
        info.info({"version": __version__, "protocol": str(VERSION)})
        self._opened = self._counter("connections_opened", "Connections that have logged in")
        self._closed = self._counter("connections_closed", "Connections that have ended", "reason")
        self._received_bytes = self._counter("received_bytes", "Bytes received over ended connections")
        self._sent_bytes = self._counter("sent_bytes", "Bytes sent over ended connections")
        self._resumes = self._counter("session_resumes", "Attachments to sessions that existed")
        self._batches = self._counter("batches_received", "Whole batches that were accepted")
        self._batch_bytes = self._counter("batch_bytes", "Packed bytes of accepted batches")
        self._duplicates = self._counter("batches_duplicate", "Batches that had come before")
        self._gaps = self._counter("sequence_gaps", "Batches that came before their turn")
        self._rejected = self._counter("batches_rejected", "Batches that were refused", "reason")
        self._durable = self._counter("batches_durable", "Batches that reached the activation log")
        self._replayed = self._counter("replayed_batches", "Batches trained on again after a restart")
        self._steps = self._counter("steps", "Optimizer steps")
        self._latency = Histogram(
            "mobillm_batch_latency_seconds",
            "Time of a batch in a stage: receive, durable (group commit) or apply (step)",
            ["stage"],
            buckets=_SHORT,
            registry=self.registry,
        )
        self._checkpoints = Histogram(
            "mobillm_checkpoint_duration_seconds",
            "Time to write a checkpoint",
            buckets=_SHORT,
            registry=self.registry,
        )
        self._size = self._gauge("checkpoint_size_bytes", "Size of the last checkpoint")
        self._success = self._gauge(
            "checkpoint_last_success_timestamp_seconds", "Time of the last checkpoint"
        )
        self._failures = self._counter("checkpoint_failures", "Checkpoints that could not be written")
        self._lag = Histogram(
            "mobillm_event_loop_lag_seconds",
            "By how much the event loop was late for a call that was due",
            buckets=_SHORT,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mobillm_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"mobillm_{name}", text, registry=self.registry)

    def start(self, gateway: Gateway) -> None:
        """Listen, and read the gauges off a server's sessions from now on.

        Raises:
            ConfigError: the address cannot be listened on.

        """
        self.registry.register(_Sessions(gateway))
        try:
            self.monitor = Monitor(self._address, self.registry, self.lagged)
        except OSError as exc:
            text = f"an address where this machine can listen ({exc.strerror}); port 0 takes a free one"
            raise ConfigError("metrics", f"{self._address.host}:{self._address.port}", text) from exc
        where = self.monitor.address
        logger.info("= metrics at http://%s:%d/metrics, health at /healthz", where.host, where.port)

    def listen(self, server: Server) -> None:
        """Count the failed logins of this server."""
        self.registry.register(_Logins(server))

    def drain(self) -> None:
        """Have the health check say so."""
        if self.monitor is not None:
            self.monitor.drain()

    async def close(self) -> None:
        """Stop listening."""
        if self.monitor is not None:
            await self.monitor.close()

    def opened(self) -> None:
        """Count it."""
        self._opened.inc()

    def closed(self, reason: str, received: int, sent: int) -> None:
        """Count it."""
        self._closed.labels(reason).inc()
        self._received_bytes.inc(received)
        self._sent_bytes.inc(sent)

    def resumed(self) -> None:
        """Count it."""
        self._resumes.inc()

    def received(self, size: int, seconds: float) -> None:
        """Count it."""
        self._batches.inc()
        self._batch_bytes.inc(size)
        self._latency.labels("receive").observe(seconds)

    def duplicate(self) -> None:
        """Count it."""
        self._duplicates.inc()

    def gap(self) -> None:
        """Count it."""
        self._gaps.inc()

    def rejected(self, reason: str) -> None:
        """Count it."""
        self._rejected.labels(reason).inc()

    def durable(self, batches: int, seconds: float) -> None:
        """Count it."""
        self._durable.inc(batches)
        self._latency.labels("durable").observe(seconds)

    def replayed(self) -> None:
        """Count it."""
        self._replayed.inc()

    def applied(self, seconds: float) -> None:
        """Count it."""
        self._steps.inc()
        self._latency.labels("apply").observe(seconds)

    def checkpoint(self, size: int, seconds: float) -> None:
        """Count it."""
        self._checkpoints.observe(seconds)
        self._size.set(size)
        self._success.set(time.time())

    def checkpoint_failed(self) -> None:
        """Count it."""
        self._failures.inc()

    def lagged(self, seconds: float) -> None:
        """Count it."""
        self._lag.observe(seconds)


class _Sessions(Collector):
    """Gauges of a server's sessions, made when they are asked for; called from the endpoint's thread."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        sessions = list(self._gateway.sessions.values())
        states = GaugeMetricFamily("mobillm_sessions", "Sessions by state", labels=["state"])
        found = [state_of(session) for session in sessions] + ["failed"] * len(self._gateway.unreadable)
        for state in STATES:
            states.add_metric([state], found.count(state))
        yield states
        yield from self._plain(
            ("connections", "Connections that are logged in now", self._gateway.connections),
            ("sessions_attached", "Sessions with a device", self._gateway.attached),
            ("queue_bytes", "Packed bytes that wait for training", sum(one.held for one in sessions)),
            ("queue_batches", "Batches that wait for training", sum(one.waiting for one in sessions)),
            ("queue_limit_bytes", "Most packed bytes of one session", self._gateway.limits.queue),
            ("memory_claimed_bytes", "The same with credit that is not used yet", self._gateway.claimed),
            ("memory_limit_bytes", "Most of that", self._gateway.limits.memory),
            (
                "ack_durable_lag_batches",
                "Batches that have come and are not durable yet",
                sum(one.received - one.durable for one in sessions),
            ),
            ("log_bytes", "Bytes of all activation logs", sum(one.stored for one in sessions)),
        )

    @staticmethod
    def _plain(*rows: tuple[str, str, float]) -> Iterator[Metric]:
        for name, text, value in rows:
            yield GaugeMetricFamily(f"mobillm_{name}", text, value=value)


class _Logins(Collector):
    """What the server's transport counts."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        """Yield the counter."""
        text = "Logins with an unknown tenant or a wrong token"
        yield CounterMetricFamily("mobillm_auth_failures", text, value=self._server.failed_logins)
