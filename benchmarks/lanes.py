"""Two processes that move payloads one way, and a network of their own to do it in."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import NamedTuple, Self

import psutil

__all__ = ["Lane", "Run", "congestion", "isolate"]

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
CONGESTION = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")


def isolate(name: str) -> bool:
    """Put this process and its later children into a network namespace with a loopback of its own.

    So the congestion control of every socket in it can be chosen beforehand, also of those whose library
    hands out no socket (grpcio). A socket option would come too late: BBR's pacing stays on when a socket
    changes to another one.

    Args:
        name: congestion control, one of ``/proc/sys/net/ipv4/tcp_available_congestion_control``.

    Returns:
        whether it was possible; it needs root.

    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))
    CONGESTION.write_text(name)
    return True


def congestion() -> str:
    """Return the congestion control of new sockets."""
    return CONGESTION.read_text().strip()


class Run(NamedTuple):
    """One job.

    Attributes:
        rate: payload bytes a second.
        sender, receiver: CPU seconds of each process for each payload byte.
        overhead: bytes handed to the transport for each payload byte; None where nobody counts.

    """

    rate: float
    sender: float
    receiver: float
    overhead: float | None


class Lane:
    """A receiver and a sender of one stack, each pinned to a core; use it as a context manager.

    Args:
        stack: one of :data:`benchmarks.stacks.STACKS`.
        loop: event loop of both ends.
        tls: directory of the certificates; None speaks plain TCP.
        cores: of the sender and of the receiver.

    """

    def __init__(self, stack: str, loop: str, tls: pathlib.Path | None, cores: tuple[int, int]) -> None:
        options = ["--loop", loop, *([] if tls is None else ["--tls", str(tls)])]
        self._receiver = _start(["receive", stack, *options, "--core", str(cores[1])])
        port = _read(self._receiver).strip()
        self._sender = _start(["send", stack, *options, "--core", str(cores[0]), "--port", port])
        _read(self._sender)
        self._usage = psutil.Process(self._receiver.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._sender, self._receiver):
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def run(self, size: int, count: int) -> Run:
        """Move so many payloads of a size."""
        before = self._receiver_seconds()
        assert self._sender.stdin is not None
        self._sender.stdin.write(json.dumps([size, count]) + "\n")
        self._sender.stdin.flush()
        done = json.loads(_read(self._sender))
        total = size * count
        return Run(
            rate=total / done["seconds"],
            sender=done["cpu"] / total,
            receiver=(self._receiver_seconds() - before) / total,
            overhead=None if done["sent"] is None else done["sent"] / total,
        )

    def _receiver_seconds(self) -> float:
        times = self._usage.cpu_times()
        return float(times.user + times.system)


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    # Others' warnings when they are closed are not our figures.
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stacks", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "grpcio" in arguments else None,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
    )


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return line
