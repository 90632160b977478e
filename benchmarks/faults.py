"""Is a session trained exactly once when the server and the device are killed over and over?

``python -m benchmarks.faults --kills 100 --json faults.json``. One session is trained while its server and
its device, each a process, are killed with SIGKILL at random moments, ``--kills`` times each, and started
again. The weights must be bit-equal to those of an undisturbed run, and the server's log must hold every
batch once. Keys: ``kills_server``, ``kills_device``, ``bit_equal``, ``applied_twice``, ``lost``.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import free_port, write_json
from mobillm.device.client import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.device.resume import Resume
from mobillm.device.uplink import Uplink
from mobillm.errors import ConnectionClosed
from mobillm.options import Timeouts
from mobillm.protocol import derive_key
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

TOKEN = "faults"
WIDTH = 64
SAMPLES = 8
EPOCHS = 2
TIMEOUTS = Timeouts(reconnect=None, keepalive=1.0, keepalive_reply=2.0, drain=0.5)


def session_spec(batches: int) -> SessionSpec:
    """Return the session that is trained."""
    return SessionSpec(
        task="classification",
        outputs=2,
        model=ModelSpec(name="faults", hidden_size=WIDTH, layers=4, taps=(2, 4)),
        side=SideSpec(width=16, heads=2),
        optimizer=OptimizerSpec(lr=2e-3),
        epochs=EPOCHS,
        batches=batches,
    )


def serve(directory: pathlib.Path, port: int) -> None:
    """Run a server until it is killed."""
    import torch

    from mobillm.server import serve as open_server

    async def main() -> None:
        torch.set_num_threads(1)
        keys = {"default": derive_key(TOKEN)}
        address = f"127.0.0.1:{port}"
        async with open_server(address, keys=keys, directory=directory, timeouts=TIMEOUTS):
            await asyncio.Event().wait()

    asyncio.run(main())


def run_device(directory: pathlib.Path, port: int, batches: int, pace: float) -> None:
    """Send what the server lacks of the session, wait for the end and save the weights."""
    spec = session_spec(batches)
    resume = Resume(directory / "session.json", "faults")

    async def dial() -> Client:
        return await connect(f"127.0.0.1:{port}", token=TOKEN, timeouts=TIMEOUTS)

    async def main() -> None:
        unfinished = resume.load(spec)
        uplink = Uplink(
            dial,
            spec,
            session=None if unfinished is None else unfinished.session,
            equalizers=None if unfinished is None else unfinished.equalizers,
            keep=1 << 22,
            patience=None,
        )
        while True:
            try:
                await uplink.start()
                break
            except (ConnectionClosed, TimeoutError):
                await asyncio.sleep(0.1)
        resume.save(uplink.id, spec, uplink.session.equalizers)
        uplink.on_equalizers = functools.partial(resume.save, uplink.id, spec)
        for seq in range(uplink.received + 1, batches + 1):
            rng = np.random.default_rng(seq)
            lengths = rng.integers(1, 12, SAMPLES).tolist()
            taps = [rng.standard_normal((sum(lengths), WIDTH)).astype(np.float32) for _ in spec.model.taps]
            batch = await uplink.begin(SAMPLES)
            targets = rng.integers(0, 2, SAMPLES)
            for tensor, packed in pack_batch(spec, taps, lengths, targets, uplink.session.packer).items():
                await uplink.send(batch, tensor, packed)
                await asyncio.sleep(pace * rng.random())
            await uplink.commit(batch)
        await uplink.finish()
        await uplink.wait_finished()
        weights = await uplink.pull()
        await uplink.close()
        (directory / "weights.new").write_bytes(weights)
        os.replace(directory / "weights.new", directory / "weights")

    asyncio.run(main())


class Victim:
    """A process that is killed and started again.

    Args:
        start: makes it.

    Attributes:
        kills: how often it was killed while it ran.

    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self.process = start()
        self.kills = 0

    def kill(self) -> None:
        """Kill it without a warning and start it again."""
        if self.process.is_alive():
            self.kills += 1
        self.stop()
        self.process = self._start()

    def stop(self) -> None:
        """Kill it for good."""
        self.process.kill()
        self.process.join()


def train(
    place: pathlib.Path, batches: int, kills: int, seed: int, advance: Callable[[], None]
) -> tuple[int, int]:
    """Train the session with ``kills`` kills of each side; return how many there were."""
    place.mkdir()
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mobillm.server", "mobillm.device.uplink"])

    def begin(target: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    server = Victim(lambda: begin(serve, place / "server", port))
    device = Victim(lambda: begin(run_device, place, port, batches, 0.02 if kills else 0.0))
    generator = random.Random(seed)
    try:
        while server.kills < kills or device.kills < kills:
            time.sleep(generator.uniform(0.02, 1.2))
            victim = server if server.kills < kills and generator.random() < 0.5 else device
            if victim.kills < kills:
                victim.kill()
                advance()
            if (place / "weights").exists():
                raise RuntimeError("the session ended before all kills were done; give more --batches")
        while not (place / "weights").exists():
            if not device.process.is_alive() and not (place / "weights").exists():
                device.kill()
            time.sleep(0.1)
    finally:
        device.stop()
        server.stop()
    return server.kills, device.kills


def ledger(place: pathlib.Path, batches: int) -> tuple[int, int]:
    """Return how many batches the server's log holds twice, and how many it lacks."""
    from mobillm.server.log import ActivationLog

    (path,) = (place / "server" / "sessions").glob("*/activations.log")
    log = ActivationLog(path)
    seen = [entry.seq for entry in log.entries]
    log.close()
    return len(seen) - len(set(seen)), len(set(range(1, batches + 1)) - set(seen))


def main(argv: Sequence[str] | None = None) -> int:
    """Train twice, with and without kills, and compare."""
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--batches", type=int, help="default: 20 for each kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    batches = args.batches or 20 * max(1, args.kills)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        place = pathlib.Path(folder)
        quiet = progress.add_task("undisturbed run", total=1)
        train(place / "quiet", batches, 0, args.seed, lambda: None)
        progress.advance(quiet)
        task = progress.add_task("kills of both sides", total=2 * args.kills)
        start = time.monotonic()
        kills = train(place / "killed", batches, args.kills, args.seed, lambda: progress.advance(task))
        seconds = time.monotonic() - start
        digests = [
            hashlib.sha256((place / name / "weights").read_bytes()).hexdigest()
            for name in ("quiet", "killed")
        ]
        twice, lost = ledger(place / "killed", batches)
    figures = {
        "kills_server": kills[0],
        "kills_device": kills[1],
        "bit_equal": digests[0] == digests[1],
        "applied_twice": twice,
        "lost": lost,
        "batches": batches,
        "epochs": EPOCHS,
        "seconds": round(seconds, 1),
        "weights_sha256": digests[1],
    }
    Console().print_json(data=figures)
    write_json(args.json, figures)
    return 0 if figures["bit_equal"] and not twice and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
