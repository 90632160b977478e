"""Does a server keep anything of sessions that are gone?

``python -m benchmarks.leak --rounds 10 --json F``. In each round devices train sessions, are killed and cut
off at random, and all sessions are deleted. Then, with nothing to do, the server tells the bytes that malloc
has given out, Python's allocated blocks, and its resident memory. What each session leaves behind grows with
the sessions; what caches hold does not. The server runs with the settings of malloc of
:mod:`benchmarks.soak`. The first half of the rounds is warm-up.

Keys: ``heap_bytes_per_session``, ``blocks_per_session`` and ``rss_bytes_per_session``, slopes over the
sessions, with ``.error`` (standard error); ``rounds``: the readings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
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

from benchmarks import soak
from benchmarks.harness import free_port, write_json
from mobillm.cli.arguments import at_least
from mobillm.cli.control import request
from mobillm.errors import MobiLLMError
from mobillm.protocol import derive_key

SPEC = dataclasses.replace(soak.SPEC, batches=4, epochs=1)
REST = 3.0  # seconds without sessions before memory is read
BOUND = 30.0  # seconds until all sessions are deleted
KILLS = 0.2  # part of the ticks in which a device is killed
STORMS = 0.03
# Of glibc 2.33 and later; "uordblks" and "hblkhd" are given out, from the heap and mapped.
_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Malloc(ctypes.Structure):
    """What mallinfo2 returns."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


def given_out() -> int:
    """Return the bytes that malloc has given out in this process."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Malloc
    found = library.mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)


def run_server(directory: pathlib.Path, port: int, ask: Any) -> None:
    """Serve until killed; answer each question on the pipe with a reading."""
    import torch

    from mobillm.server import serve

    def reading() -> dict[str, int]:
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        rss = pages * os.sysconf("SC_PAGE_SIZE")
        return {"heap": given_out(), "blocks": sys.getallocatedblocks(), "rss": rss}

    async def main() -> None:
        torch.set_num_threads(1)
        keys = {"default": derive_key(soak.TOKEN)}
        async with serve(f"127.0.0.1:{port}", keys=keys, directory=directory, timeouts=soak.TIMEOUTS):
            while True:
                await asyncio.sleep(0.1)
                if ask.poll():
                    ask.recv_bytes()
                    ask.send_bytes(json.dumps(reading()).encode())

    asyncio.run(main())


def delete_all(directory: pathlib.Path) -> int:
    """Delete all sessions; return how many there were."""
    listed, _ = request(directory, "list")
    for one in listed["sessions"]:
        with contextlib.suppress(MobiLLMError):  # it has just gone by itself
            request(directory, "delete", session=one["session"], force=True)
    return len(listed["sessions"])


async def play(port: int, directory: pathlib.Path, sessions: int, seed: int) -> int:
    """Train so many sessions, killing devices meanwhile; leave none behind. Return how many went through."""
    ledger, generator = soak.Ledger(), random.Random(seed)
    devices = [soak.Device(port, number, ledger) for number in range(soak.DEVICES)]
    for device in devices:
        device.start()
    try:
        while ledger.sessions < sessions:
            await asyncio.sleep(0.4)
            event = generator.random()
            if event < KILLS:
                device = generator.choice(devices)
                await device.kill()
                device.start()
            elif event < KILLS + STORMS:
                for device in devices:
                    device.cut()
    finally:
        for device in devices:
            await device.kill()
    deadline = time.monotonic() + BOUND
    while await asyncio.to_thread(delete_all, directory):
        if time.monotonic() > deadline:
            raise RuntimeError(f"sessions are still there {BOUND:g} s after their devices went")
        await asyncio.sleep(0.25)
    await asyncio.sleep(REST)
    return ledger.sessions


def slope(readings: Sequence[dict[str, int]], key: str) -> dict[str, float]:
    """Fit a line over the sessions of the second half; return the slope and its standard error."""
    fitted = readings[len(readings) // 2 :]
    x = np.array([float(one["sessions"]) for one in fitted])
    y = np.array([float(one[key]) for one in fitted])
    found, error = soak.line(x - x.mean(), y - y.mean(), 1)
    return {"slope": round(found, 3), "error": round(error, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Play the rounds, fit, print, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.leak", description=__doc__)
    parser.add_argument("--rounds", type=at_least(4), default=10, help="half of them are warm-up")
    parser.add_argument("--sessions", type=int, default=200, help="of each round")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    logging.getLogger("mobillm").setLevel(logging.ERROR)
    os.environ |= soak.ALLOCATOR  # of the server's process; this one has begun
    soak.SPEC, soak.BATCHES, soak.PACE = SPEC, SPEC.batches or 0, 0.0
    port, context = free_port(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mobillm.server"])
    ask, answer = context.Pipe()
    readings: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        directory = pathlib.Path(folder) / "server"
        process = context.Process(target=run_server, args=(directory, port, answer), daemon=True)
        process.start()
        try:
            done = 0
            for number in progress.track(range(args.rounds), description="rounds"):
                done += asyncio.run(play(port, directory, args.sessions, number))
                ask.send_bytes(b"?")
                readings.append({"sessions": done} | json.loads(ask.recv_bytes()))
        finally:
            process.kill()
            process.join()
    figures: dict[str, Any] = {"rounds": readings}
    for key, name in (("heap", "heap_bytes"), ("blocks", "blocks"), ("rss", "rss_bytes")):
        fitted = slope(readings, key)
        figures |= {f"{name}_per_session": fitted["slope"], f"{name}_per_session.error": fitted["error"]}
    Console().print_json(data=figures)
    write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
