"""Does a trainer that stalls make memory grow, on the server or on the device?

``python -m benchmarks.backpressure --json backpressure.json --picture backpressure.png``. A device sends
batches as fast as it can to a server whose training thread is stopped for ``--stall`` seconds and then
goes on. The resident memory of both processes is read 20 times a second. What the device may send is
bounded by the server's credit (``Limits.queue`` bytes, ``Limits.batches`` batches), what it keeps by
``--keep``.

Keys: ``server_growth_bytes`` and ``device_growth_bytes``: the most that was in use during the stall
beyond the most before it; ``server_late_growth_bytes`` and ``device_late_growth_bytes``: the same for the
second half of the stall against the first; ``credit_bytes``: the bound; ``unbounded_bytes``: what a
device that is not held back would have produced meanwhile; ``batches_lost``: batches that were not
trained on in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from unittest import mock

import matplotlib as mpl
import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.harness import write_json
from mobillm.device.client import connect
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Uplink
from mobillm.options import Limits, Timeouts
from mobillm.protocol import derive_key
from mobillm.spec import ModelSpec, SessionSpec, SideSpec

mpl.use("Agg")

TOKEN = "backpressure"
TIMEOUTS = Timeouts(drain=2.0)
LIMITS = Limits()
WIDTH, TOKENS, SAMPLES = 1024, 1024, 16
SPEC = SessionSpec(
    task="classification",
    outputs=2,
    model=ModelSpec(name="backpressure", hidden_size=WIDTH, layers=8, taps=(2, 4, 6, 8)),
    side=SideSpec(width=16, heads=2),
    batches=100_000,
)
INTERVAL = 0.05  # seconds between samples
SETTLED = 5  # batches that are trained before anything is measured


class Sample(NamedTuple):
    """What was seen at one moment.

    Attributes:
        time: seconds since the device's first batch.
        server, device: resident bytes.
        sent: batches that the device has sent whole.

    """

    time: float
    server: int
    device: int
    sent: int


def run_server(pipe: Connection, directory: pathlib.Path) -> None:
    """Serve until SIGTERM; SIGUSR1 stops the training thread at its next batch, SIGUSR2 lets it go on."""
    import torch

    from mobillm.server import serve
    from mobillm.server.workers import Workers

    going = threading.Event()
    going.set()
    signal.signal(signal.SIGUSR1, lambda *_: going.clear())
    signal.signal(signal.SIGUSR2, lambda *_: going.set())
    train = Workers.train

    async def stalled(workers: Workers, owner: str, work: Callable[[], Any]) -> Any:
        def after() -> Any:
            going.wait()
            return work()

        return await train(workers, owner, after)

    async def main() -> None:
        torch.set_num_threads(1)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        keys = {"default": derive_key(TOKEN)}
        async with serve("127.0.0.1:0", keys=keys, directory=directory, timeouts=TIMEOUTS) as server:
            pipe.send(str(server.address))
            await stop.wait()

    with mock.patch.object(Workers, "train", stalled):
        asyncio.run(main())


def run_device(pipe: Connection, address: str, keep: int, sent: Any, end: Any) -> None:
    """Pack and send batches until ``end`` is set; tell how many were sent and how many applied."""
    rng = np.random.default_rng(0)
    lengths = [TOKENS // SAMPLES] * SAMPLES
    targets = rng.integers(0, 2, SAMPLES)
    taps = [rng.standard_normal((TOKENS, WIDTH)).astype(np.float32) for _ in SPEC.model.taps]

    async def main() -> None:
        async def dial() -> Any:
            return await connect(address, token=TOKEN, timeouts=TIMEOUTS)

        uplink = Uplink(dial, SPEC, keep=keep, patience=0)
        await uplink.start()
        seconds: list[float] = []
        size = 0
        for seq in itertools.count(1):
            start = time.perf_counter()
            tensors = await asyncio.to_thread(pack_batch, SPEC, taps, lengths, targets)
            seconds.append(time.perf_counter() - start)
            size = sum(packed.header.size for packed in tensors.values())
            batch = await uplink.begin(SAMPLES)
            for tensor, packed in tensors.items():
                await uplink.send(batch, tensor, packed)
            await uplink.commit(batch)
            sent.value = seq
            if seq <= SETTLED:
                await uplink.session.wait_applied()  # training keeps up so far
            if end.is_set():
                break
        await uplink.session.wait_applied()
        pipe.send((seq, uplink.session.applied, size, float(np.median(seconds))))
        await uplink.close()

    asyncio.run(main())


def watch(server: Any, device: Any, sent: Any, end: Any, stall: float) -> tuple[list[Sample], float]:
    """Run the three parts of the story; return the samples and when the stall began."""
    usage = psutil.Process(server.pid), psutil.Process(device.pid)
    start = time.monotonic()
    samples: list[Sample] = []

    def sample_until(done: Callable[[], bool]) -> None:
        while not done():
            resident = [int(process.memory_info().rss) for process in usage]
            samples.append(Sample(time.monotonic() - start, resident[0], resident[1], sent.value))
            time.sleep(INTERVAL)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training keeps up", total=3)
        sample_until(lambda: sent.value >= SETTLED or not device.is_alive())
        progress.update(task, advance=1, description="the trainer stalls")
        usage[0].send_signal(signal.SIGUSR1)
        stalled = time.monotonic()
        sample_until(lambda: time.monotonic() - stalled > stall)
        progress.update(task, advance=1, description="the trainer goes on")
        usage[0].send_signal(signal.SIGUSR2)
        end.set()
        resumed = time.monotonic()
        sample_until(lambda: time.monotonic() - resumed > 1.0)
    return samples, stalled - start


def figures_of(samples: Sequence[Sample], stalled: float, stall: float) -> dict[str, Any]:
    """Return how far memory grew while training stood still."""
    before = [sample for sample in samples if sample.time < stalled]
    during = [sample for sample in samples if stalled <= sample.time < stalled + stall]
    early = [sample for sample in during if sample.time < stalled + stall / 2]
    late = [sample for sample in during if sample.time >= stalled + stall / 2]
    figures: dict[str, Any] = {}
    for side in ("server", "device"):
        most = {
            name: max(getattr(s, side) for s in part)
            for name, part in {"before": before, "during": during, "early": early, "late": late}.items()
        }
        figures[f"{side}_growth_bytes"] = most["during"] - most["before"]
        figures[f"{side}_late_growth_bytes"] = most["late"] - most["early"]
        figures[f"{side}_resident_bytes"] = most["during"]
    figures["batches_sent_while_stalled"] = during[-1].sent - during[0].sent
    return figures


def draw(path: pathlib.Path, samples: Sequence[Sample], stalled: float, stall: float) -> None:
    """Draw resident memory and batches sent over time."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    times = [sample.time for sample in samples]
    axes.plot(times, [s.server / 2**20 for s in samples], label="server, MiB resident")
    axes.plot(times, [s.device / 2**20 for s in samples], label="device, MiB resident")
    axes.plot(times, [s.sent for s in samples], label="batches sent", linestyle="dotted")
    axes.axvspan(stalled, stalled + stall, alpha=0.15, color="tab:red", label="training stands still")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center right", fontsize="small")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write the keys; fail if memory went on growing or a batch was lost."""
    parser = argparse.ArgumentParser(prog="benchmarks.backpressure", description=__doc__)
    parser.add_argument("--stall", type=float, default=15.0, help="seconds (default: %(default)s)")
    parser.add_argument("--keep", type=int, default=LIMITS.queue, help="bytes that the device may keep")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--picture", type=pathlib.Path, metavar="F", help="PNG of memory over time")
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    sent, end = context.Value("q", 0), context.Event()
    with tempfile.TemporaryDirectory() as folder:
        server = context.Process(target=run_server, args=(theirs, pathlib.Path(folder)))
        server.start()
        address = ours.recv()
        device = context.Process(target=run_device, args=(theirs, address, args.keep, sent, end))
        device.start()
        try:
            samples, stalled = watch(server, device, sent, end, args.stall)
            batches, applied, size, seconds = ours.recv()
            device.join()
        finally:
            device.kill()
            server.terminate()
            server.join()
    figures = figures_of(samples, stalled, args.stall) | {
        "stall_seconds": args.stall,
        "batch_bytes": size,
        "credit_bytes": LIMITS.queue,
        "unbounded_bytes": round(args.stall / seconds) * size,
        "batches_lost": batches - applied,
    }
    table = Table(
        "side", "before the stall", "most during it", "second half against first", title="MiB resident"
    )
    for side in ("server", "device"):
        most, grown = figures[f"{side}_resident_bytes"], figures[f"{side}_growth_bytes"]
        late = figures[f"{side}_late_growth_bytes"]
        table.add_row(side, *(f"{value / 2**20:.1f}" for value in (most - grown, most, late)))
    Console().print(table)
    Console().print_json(data=figures)
    write_json(args.json, figures)
    if args.picture is not None:
        draw(args.picture, samples, stalled, args.stall)
    return 0 if figures["batches_lost"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
