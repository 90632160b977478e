"""Fetch the result of a session whose device has left: wait for training, pull and save the side network."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import ssl
import time
from collections.abc import Callable

from ..errors import ConfigError, DataError
from ..nn.saved import save_side
from ..options import Limits, Timeouts
from .client import Client, connect
from .pending import Pending, check_trained
from .progress import Progress
from .resume import SESSION_FILE
from .uplink import Uplink

__all__ = ["Pulled", "pull_async"]

PROGRESS_INTERVAL = 0.2  # seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A result that has been fetched.

    Attributes:
        session: the session's name, 32 hex digits.
        steps: optimizer steps.
        loss: mean training loss of the last epoch; None when nothing was trained.
        stopped: epoch after which early stopping ended training, and the one whose weights were kept; None
            when it did not.
        evaluation: figures of the held-out part, computed by the server; None without one.
        seconds: that fetching took, waiting included.
        output: directory of the result.

    """

    session: str
    steps: int
    loss: float | None
    stopped: tuple[int, int] | None
    evaluation: dict[str, float] | None
    seconds: float
    output: str


async def pull_async(
    output: pathlib.Path,
    *,
    server: str,
    token: str,
    tenant: str = "default",
    tls: ssl.SSLContext | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Pulled:
    """Wait until a session that was left, or whose device was killed, is trained, and save its side network.

    Works without torch. The server is told that the result has arrived only after it was saved.

    Args:
        output: the ``output`` of that run.
        server: ``mobillm://host:port``, or ``mobillms://host:port`` for TLS.
        token: the tenant's secret.
        tenant: whose token it is.
        tls: see :func:`mobillm.connect`.
        timeouts: bounds of every wait.
        limits: bounds of everything held.
        on_progress: called about five times a second; None calls nobody.

    Raises:
        DataError: no result is waited for in ``output``, or the server has lost a blob or a
            batch of the session.
        HandshakeError: the server refused the connection; the token is wrong, say.
        RemoteError: the server has no such session, or the session failed.
        ConnectionClosed: there is no server, or the connection was lost for too long.
        ModelError: ``output`` cannot be written, or training has ended without a finite loss.

    """
    start = time.monotonic()
    pending = await asyncio.to_thread(Pending.load, output)
    timeouts, limits = timeouts or Timeouts(), limits or Limits()

    async def dial() -> Client:
        return await connect(server, token=token, tenant=tenant, tls=tls, timeouts=timeouts, limits=limits)

    uplink = Uplink(
        dial, pending.config.spec, session=pending.session, keep=limits.queue, patience=timeouts.reconnect
    )
    reporter = asyncio.create_task(_report(uplink, start, on_progress or (lambda progress: None)))
    try:
        try:
            await uplink.start()
        except ConfigError as exc:
            raise DataError(
                f"the server has lost weights that session {pending.session.hex()} needs (SHA-256 "
                f"{exc.value}); have its owner restore them from a backup, or run 'mobillm finetune' again"
            ) from exc
        if uplink.received < pending.batches:  # it was restored from a backup, say
            raise DataError(
                f"the server has {uplink.received} of {pending.batches} batches of session "
                f"{pending.session.hex()}; run 'mobillm finetune' again, which sends the others"
            )
        await uplink.finish()  # again, in case the device was killed before its own had arrived
        finished = await uplink.wait_finished()
        check_trained(finished, output)
        evaluation = None
        if pending.heldout:
            evaluated = await uplink.evaluate()
            evaluation = {"samples": evaluated.samples, **evaluated.values}
        weights = await uplink.pull()
        await asyncio.to_thread(pending.check, output)
        await asyncio.to_thread(save_side, output, weights, pending.config)
        await uplink.confirm()
    finally:
        reporter.cancel()
        await asyncio.gather(reporter, return_exceptions=True)
        await uplink.close()
    Pending.clear(output)
    (output / SESSION_FILE).unlink(missing_ok=True)
    return Pulled(
        session=pending.session.hex(),
        steps=finished.steps,
        loss=finished.loss,
        stopped=pending.config.spec.stopped(finished.steps),
        evaluation=evaluation,
        seconds=time.monotonic() - start,
        output=str(output),
    )


async def _report(uplink: Uplink, start: float, on_progress: Callable[[Progress], None]) -> None:
    spec = uplink.spec
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        metrics = uplink.metrics
        on_progress(
            Progress(
                stage="train",
                step=metrics.step if metrics else 0,
                total_steps=(spec.batches or 0) * spec.epochs,
                epoch=metrics.epoch if metrics else 0,
                epochs=spec.epochs,
                loss=metrics.loss if metrics else None,
                queue_batches=metrics.queue if metrics else 0,
                elapsed=time.monotonic() - start,
            )
        )
