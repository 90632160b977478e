"""A server in a process of its own that can be broken: patched from inside, limited, stopped, killed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from typing import Any

import torch

from mobillm.device.uplink import Uplink
from mobillm.options import Timeouts
from mobillm.server import serve
from mobillm.spec import SessionSpec
from mobillm.transport import Address
from tests.faults.neighbour import Neighbour
from tests.faults.scene import KEYS, SPEC, rest, send, undisturbed, uplink_to
from tests.faults.weights import require_same

__all__ = ["PATIENT", "ServerProcess", "free_port", "launched", "prepare", "spawn", "through"]

TIMEOUTS = Timeouts(keepalive=1.0, keepalive_reply=1.0, drain=1.0)
# Of a device whose server dies or sleeps.
PATIENT = Timeouts(
    connect=5.0,
    handshake=5.0,
    request=10.0,
    keepalive=1.0,
    keepalive_reply=1.0,
    drain=0.3,
    unacknowledged=3.0,
)

# What the first optimizer of a process loads takes seconds; here it is loaded once, for all processes.
importlib.import_module("torch._dynamo")

_context = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start what new processes are forked from; it has imported everything, so that they start at once."""
    _context.set_forkserver_preload([__name__])
    spawn(os.getpid).join()


def spawn(target: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """Start a process that calls a function of a module."""
    process = _context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _serve(directory: pathlib.Path, port: int, ready: Event) -> None:
    torch.set_num_threads(1)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    address = f"127.0.0.1:{port}"
    async with serve(address, keys=KEYS, directory=directory, timeouts=TIMEOUTS):
        ready.set()
        await over.wait()


def _main(directory: pathlib.Path, port: int, code: str, ready: Event) -> None:
    """Run the code of the row, then the server, which ends in order on SIGTERM."""
    log = os.open(directory.with_name(directory.name + ".stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.close(log)
    try:
        exec(code, {"os": os, "signal": signal})
        asyncio.run(_serve(directory, port, ready))
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        raise


class ServerProcess:
    """A server on a port that stays the same over restarts.

    Args:
        directory: of the server's files.
        code: run in the process before the server starts.

    Attributes:
        address: where it listens.
        stderr: file with what it has logged, over all its lives.

    """

    def __init__(self, directory: pathlib.Path, code: str = "") -> None:
        self.directory = directory
        self.address = Address("127.0.0.1", free_port())
        directory.mkdir(parents=True, exist_ok=True)
        self.stderr = directory.with_name(directory.name + ".stderr")
        self._process: ForkServerProcess | None = None
        self.start(code)

    @property
    def process(self) -> ForkServerProcess:
        """The process that runs now."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Number of the process that runs now."""
        assert self.process.pid is not None
        return self.process.pid

    def start(self, code: str = "") -> None:
        """Start it and wait until it listens."""
        ready = _context.Event()
        self._process = spawn(_main, self.directory, self.address.port, code, ready)
        assert ready.wait(20.0), f"the server did not start:\n{self.log()}"

    def log(self) -> str:
        """Return what it has logged."""
        return self.stderr.read_text() if self.stderr.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the end; return the exit status."""
        self.process.join(seconds)
        status = self.process.exitcode
        assert status is not None, "the server still runs"
        return status

    def kill(self) -> None:
        """End it without a warning; can be called more than once."""
        self.process.kill()
        self.wait()

    def rss(self) -> int:
        """Return the resident bytes of the process."""
        pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def files(self) -> int:
        """Return how many files and sockets the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextlib.contextmanager
def launched(directory: pathlib.Path, code: str = "") -> Iterator[ServerProcess]:
    """Run a server process for the time of a ``with`` block; it is killed at the end."""
    server = ServerProcess(directory, code)
    try:
        yield server
    finally:
        server.kill()
        server.process.close()


async def through(server: ServerProcess, disturb: Callable[[], None], what: SessionSpec = SPEC) -> Uplink:
    """Train a session while something is done to its server after the third batch."""
    uplink = uplink_to(server.address, what, timeouts=PATIENT, patience=60.0)
    await uplink.start()
    async with Neighbour(server.address, latency=None):
        await send(uplink, 1, 3)
        await asyncio.to_thread(disturb)
        assert what.batches is not None
        await send(uplink, 4, what.batches)
        require_same(await rest(uplink), await undisturbed(what))
    return uplink
