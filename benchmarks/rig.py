"""One real run, measured: this process is the device, the server and the link are processes of their own.

The device is pinned to one core, the server and the link to another, where there are two. All processes are
on one machine, so they share the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks import child
from benchmarks.link import Shape, relayed
from mobillm.device.client import Client, connect
from mobillm.device.pipeline import Pipeline, TokenBatch
from mobillm.device.progress import Watch
from mobillm.device.recording import Span, Timeline
from mobillm.device.timeline import Interval, Summary, busy_times, merge, summarize
from mobillm.device.trace import Trace
from mobillm.device.uplink import Uplink
from mobillm.formats import Format, row_size
from mobillm.nn.backbone import Backbone
from mobillm.options import Limits
from mobillm.spec import SessionSpec
from mobillm.transport import Address

__all__ = ["DEVICE_CORE", "SERVER_CORE", "Run", "Server", "measure", "server", "token_batches"]

_CORES = sorted(os.sched_getaffinity(0))
DEVICE_CORE, SERVER_CORE = _CORES[0], _CORES[-1]
STOP_SECONDS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A server that listens.

    Attributes:
        address: where.
        token: the tenant's secret.
        directory: of its files.

    """

    address: Address
    token: str
    directory: pathlib.Path


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run ``mobillm serve`` on its core for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="mobillm-rig-") as folder:
        place = pathlib.Path(folder)
        command = ["-m", "mobillm", "serve", "--listen", "127.0.0.1:0", "--threads", "1", "--json"]
        command += ["--data-dir", str(place / "server"), "--token-file", str(place / "token")]
        with open(place / "server.log", "wb") as log:
            process = child.start(command, stdout=subprocess.PIPE, stderr=log)
        try:
            os.sched_setaffinity(process.pid, {SERVER_CORE})
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {(place / 'server.log').read_text()}")
            token = (place / "token").read_text().strip()
            yield Server(Address.parse(json.loads(line)["address"]), token, place / "server")
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def token_batches(ids: Sequence[int], *, size: int, tokens: int, count: int) -> list[TokenBatch]:
    """Cut tokens into batches of one shape, so that all of them take the same time.

    Args:
        ids: tokens, used again from the start when there are too few.
        size: samples of a batch.
        tokens: of each sample.
        count: batches.

    """
    need = size * tokens * count
    ids = (list(ids) * (need // len(ids) + 1))[:need]
    samples = [ids[at : at + tokens] for at in range(0, need, tokens)]
    return [
        TokenBatch(samples[at : at + size], [float(number % 2) for number in range(size)])
        for at in range(0, len(samples), size)
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came out of a run.

    Attributes:
        wall: seconds from the first forward pass to the last training step of the first epoch.
        batch_seconds: seconds of a batch on the device in the steady state, from the end of the first forward
            pass to that of the last one.
        bytes_sent: over the connection.
        packed: bytes of packed tensors.
        link_busy: part of the link's steady time in which it was busy; None without a rate.
        goodput: packed bytes that it carried in that time over what its rate allows; None without a rate.
        summary: of the trace.
        waits: seconds that the device waited for room in its queue, its writer for credit, and for the link.
        busy: seconds of each stage in all; the link's are the emulator's where it has a rate.
        where: seconds of ``wall`` in which the device computed; in which it did not and the link was busy; in
            which neither was and the server trained; and the rest.
        values: of the evaluation on what was held out.
        loss: mean of the last epoch.

    """

    wall: float
    batch_seconds: float
    bytes_sent: int
    packed: int
    link_busy: float | None
    goodput: float | None
    summary: Summary
    waits: dict[str, float]
    busy: dict[str, float]
    where: dict[str, float]
    values: dict[str, float]
    loss: float | None

    @property
    def critical(self) -> str:
        """The stage that was busy for the longest time."""
        return max(self.busy, key=lambda stage: self.busy[stage])

    @property
    def efficiency(self) -> float:
        """The part of the steady state in which it was busy."""
        if self.critical == "link" and self.link_busy is not None:
            return self.link_busy
        return self.summary.busy[self.critical]


def measure(
    backbone: Backbone,
    batches: Sequence[TokenBatch],
    spec: SessionSpec,
    at: Server,
    shape: Shape,
    *,
    serial: bool = False,
) -> Run:
    """Send batches through the backbone to the server over a link, and wait until all is trained.

    Args:
        backbone: the frozen model.
        batches: what is sent.
        spec: what is trained.
        at: the server.
        shape: of the link; without rate and round trip there is no relay.
        serial: wait after each batch until the server has trained on it: no overlap between batches.

    """
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        address, stop = at.address, None
        if shape.rate or shape.rtt:
            address, stop = stack.enter_context(relayed(at.address, shape, core=SERVER_CORE))
        took = asyncio.run(_stream(backbone, batches, spec, address, at.token, serial=serial))
        links = [] if stop is None else stop()["connections"]
    return _run(took, links, shape, _packed(spec, batches))


@dataclasses.dataclass(slots=True)
class _Took:
    pipeline: Pipeline
    trace: Trace
    begun: float
    first_durable: float = 0.0
    durable: float = 0.0
    applied: float = 0.0
    bytes_sent: int = 0
    waits: dict[str, float] = dataclasses.field(default_factory=dict)
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    loss: float | None = None


async def _stream(
    backbone: Backbone,
    batches: Sequence[TokenBatch],
    spec: SessionSpec,
    address: Address,
    token: str,
    *,
    serial: bool,
) -> _Took:
    limits = Limits()

    async def dial() -> Client:
        return await connect(address, token=token)

    uplink = Uplink(dial, spec, keep=limits.queue, patience=0.0)
    await uplink.start()
    try:
        trace = Trace()
        pipeline = Pipeline(backbone, uplink, queue=limits.queue, trace=trace)
        Watch(uplink, pipeline, trace)
        took = _Took(pipeline, trace, time.monotonic())
        session = uplink.session

        async def first() -> None:
            await session.wait_durable(1)
            took.first_durable = time.monotonic()

        waiting = asyncio.create_task(first())
        try:
            for part in [[batch] for batch in batches] if serial else [list(batches)]:
                await pipeline.run(part)
                if serial:
                    await session.wait_applied()
            await uplink.wait_durable()
            took.durable = time.monotonic()
            await waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await session.wait_applied()
        took.applied = time.monotonic()
        connection = session.connection
        took.waits = {
            "room": pipeline.waited, "credit": connection.credit_wait, "link": connection.link_wait
        }  # fmt: skip
        took.bytes_sent = uplink.bytes_sent
        await uplink.finish()
        took.loss = (await uplink.wait_finished()).loss
        if any(batch.heldout for batch in batches):
            took.values = dict((await uplink.evaluate()).values)
    finally:
        await uplink.close()
    return took


def _run(took: _Took, links: Sequence[dict[str, Any]], shape: Shape, packed: int) -> Run:
    spans = tuple(sorted((Span(*span) for span in took.trace.spans), key=lambda span: span.start))
    timeline = Timeline(spans, took.trace.clock_error)
    link_busy = goodput = None
    times = busy_times(timeline)
    device = times["device"] = merge(took.pipeline.busy)
    if shape.rate:
        times["link"] = merge((start, end) for one in links for start, end in one["busy_up"])
        link_busy = _share(times["link"], took.first_durable, took.durable)
        # What TCP carried beyond the packed tensors: headers of frames, the handshake.
        carried = sum(one["up"] for one in links)
        goodput = link_busy * packed / carried
    begun = device[0][0]
    ends = [span.end for span in timeline.of("forward")]
    return Run(
        wall=took.applied - begun,
        batch_seconds=(ends[-1] - ends[0]) / max(1, len(ends) - 1),
        bytes_sent=took.bytes_sent,
        packed=packed,
        link_busy=link_busy,
        goodput=goodput,
        summary=summarize(timeline),
        waits=took.waits,
        busy={stage: sum(end - start for start, end in found) for stage, found in times.items()},
        where=_where([(stage, times[stage]) for stage in ("device", "link", "server")], begun, took.applied),
        values=took.values,
        loss=took.loss,
    )


def _where(stages: Sequence[tuple[str, list[Interval]]], start: float, end: float) -> dict[str, float]:
    """Give each moment to the first stage that was busy in it."""
    found: dict[str, float] = {}
    covered: list[Interval] = []
    before = 0.0
    for name, intervals in stages:
        inside = [(max(first, start), min(last, end)) for first, last in intervals]
        covered = merge([*covered, *((first, last) for first, last in inside if last > first)])
        total = sum(last - first for first, last in covered)
        found[name], before = total - before, total
    found["idle"] = max(0.0, end - start - before)
    return found


def _packed(spec: SessionSpec, batches: Sequence[TokenBatch]) -> int:
    """Return the bytes of all packed tensors."""
    width = row_size(Format.parse(spec.codec.format), spec.codec.block, spec.model.hidden_size)
    tokens = sum(len(sample) for batch in batches for sample in batch.input_ids)
    integers = sum(len(batch.input_ids) + len(batch.targets) for batch in batches)
    return tokens * width * len(spec.model.taps) + 4 * integers


def _share(intervals: Sequence[Interval], start: float, end: float) -> float:
    """Return the busy part of the time from ``start`` to the last busy moment before ``end``."""
    last = max((min(stop, end) for begin, stop in intervals if begin < end), default=end)
    if last <= start:  # all of it was on its way before the first batch was on the disk
        start = min(begin for begin, _ in intervals)
    inside = sum(max(0.0, min(stop, last) - max(begin, start)) for begin, stop in intervals)
    return inside / (last - start)
