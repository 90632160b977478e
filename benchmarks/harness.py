"""What all benchmarks share: the machine, results as JSON, and how they end early."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

__all__ = [
    "INTERRUPTED",
    "free_port",
    "interruptible",
    "json_file",
    "machine",
    "memory_bytes",
    "peak_bytes",
    "write_json",
]

INTERRUPTED = 130
# Instruction sets that figures depend on, as /proc/cpuinfo calls them; the widest one that is there is named.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def interruptible(advice: str = "") -> Iterator[None]:
    """End the program with one line on SIGINT, and on SIGTERM alike, once what it started has been ended.

    Args:
        advice: what the line says after "interrupted".

    Raises:
        SystemExit: with the status 130; it was interrupted.

    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted{advice}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def machine() -> dict[str, Any]:
    """Describe the machine that the figures are from."""
    model, widest = platform.processor(), None
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        names = [line for line in text.splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
        words = set(text.split())
        widest = next((name for name in INSTRUCTIONS if name in words), None)
    return {
        "cpu": model,
        "instructions": widest,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def peak_bytes() -> int:
    """Return this process's peak of resident memory (VmHWM counts from its exec on)."""
    return memory_bytes("VmHWM")


def memory_bytes(field: str, process: int | str = "self") -> int:
    """Return a size of a process, as /proc/PID/status names it.

    Raises:
        OSError: there is no such process.
        RuntimeError: it has no such size; it has ended, and nobody has waited for it.

    """
    for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{process}/status holds no {field}")


def json_file(text: str) -> pathlib.Path:
    """Read where figures go, as an argument.

    Raises:
        argparse.ArgumentTypeError: nothing can be written there, which is better known before the measuring.

    """
    path = pathlib.Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; give a file in a directory of yours")
    return path


def write_json(path: pathlib.Path | None, figures: dict[str, Any]) -> None:
    """Write figures with the machine they are from; None writes nothing."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
