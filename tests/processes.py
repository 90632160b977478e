"""A server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["TOKEN", "python", "server_process"]

TOKEN = "open sesame"
ROOT = pathlib.Path(__file__).parent.parent

_SERVER = """
import asyncio, pathlib, sys
import torch
import mobillm
from mobillm.options import Timeouts
from mobillm.protocol import derive_key

async def main() -> None:
    torch.set_num_threads(1)
    async with mobillm.serve(
        "127.0.0.1:0", keys={"default": derive_key(sys.argv[1])}, directory=pathlib.Path(sys.argv[2]),
        timeouts=Timeouts(drain=0.5),
    ) as server:
        print(server.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def python(code: str, *arguments: str, bound: float = 60.0) -> str:
    """Run code in another interpreter, with warnings as errors; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=bound,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def server_process(directory: pathlib.Path, *, kill: bool = False) -> Iterator[str]:
    """Yield the address of a server that stops in order at the end, or is killed without a warning."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, TOKEN, str(directory)],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("mobillm://"), "the server process did not start"
        yield address
        if not kill:
            process.stdin.close()
            assert process.wait(20.0) == 0
    finally:
        try:
            process.stdin.close()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
