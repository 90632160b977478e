"""Does the link hold the device up when it becomes slower, and when the width of taps adapts to it?

``python -m benchmarks.adaptive --json adaptive.json --picture docs/images/adaptive_width.png``. Two devices
of different speed send to a server through a relay whose rate goes from 100 to 10, 50 and 2 Mbit/s. Each
sends once with the widths from 2 to 8 bits, once with 8 and once with 4 bits; all at the same time, as
computing is simulated by waiting: hidden states of 8 taps and 576 channels, so many tokens a second.
Pipeline, protocol, server and training are the real ones.

Keys: ``<device>.<width>.<rate>mbit.waited`` (part of the phase in which the compute thread waited for the
link), ``.bits`` (mean), ``<device>.<rate>mbit.fits`` (the largest width whose bytes the link carries as fast
as they are computed; 0: none) and ``<device>.<width>.flush`` (seconds of sending after the last tap).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pathlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.harness import write_json
from mobillm.device.client import Client, connect
from mobillm.device.pipeline import Pipeline, TokenBatch
from mobillm.device.trace import Trace
from mobillm.device.uplink import Uplink
from mobillm.formats import Format, row_size
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec

TOKEN = "adaptive"
RATES = (100, 10, 50, 2)  # Mbit/s
DEVICES = {"phone": 160, "laptop": 600}  # tokens a second
WIDTHS = {"2 to 8 bits": (2, 3, 4, 5, 6, 7, 8), "8 bits": (8,), "4 bits": (4,)}
TAPS, CHANNELS = 8, 576
SAMPLES, LENGTH = 8, 16
QUEUE = 1 << 20
MBIT = 125_000  # bytes
TICK = 0.1  # seconds between samples of the picture


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What is drawn: the time, the width, the link's rate as measured, and bytes that wait."""

    at: float
    bits: int
    rate: float
    waiting: int


@dataclasses.dataclass(slots=True)
class Run:
    """One device with one choice of widths, and how it went."""

    device: str
    width: str
    samples: list[Sample] = dataclasses.field(default_factory=list)
    busy: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    flush: float = 0.0

    def waited(self, start: float, end: float) -> float:
        """Return the part of a time in which the compute thread did not compute."""
        computed = sum(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in self.busy)
        return 1.0 - computed / (end - start)

    def bits(self, start: float, end: float) -> float:
        """Return the mean width during a time."""
        return statistics.mean(sample.bits for sample in self.samples if start <= sample.at < end)


class Relay:
    """Pass bytes on to a port: towards the server no faster than a rate that can be changed."""

    def __init__(self, port: int, rate: Callable[[], float]) -> None:
        self._port = port
        self._rate = rate

    async def start(self) -> tuple[asyncio.Server, int]:
        """Return the listening server and its port."""
        # Small buffers, or the system would hide the link behind seconds of data.
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 13)
        return server, listener.getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pass(reader, up_writer, limited=True), self._pass(up_reader, writer))
        except OSError:
            pass  # one of the two ends is gone; the other one sees it too
        finally:
            writer.close()
            up_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool = False
    ) -> None:
        free = time.monotonic()
        while data := await reader.read(1 << 12):
            if limited:
                free = max(free, time.monotonic() - 0.005) + len(data) / self._rate()
                await asyncio.sleep(max(0.0, free - time.monotonic()))
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Phone:
    """Stands for a backbone: it takes its time for each tap, and gives hidden states that never change."""

    span = 0  # one batch at a time

    def __init__(self, tokens_per_second: float) -> None:
        generator = torch.Generator().manual_seed(0)
        scales = torch.exp(2 * torch.randn(CHANNELS, generator=generator))
        self._hidden = torch.randn(SAMPLES * LENGTH, CHANNELS, generator=generator) * scales
        self._seconds = len(self._hidden) / tokens_per_second / TAPS
        self._due: float | None = None

    def forward_all(
        self, batches: Sequence[object], on_tap: Callable[[int, int, torch.Tensor], None]
    ) -> None:
        """Compute all taps of the batches; packing is part of the time, waiting for the link is not."""
        for number in range(len(batches)):
            for tap in range(TAPS):
                time.sleep(self._seconds)
                on_tap(number, tap, self._hidden)


def need(fmt: Format, device: str) -> float:
    """Return the Mbit/s that a device needs for a format."""
    return row_size(fmt, 64, CHANNELS) * TAPS * DEVICES[device] / MBIT


def fits(rate: float, device: str) -> int:
    """Return the largest width that a link of ``rate`` Mbit/s carries; 0 when there is none."""
    carried = [bits for bits in range(2, 9) if need(Format.parse(f"asym{bits}"), device) <= rate]
    return max(carried, default=0)


def session_spec(bits: tuple[int, ...]) -> SessionSpec:
    """Return the session of one run."""
    several = bits if len(bits) > 1 else ()
    return SessionSpec(
        task="classification",
        outputs=2,
        model=ModelSpec(name="phone", hidden_size=CHANNELS, layers=TAPS, taps=tuple(range(1, TAPS + 1))),
        side=SideSpec(kind="head"),  # the server must not be what holds a device up
        optimizer=OptimizerSpec(schedule="constant"),
        codec=CodecSpec(format="asym4" if several else f"asym{bits[0]}", bits=several),
    )


def batches(until: float) -> Iterator[TokenBatch]:
    """Yield the same batch until a time of the monotonic clock."""
    while time.monotonic() < until:
        yield TokenBatch([[1] * LENGTH] * SAMPLES, [0, 1] * (SAMPLES // 2))


async def send(run: Run, port: int, start: float, until: float) -> None:
    """Send until a time, and note how it went."""

    async def dial() -> Client:
        return await connect(f"127.0.0.1:{port}", token=TOKEN)

    uplink = Uplink(dial, session_spec(WIDTHS[run.width]), keep=1 << 26, patience=0)
    await uplink.start()
    phone: Any = Phone(DEVICES[run.device])
    pipeline = Pipeline(phone, uplink, queue=QUEUE, trace=Trace())

    async def watch() -> None:
        while True:
            width, connection = pipeline.width, uplink.session.connection
            bits = width.format.bits if width else WIDTHS[run.width][0]
            rate = width.rate if width and width.rate else 0.0
            waiting = pipeline.held + connection.unsent
            run.samples.append(Sample(time.monotonic() - start, bits, rate / MBIT, waiting))
            await asyncio.sleep(TICK)

    watcher = asyncio.create_task(watch())
    try:
        await pipeline.run(batches(until))
        while uplink.session.connection.unsent:
            await asyncio.sleep(0.01)
        run.flush = time.monotonic() - pipeline.busy[-1][1]
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    run.busy = [(begin - start, end - start) for begin, end in pipeline.busy]
    await uplink.close()


async def measure(seconds: float, progress: Progress) -> list[Run]:
    """Make all runs at the same time, each over its own link; ``seconds`` for each rate."""
    runs = [Run(device, width) for device in DEVICES for width in WIDTHS]
    rate = RATES[0]
    task = progress.add_task("sending", total=len(RATES) * seconds)
    with tempfile.TemporaryDirectory() as place:
        keys = {"default": derive_key(TOKEN)}
        async with serve("127.0.0.1:0", keys=keys, directory=pathlib.Path(place)) as server:
            relay = Relay(server.address.port, lambda: rate * MBIT)
            listener, port = await relay.start()
            now = time.monotonic()
            await send(Run("laptop", "4 bits"), port, now, now + 0.5)  # whatever is made on first use
            start = time.monotonic()
            until = start + len(RATES) * seconds
            sending = asyncio.gather(*(send(run, port, start, until) for run in runs))
            while not sending.done():
                passed = time.monotonic() - start
                rate = RATES[min(len(RATES) - 1, int(passed / seconds))]
                progress.update(task, completed=passed)
                await asyncio.sleep(0.05)
            await sending
            listener.close()
            await listener.wait_closed()
    return runs


def draw(runs: Sequence[Run], seconds: float, path: pathlib.Path) -> None:
    """Draw the link, the width and what waits, over time."""
    chosen = [run for run in runs if run.width.startswith("2")]
    figure, grid = plt.subplots(
        3, len(chosen), figsize=(11, 6.5), sharex=True, sharey="row", layout="constrained"
    )
    for column, run in zip(grid.T, chosen, strict=True):
        link, width, queue = column
        times = [sample.at for sample in run.samples]
        link.step(
            [index * seconds for index in range(len(RATES) + 1)], [*RATES, RATES[-1]], where="post",
            color="black", label="the link",
        )  # fmt: skip
        known = [(sample.at, sample.rate) for sample in run.samples if sample.rate]
        link.plot(*zip(*known, strict=True), color="tab:orange", linewidth=1, label="as the device takes it")
        for bits, style in ((8, "--"), (2, ":")):
            figure_ = need(Format.parse(f"asym{bits}"), run.device)
            link.axhline(
                figure_, color="tab:gray", linestyle=style, linewidth=1, label=f"needed for {bits} bits"
            )
        link.set_yscale("log")
        link.set_title(f"{run.device}: {DEVICES[run.device]} tokens a second")
        width.step(times, [sample.bits for sample in run.samples], color="tab:blue", where="post")
        queue.plot(times, [sample.waiting / 1024 for sample in run.samples], color="tab:green")
        queue.set_xlabel("seconds")
        for index in range(len(RATES)):
            waited = run.waited(index * seconds, (index + 1) * seconds)
            width.text((index + 0.5) * seconds, 8.4, f"{waited:.0%} waiting", ha="center", fontsize=9)
        width.set_ylim(1.5, 9.2)
        for axes in column:
            axes.grid(visible=True, alpha=0.25)
    for axes, label in zip(grid[:, 0], ("Mbit/s", "bits", "KiB that wait"), strict=True):
        axes.set_ylabel(label)
    grid[0, -1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and draw."""
    parser = argparse.ArgumentParser(prog="benchmarks.adaptive", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--picture", type=pathlib.Path, metavar="P")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each rate (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console()
    with Progress(console=console) as progress:
        runs = asyncio.run(measure(args.seconds, progress))
    table = Table(title="part of the time in which the compute thread waits for the link")
    for column in ("device", "width", *(f"{rate} Mbit/s" for rate in RATES), "flush"):
        table.add_column(column)
    figures: dict[str, object] = {"seconds": args.seconds}
    for device in DEVICES:
        figures |= {f"{device}.{rate}mbit.fits": fits(rate, device) for rate in RATES}
    for run in runs:
        cells = []
        name = f"{run.device}.{run.width.replace(' ', '')}"
        for index, rate in enumerate(RATES):
            span = index * args.seconds, (index + 1) * args.seconds
            waited, bits = run.waited(*span), run.bits(*span)
            figures |= {f"{name}.{rate}mbit.waited": waited, f"{name}.{rate}mbit.bits": bits}
            cells.append(f"{waited:.1%} at {bits:.1f} bits (of {fits(rate, run.device)})")
        figures[f"{name}.flush"] = run.flush
        table.add_row(run.device, run.width, *cells, f"{run.flush:.1f} s")
    console.print(table)
    write_json(args.json, figures)
    if args.picture is not None:
        draw(runs, args.seconds, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
