"""What does a server give many devices at once, and what does its activation log cost?

``python -m benchmarks.server --json server.json --picture docs/images/server.png``. SmolLM2-135M reads
sentences of Python's manual once; its packed activations (4 bits, every fourth layer) are then sent by 1, 4,
16 and 64 sessions at once over real sockets to a server in a process of its own. The server gets the first
core, all devices together the second one.

Keys: ``aggregate_samples_per_s`` (64 sessions), ``fairness`` (progress of the slowest session over that of
the fastest one, when the first one has ended), ``peak_rss_bytes`` of the server and ``rss_budget_bytes``,
``p99_ack_seconds`` (from COMMIT to durable), ``growth.<n>.*`` the same for each number of sessions, and of
the log ``log_append_ratio`` (durable appends against plain writes with fdatasync of the same bytes) and
``log_read_ratio`` (reading all batches against plain reads of the same sizes), medians of pairs whose order
alternates, with ``.quartiles``; ``grouped_speedup``: 16 sessions of this shape trained together over one by
one (``benchmarks.grouped``). ``--group`` is that of ``mobillm serve``, for ``growth``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import multiprocessing
import os
import pathlib
import pydoc_data.topics
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console

from benchmarks import grouped
from benchmarks.harness import peak_bytes, write_json
from mobillm.codec import PackedTensor
from mobillm.device.client import connect
from mobillm.device.packing import pack_batch
from mobillm.device.session import Session
from mobillm.nn.backbone import Backbone
from mobillm.options import Limits, Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.server.batch import Batch
from mobillm.server.log import ActivationLog
from mobillm.spec import OptimizerSpec, SessionSpec, SideSpec

TOKEN = "benchmark"
SIZES = (1, 4, 16, 64)
SAMPLES = 4  # of a batch
DISTINCT = 8  # batches that were really computed; sessions send them in turn
STEPS = 320  # of all sessions together, but not fewer of each than
LEAST = 24
WINDOW = 512 << 10  # bytes of credit for each session: two batches, as training is the slowest stage
FRAME = 256 << 10
MEMORY = 64 << 20  # bytes of credit for all sessions
BASE = 512 << 20  # resident bytes that torch and the program may take
PER_SESSION = 16 << 20  # weights, moments, averages, one step's memory
REPEATS = 21
MIB = 1 << 20

Tensors = dict[int, PackedTensor]


def compute(seed: int = 0) -> tuple[SessionSpec, list[Tensors]]:
    """Run the backbone over real sentences; return the spec of a session and its packed batches."""
    backbone = Backbone.from_pretrained("smollm2", dtype="bfloat16", taps="every:4")
    text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    sentences = [one.strip() for one in re.split(r"[.:]\s", text) if 40 < len(one.strip()) < 120]
    spec = SessionSpec(
        task="classification",
        outputs=2,
        model=backbone.model_spec(),
        side=SideSpec(width=32, heads=4),
        optimizer=OptimizerSpec(schedule="constant"),
        seed=seed,
    )
    batches = []
    for number in range(DISTINCT):
        inputs = backbone.tokenize(sentences[number * SAMPLES : (number + 1) * SAMPLES], 64)
        taps: list[Any] = []
        keep = functools.partial(_keep, taps)
        backbone.forward(inputs, keep)
        lengths = [len(ids) for ids in inputs]
        batches.append(pack_batch(spec, taps, lengths, np.arange(SAMPLES) % 2))
    return spec, batches


def _keep(taps: list[Any], _: int, hidden: torch.Tensor) -> None:
    taps.append(hidden.float().numpy().copy())


def run_server(directory: pathlib.Path, pipe: Pipe, sessions: int, group: int) -> None:
    """Serve on the first core until told to stop; tell the address, and at the end the peak of memory."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    limits = Limits(queue=WINDOW, sessions=sessions + 1, frame=FRAME, chunk=FRAME // 4, memory=MEMORY)

    async def main() -> None:
        keys = {"default": derive_key(TOKEN)}
        timeouts = Timeouts(drain=1.0)
        async with serve(
            "127.0.0.1:0", keys=keys, directory=directory, limits=limits, timeouts=timeouts, group=group
        ) as server:
            pipe.send(str(server.address))
            await asyncio.to_thread(pipe.recv)
        pipe.send(peak_bytes())

    asyncio.run(main())


async def send(session: Session, batches: Sequence[Tensors], count: int, acks: list[float]) -> None:
    """Send a session's batches, and note how long each takes to be durable."""

    async def acknowledged(seq: int) -> None:
        start = time.perf_counter()
        await session.wait_durable(seq)
        acks.append(time.perf_counter() - start)

    waiting = []
    for number in range(count):
        batch = session.begin(SAMPLES)
        for tensor, packed in batches[number % len(batches)].items():
            await batch.send(tensor, packed)
        await batch.commit()
        waiting.append(asyncio.create_task(acknowledged(batch.seq)))
    await asyncio.gather(*waiting)
    await session.wait_applied(count)


async def drive(address: str, spec: SessionSpec, batches: Sequence[Tensors], sessions: int) -> dict[str, Any]:
    """Train all sessions at once; return their figures."""
    count = max(LEAST, STEPS // sessions)
    acks: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(sessions):
            client = await stack.enter_async_context(connect(address, token=TOKEN))
            opened.append(await client.open(spec))
        start = time.perf_counter()
        tasks = [asyncio.create_task(send(one, batches, count, acks)) for one in opened]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        progress = [one.applied for one in opened]
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - start
    return {
        "samples_per_s": round(sessions * count * SAMPLES / seconds, 1),
        "seconds_per_step": round(seconds / (sessions * count), 5),
        "fairness": round(min(progress) / max(progress), 3),
        "p99_ack_seconds": round(float(np.quantile(acks, 0.99)), 4),
        "median_ack_seconds": round(statistics.median(acks), 4),
    }


def measure(spec: SessionSpec, batches: Sequence[Tensors], sessions: int, group: int = 1) -> dict[str, Any]:
    """Run one number of sessions against a fresh server."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=run_server, args=(pathlib.Path(folder), there, sessions, group))
        process.start()
        try:
            address: str = here.recv()
            figures = asyncio.run(drive(address, spec, batches, sessions))
            here.send(None)
            figures["peak_rss_bytes"] = here.recv()
        finally:
            process.join(30)
            process.kill()
    return figures


def as_batch(tensors: Tensors, seq: int) -> Batch:
    """Return a batch as the server holds it."""
    headers = {number: packed.header for number, packed in tensors.items()}
    payloads: dict[int, bytes | memoryview] = {n: packed.payload for n, packed in tensors.items()}
    return Batch(seq, SAMPLES, False, headers, payloads)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _append(path: pathlib.Path, groups: Sequence[Sequence[Batch]]) -> float:
    log = ActivationLog(path)
    os.sync()  # what others have written is not waited for in the measurement

    def work() -> None:
        for group in groups:
            log.append(group)

    seconds = timed(work)
    log.close()
    return seconds


def _write_plain(path: pathlib.Path, groups: Sequence[bytes]) -> float:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.sync()

    def work() -> None:
        for group in groups:
            os.write(file, group)
            os.fdatasync(file)

    seconds = timed(work)
    os.close(file)
    return seconds


def _read_plain(path: pathlib.Path, sizes: Sequence[int]) -> float:
    """Read the same bytes into objects of the same sizes, one after the other."""
    with open(path, "rb", buffering=0) as file:
        return timed(lambda: [len(file.read(size)) for size in sizes])


def _read_log(path: pathlib.Path) -> float:
    """Copy every payload, as joining samples for a later epoch does."""
    log = ActivationLog(path)
    seconds = timed(
        lambda: [len(bytes(part)) for entry in log.entries for part in log.read(entry).payloads.values()]
    )
    log.close()
    return seconds


def measure_log(batches: Sequence[Tensors]) -> dict[str, Any]:
    """Append and read against plain writes and reads of the same bytes, in pairs of alternating order."""
    group, groups = 16, 8
    wanted = [
        [as_batch(batches[(g * group + i) % DISTINCT], g * group + i + 1) for i in range(group)]
        for g in range(groups)
    ]
    pieces = [header.size for one in wanted for batch in one for header in batch.headers.values()]
    found: dict[str, list[float]] = {name: [] for name in ("append", "write", "read_log", "read")}
    size = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("MOBILLM_BENCH_DIR")) as folder:
        log, plain = pathlib.Path(folder, "log"), pathlib.Path(folder, "plain")
        _append(log, wanted)
        data = log.read_bytes()
        size = len(data)
        parts = [data[i * size // groups : (i + 1) * size // groups] for i in range(groups)]
        for number in range(REPEATS):
            log.unlink()
            plain.unlink(missing_ok=True)
            work: list[tuple[str, Callable[[], float]]] = [
                ("append", functools.partial(_append, log, wanted)),
                ("write", functools.partial(_write_plain, plain, parts)),
                ("read_log", functools.partial(_read_log, log)),
                ("read", functools.partial(_read_plain, plain, pieces)),
            ]
            order = (0, 1, 2, 3) if number % 2 else (1, 0, 3, 2)
            for name, measured in (work[index] for index in order):
                found[name].append(measured())
    return {
        **_ratio("log_append_ratio", found["write"], found["append"]),
        **_ratio("log_read_ratio", found["read"], found["read_log"]),
        "log_append_bytes_per_s": round(size / statistics.median(found["append"])),
        "log_read_bytes_per_s": round(size / statistics.median(found["read_log"])),
    }


def _ratio(name: str, plain: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """Return the median of the pairs' ratios, and their quartiles."""
    ratios = [one / other for one, other in zip(plain, own, strict=True)]
    quartiles = [round(float(value), 3) for value in np.quantile(ratios, (0.25, 0.75))]
    return {name: round(statistics.median(ratios), 3), f"{name}.quartiles": quartiles}


def measure_grouped(spec: SessionSpec) -> float:
    """Train 16 sessions of this shape together and one by one, in a process without the server's memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, torch.set_num_threads, (1,)) as pool:
        arguments = SAMPLES, spec.side.width, len(spec.model.taps), (grouped.SESSIONS,)
        found: float = pool.apply(grouped.measure, arguments)["grouped_speedup"]
    return found


def draw(growth: dict[int, dict[str, Any]], path: pathlib.Path) -> None:
    """Draw cost against the number of sessions."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    for axis, key, name, scale in (
        (axes[0], "samples_per_s", "samples/s, all sessions", 1.0),
        (axes[1], "p99_ack_seconds", "p99 of the durable ack, ms", 1e3),
        (axes[2], "peak_rss_bytes", "server's peak memory, MiB", 1 / MIB),
    ):
        axis.plot(list(growth), [figures[key] * scale for figures in growth.values()], marker="o")
        axis.set(xlabel="sessions at once", title=name, ylim=(0, None), xscale="log")
        axis.set_xticks(list(growth), [str(n) for n in growth])
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def sizes(text: str) -> Iterator[int]:
    """Read numbers of sessions."""
    return (int(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.server", description=__doc__)
    parser.add_argument("--sessions", type=lambda text: tuple(sizes(text)), default=SIZES, metavar="N,...")
    parser.add_argument("--group", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--picture", type=pathlib.Path, metavar="PNG")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with console.status("computing real activations"):
        spec, batches = compute()
    growth: dict[int, dict[str, Any]] = {}
    for number in args.sessions:
        with console.status(f"{number} sessions"):
            growth[number] = measure(spec, batches, number, args.group)
        console.print(number, growth[number])
    last = growth[max(growth)]
    figures = {
        "sessions": max(growth),
        "group": args.group,
        "aggregate_samples_per_s": last["samples_per_s"],
        "fairness": last["fairness"],
        "peak_rss_bytes": last["peak_rss_bytes"],
        "rss_budget_bytes": BASE + MEMORY + max(growth) * PER_SESSION,
        "p99_ack_seconds": last["p99_ack_seconds"],
        "batch_bytes": sum(packed.header.size for packed in batches[0].values()),
        "growth": growth,
        "grouped_speedup": measure_grouped(spec),
        **measure_log(batches),
    }
    Console().print_json(data=figures)
    write_json(args.json, figures)
    if args.picture is not None:
        draw(growth, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
