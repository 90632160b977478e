"""Does a server stay as it is while everything around it breaks?

``python -m benchmarks.soak --minutes 30 --json soak.json``. Devices train one session after another for the
given time. Meanwhile, at random: a device is killed (its connection cut, its memory lost) and comes back with
its session's name; all devices are cut at once and come back together; the operator cancels a session; the
server is killed with SIGKILL and started again. The operator deletes sessions whose result was fetched, and
those whose device was killed before it knew their name.

The server tells its resident memory, open files and asyncio tasks four times a second. A line is fitted to
each of the three over all lives of the server, with a level of its own for each life, without the first tenth
of the time and the first 300 seconds of each life. The server runs with the settings of malloc that
``deploy/mobillm.service`` has: with its caches memory creeps up by about a hundred bytes a session.

Keys: ``rss.slope_per_minute``, ``files.slope_per_minute`` and ``tasks.slope_per_minute`` with ``.error`` (its
standard error) and ``.mean``; ``sessions``, ``batches``, ``kills_server``, ``kills_device``, ``storms``,
``cancelled``; ``ledger_equal``: sent == durable == applied in every session that was not cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import free_port, write_json
from mobillm.cli.control import request
from mobillm.device.client import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Uplink
from mobillm.errors import ConnectionClosed, ErrorCode, MobiLLMError, RemoteError
from mobillm.options import Timeouts
from mobillm.protocol import derive_key
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

TOKEN = "soak"
# Set as deploy/mobillm.service does; read when the server's process begins.
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}
WIDTH = 64
SAMPLES = 4
BATCHES = 30
DEVICES = 8
PACE = 0.02  # seconds between a device's batches, on average
# Seconds of each life of the server that do not count: devices come back within 30, the allocator takes new
# memory, ever more slowly, for the first 500 sessions.
SETTLE = 300.0
SERVER_LIFE = 600.0  # seconds between kills of the server, on average
TIMEOUTS = Timeouts(reconnect=None, keepalive=5.0, keepalive_reply=5.0, drain=1.0)
SPEC = SessionSpec(
    task="classification",
    outputs=2,
    model=ModelSpec(name="soak", hidden_size=WIDTH, layers=4, taps=(2, 4)),
    side=SideSpec(width=16, heads=2),
    optimizer=OptimizerSpec(lr=2e-3),
    epochs=2,
    batches=BATCHES,
)


def run_server(directory: pathlib.Path, port: int, figures: pathlib.Path, life: int) -> None:
    """Serve until killed; add a line of figures four times a second."""
    import torch

    from mobillm.server import serve

    async def main() -> None:
        torch.set_num_threads(1)
        keys = {"default": derive_key(TOKEN)}
        address = f"127.0.0.1:{port}"
        start = time.monotonic()
        async with serve(address, keys=keys, directory=directory, timeouts=TIMEOUTS):
            with figures.open("a") as file:
                while True:
                    await asyncio.sleep(0.25)
                    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
                    values = {
                        "life": life,
                        "age": time.monotonic() - start,
                        "time": time.monotonic(),
                        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
                        "files": len(os.listdir("/proc/self/fd")),
                        "tasks": len(asyncio.all_tasks()),
                    }
                    print(json.dumps(values), file=file, flush=True)

    asyncio.run(main())


@dataclasses.dataclass(slots=True)
class Ledger:
    """What happened.

    Attributes:
        sessions, batches: that went through to the end.
        unequal: sessions whose counts were not equal.
        kills_server, kills_device, storms, cancelled: events.

    """

    sessions: int = 0
    batches: int = 0
    unequal: int = 0
    kills_server: int = 0
    kills_device: int = 0
    storms: int = 0
    cancelled: int = 0


class Device:
    """One device: it trains session after session, and forgets all but the session's name when it is killed.

    Args:
        port: of the server.
        number: seeds its data.
        ledger: where it notes its sessions.

    """

    def __init__(self, port: int, number: int, ledger: Ledger) -> None:
        self._port = port
        self._ledger = ledger
        self._random = random.Random(number)
        self.session: bytes | None = None
        self.uplink: Uplink | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, or begin again after a kill."""
        self.task = asyncio.create_task(self._live())

    def cut(self) -> None:
        """Cut the connection without a word."""
        with contextlib.suppress(AssertionError):
            if self.uplink is not None:
                self.uplink.session.connection.abort()

    async def kill(self) -> None:
        """End without a word; only the session's name is left."""
        self.cut()
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def _dial(self) -> Client:
        return await connect(f"127.0.0.1:{self._port}", token=TOKEN, timeouts=TIMEOUTS)

    async def _live(self) -> None:
        while True:
            try:
                await self._train()
                self.session = None
            except RemoteError as exc:
                if exc.code != ErrorCode.SESSION_UNKNOWN:
                    await asyncio.sleep(exc.retry_after or 0.5)
                else:
                    self.session = None  # cancelled by the operator
            except (ConnectionClosed, TimeoutError, MobiLLMError):
                await asyncio.sleep(0.2)

    async def _train(self) -> None:
        uplink = Uplink(self._dial, SPEC, session=self.session, keep=1 << 20, patience=None)
        self.uplink = uplink
        try:
            await uplink.start()
            self.session = uplink.id
            for seq in range(uplink.received + 1, BATCHES + 1):
                rng = np.random.default_rng(seq)
                lengths = rng.integers(1, 12, SAMPLES).tolist()
                taps = [
                    rng.standard_normal((sum(lengths), WIDTH)).astype(np.float32) for _ in SPEC.model.taps
                ]
                batch = await uplink.begin(SAMPLES)
                for tensor, packed in pack_batch(SPEC, taps, lengths, rng.integers(0, 2, SAMPLES)).items():
                    await uplink.send(batch, tensor, packed)
                await uplink.commit(batch)
                await asyncio.sleep(self._random.uniform(0, 2 * PACE))
            await uplink.finish()
            await uplink.wait_finished()
            await uplink.pull()
            session = uplink.session
            await uplink.confirm()
            self._ledger.sessions += 1
            self._ledger.batches += session.sent
            if not session.sent == session.durable == session.applied == BATCHES:
                self._ledger.unequal += 1
        finally:
            self.uplink = None
            await uplink.close()


class Server:
    """The server's process, and the operator who looks after it."""

    def __init__(self, place: pathlib.Path, port: int) -> None:
        self.directory = place / "server"
        self.figures = place / "figures.jsonl"
        self._port = port
        self._life = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mobillm.server"])
        self._process = self._start()

    def _start(self) -> Any:
        self._life += 1
        arguments = (self.directory, self._port, self.figures, self._life)
        process = self._context.Process(target=run_server, args=arguments)
        process.start()
        return process

    def stop(self) -> None:
        """Kill it without a word."""
        self._process.kill()
        self._process.join()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.stop()
        self._process = self._start()

    def tidy(self, cancel: bool, known: set[bytes]) -> int:
        """Look after the sessions.

        Delete those that are done and those whose device has forgotten them; cancel one if asked to.

        Args:
            cancel: whether to.
            known: sessions that devices remember.

        Returns:
            how many were cancelled.

        """
        cancelled = 0
        with contextlib.suppress(MobiLLMError, TimeoutError):
            listed, _ = request(self.directory, "list")
            for one in listed["sessions"]:
                done = one["state"] == "finished" and one["log_bytes"] == 0 and not one["attached"]
                forgotten = not one["attached"] and bytes.fromhex(one["session"]) not in known
                if done or one["state"] == "cancelled":
                    request(self.directory, "delete", session=one["session"])
                elif forgotten and one["state"] == "receiving":
                    request(self.directory, "delete", session=one["session"], force=True)
                elif cancel and not cancelled and one["state"] in ("receiving", "training"):
                    request(self.directory, "cancel", session=one["session"])
                    cancelled += 1
        return cancelled


async def soak(server: Server, port: int, seconds: float, seed: int, progress: Progress) -> Ledger:
    """Let devices work for the time, and break things meanwhile."""
    ledger, generator = Ledger(), random.Random(seed)
    devices = [Device(port, number, ledger) for number in range(DEVICES)]
    for device in devices:
        device.start()
    bar = progress.add_task("soak", total=seconds)
    begun = time.monotonic()
    kill_server = begun + generator.uniform(0.5, 1.5) * SERVER_LIFE
    try:
        while (now := time.monotonic()) - begun < seconds:
            await asyncio.sleep(generator.uniform(0.2, 1.0))
            progress.update(bar, completed=now - begun)
            event = generator.random()
            if now > kill_server:
                await asyncio.to_thread(server.restart)
                ledger.kills_server += 1
                kill_server = now + generator.uniform(0.5, 1.5) * SERVER_LIFE
            elif event < 0.3:
                device = generator.choice(devices)
                await device.kill()
                ledger.kills_device += 1
                device.start()
            elif event < 0.35:
                for device in devices:
                    device.cut()
                ledger.storms += 1
            elif event < 0.6:
                known = {device.session for device in devices if device.session is not None}
                ledger.cancelled += await asyncio.to_thread(server.tidy, event < 0.42, known)
            gc.collect(0)
    finally:
        for device in devices:
            await device.kill()
    return ledger


def line(x: Any, y: Any, levels: int) -> tuple[float, float]:
    """Fit a line through points around so many levels' means; return its slope and the standard error."""
    spread = float((x * x).sum())
    found = float((x * y).sum() / spread)
    free = max(1, len(x) - levels - 1)
    return found, float(np.sqrt(((y - found * x) ** 2).sum() / free / spread))


def slope(rows: Sequence[dict[str, float]], key: str) -> dict[str, float]:
    """Fit a line with a level for each life; return slope per minute, its standard error, and the mean."""
    life = np.array([row["life"] for row in rows])
    x = np.array([row["time"] / 60 for row in rows])
    y = np.array([float(row[key]) for row in rows])
    mean = float(y.mean())
    for one in set(life):
        x[life == one] -= x[life == one].mean()
        y[life == one] -= y[life == one].mean()
    found, error = line(x, y, len(set(life)))
    return {"slope_per_minute": round(found, 4), "error": round(error, 4), "mean": round(mean, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, fit, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    logging.getLogger("mobillm").setLevel(logging.ERROR)  # losses are what this is about
    os.environ |= ALLOCATOR  # of the server's processes; this one has begun
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        server = Server(pathlib.Path(folder), port)
        try:
            ledger = asyncio.run(soak(server, port, 60 * args.minutes, args.seed, progress))
        finally:
            server.stop()
        rows = [json.loads(line) for line in server.figures.read_text().splitlines()]
    warm = rows[0]["time"] + 6 * args.minutes
    # Neighbours in time are not independent: one of them in five seconds counts.
    rows = [row for row in rows if row["age"] > SETTLE and row["time"] > warm][::20]
    figures: dict[str, Any] = {key: slope(rows, key) for key in ("rss", "files", "tasks")}
    figures |= dataclasses.asdict(ledger) | {"minutes": args.minutes, "ledger_equal": not ledger.unequal}
    Console().print_json(data=figures)
    write_json(args.json, figures)
    return 0 if figures["ledger_equal"] and ledger.sessions else 1


if __name__ == "__main__":
    sys.exit(main())
