"""The engine on a Ray cluster: each session's worker is an actor, wherever Ray finds room for it.

The server's event loop never calls Ray: calls are made in a thread, and their futures are awaited.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from ..errors import EngineError
from .actor import ActorSpec, SessionActor
from .engine import Job
from .worker_ray import RayWorker

__all__ = ["RayEngine"]

logger = logging.getLogger("mobillm.server")

R = TypeVar("R")

NAMESPACE = "mobillm"
START = 60.0  # seconds until Ray is started or joined
CONNECT = 5.0  # seconds until the cluster's head accepts a connection


class _Actor(SessionActor):
    def ping(self) -> tuple[str, int]:
        """Tell on which node and in which process it is."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class RayEngine:
    """Has each session trained by an actor of a Ray cluster.

    The data directory must be the same on all nodes. Nothing else is shared: an actor that is lost is made
    again, on another node if there is one, and goes on from the newest checkpoint. Whether Ray is connected
    already (by the program that serves, say) is looked at first; that connection is used and not ended.

    Args:
        address: of the cluster's head, ``HOST:PORT``; None starts Ray on this machine, for this server only.
        cpus: that Ray sets aside for each session; a part of one is allowed.
        gpus: the same; with any, sessions are trained on CUDA.
        threads: torch threads of an actor; None takes as many as this process has.

    Attributes:
        workers: those that are not closed, by the session's name.

    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        threads: int | None = None,
    ) -> None:
        self.workers: dict[str, RayWorker] = {}
        self._address = address
        self._cpus = cpus
        self._gpus = gpus
        self._threads = threads
        self._owns = False  # whether the connection to Ray is this engine's to end
        self._calls = concurrent.futures.ThreadPoolExecutor(1, "mobillm-ray")

    async def start(self) -> None:
        """Connect to the cluster, or start one.

        Raises:
            EngineError: there is none, or it does not answer.

        """
        if await self.run(ray.is_initialized):
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of this is reported to anybody
        options: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        if self._address is not None:
            await self._probe(self._address)
            options = {}
        address = self._address or "local"
        logger.info("connecting to Ray (%s) ...", address)
        try:
            async with asyncio.timeout(START):
                await self.run(
                    lambda: ray.init(
                        address, namespace=NAMESPACE, configure_logging=False, log_to_driver=False, **options
                    )
                )
        except TimeoutError as exc:
            raise EngineError(f"Ray ({address}) did not let this server in within {START:g} s") from exc
        except (RayError, RuntimeError, ValueError, OSError) as exc:
            raise EngineError(f"Ray ({address}) cannot be used: {exc}") from exc
        self._owns = True

    async def _probe(self, address: str) -> None:
        """Find out quickly whether anybody is there: Ray itself tries for minutes."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT):
                _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
        except (OSError, ValueError) as exc:
            raise EngineError(
                f"no Ray cluster answers at {address}; start one with 'ray start --head', or give no address "
                "to start Ray here"
            ) from exc

    async def begin(self, job: Job) -> RayWorker:
        """Return a worker that is where the session's newest checkpoint left it, or new.

        Raises:
            ModelError: a blob does not fit the spec.
            StorageError: all checkpoints are damaged, or a blob is.
            EngineError: no node has room now.

        """
        worker = RayWorker(self, job)
        self.workers[job.name] = worker
        try:
            await worker.begin()
        except BaseException:
            await worker.close()
            raise
        return worker

    async def close(self) -> None:
        """End all actors, and the connection if it is the engine's own."""
        for worker in list(self.workers.values()):
            await worker.close()
        if self._owns:
            await self.run(ray.shutdown)
        self._calls.shutdown(wait=False)  # a call to a cluster that does not answer may last

    # What workers call.

    @property
    def room(self) -> str:
        """What an actor needs of a node, in words."""
        return f"{self._cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")

    async def run(self, work: Callable[[], R]) -> R:
        """Call Ray in its thread."""
        return await asyncio.wrap_future(self._calls.submit(work))

    def make(self, job: Job, away_from: str | None) -> Any:
        """Return the handle of a new actor, which Ray places when it finds room; for :meth:`run`.

        Args:
            job: what it trains.
            away_from: a node that is only used if no other one has room; None: all alike.

        """
        made_of = ActorSpec(
            job.spec,
            job.blobs.directory.absolute(),
            job.checkpoints.directory.absolute(),
            job.log_path.absolute(),
            "cuda" if self._gpus else "cpu",
            self._threads or torch.get_num_threads(),
        )
        strategy: Any = "SPREAD"
        if away_from is not None:
            others: Any = NotIn
            strategy = NodeLabelSchedulingStrategy({}, soft={"ray.io/node-id": others(away_from)})
        actor = ray.remote(_Actor).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            # Who goes on from where is the worker's business: it knows what the device was told.
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
        )
        return actor.remote(made_of)

    def end(self, actor: Any) -> None:
        """End an actor's process, whatever it does; for :meth:`run`."""
        ray.kill(actor)

    def ask(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begin a remote call in Ray's thread; return its future, which is not to be cancelled."""
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        outcome.set_running_or_notify_cancel()

        def begin() -> None:
            try:
                call().future().add_done_callback(lambda done: _copy(done, outcome))
            except BaseException as exc:
                outcome.set_exception(exc)

        self._calls.submit(begin)
        future = asyncio.wrap_future(outcome)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be given up
        return future


def _copy(done: concurrent.futures.Future[Any], outcome: concurrent.futures.Future[Any]) -> None:
    exc = done.exception()
    if exc is not None:
        outcome.set_exception(exc)
    else:
        outcome.set_result(done.result())
