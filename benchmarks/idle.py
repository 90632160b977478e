"""What does an idle connection cost the server?

``python -m benchmarks.idle --connections 1000``. Starts ``mobillm serve`` (uvloop, plain), logs devices
in, lets them rest and reads the server's resident memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import psutil
import uvloop
from rich.console import Console

from benchmarks.harness import write_json
from mobillm.options import Limits, Timeouts
from mobillm.transport import Connection, connect

__all__ = ["idle_bytes_per_connection"]

TOKEN = "idle"
TIMEOUTS = Timeouts(keepalive=None)
AT_ONCE = Limits().handshakes_per_host // 2
PAUSE = 1.0  # seconds until the server has settled


def idle_bytes_per_connection(connections: int) -> int:
    """Return by how many bytes an authenticated idle connection raises the server's resident memory."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it
    with tempfile.TemporaryDirectory() as folder:
        token = pathlib.Path(folder) / "token"
        token.write_text(f"default:{TOKEN}\n")
        token.chmod(0o600)
        command = [sys.executable, "-m", "mobillm", "serve", "--listen", "127.0.0.1:0"]
        options = ["--token-file", str(token), "--data-dir", folder, "--loop", "uvloop"]
        server = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[-1]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_measure(address, server.pid, connections))
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


async def _measure(address: str, pid: int, connections: int) -> int:
    process = psutil.Process(pid)
    async with contextlib.AsyncExitStack() as stack:
        await _log_in(address, AT_ONCE, stack)  # what the first ones load is no cost of theirs
        await asyncio.sleep(PAUSE)
        before = int(process.memory_info().rss)
        await _log_in(address, connections, stack)
        await asyncio.sleep(PAUSE)
        return round((int(process.memory_info().rss) - before) / connections)


async def _log_in(address: str, count: int, stack: contextlib.AsyncExitStack) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> Connection:
        async with slots:
            return await connect(address, token=TOKEN, timeouts=TIMEOUTS)

    for connection in await asyncio.gather(*(one() for _ in range(count))):
        stack.callback(connection.abort)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the key."""
    parser = argparse.ArgumentParser(prog="benchmarks.idle", description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    figures = {"idle_bytes_per_connection": idle_bytes_per_connection(args.connections)}
    Console().print_json(data=figures)
    write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
