"""How close does a connection come to what the event loop and the kernel can move, and to others?

``python -m benchmarks.transport --json transport.json``. Sender and receiver are two processes, one core
each, over TCP on loopback; the congestion control is set (``--congestion``). Payloads are distinct and 64
MiB in all, so that they come from memory. Each is sent as one tensor, in DATA frames with both checksums
on; beside it, in turn, a bare ``BufferedProtocol`` loop (the ceiling: no frames, no checksums), the same
with one CRC32C of each payload on both sides, websockets (no compression) and grpcio (no serialization).
Each size has processes of its own, since payloads that were freed before leave an allocator warmer or
colder. Medians of rounds.

Keys: ``table`` has everything; ``ratio_to_ceiling``, ``ratio_to_websockets`` and ``ratio_to_grpc`` are the
worst cases over 256 KiB and more on uvloop, plain (``ratio_to_ceiling_with_crc`` likewise);
``overhead_bytes_ratio`` is bytes on the wire for each payload byte at 256 KiB, ``copies_per_payload`` what
user space copies of them on both sides together; ``idle_bytes_per_connection`` see :mod:`benchmarks.idle`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.copies import copies_per_payload
from benchmarks.harness import write_json
from benchmarks.idle import idle_bytes_per_connection
from benchmarks.lanes import Lane, Run, congestion, isolate
from benchmarks.stacks import LOOPS, STACKS

KIB = 1024
SIZES = (64 * KIB, 256 * KIB, 1024 * KIB, 8192 * KIB)
SECURITIES = ("plain", "tls")
DEFAULT = ("uvloop", "plain")  # of ``mobillm serve``
KEYS = {
    "ratio_to_ceiling": "ceiling",
    "ratio_to_ceiling_with_crc": "ceiling+crc",
    "ratio_to_websockets": "websockets",
    "ratio_to_grpc": "grpcio",
}
WARM_UP = 16 * 2**20  # bytes
IDLE = 1000  # connections


def race(lanes: dict[str, Lane], size: int, rounds: int, seconds: float) -> dict[str, list[Run]]:
    """Run all stacks in turn, so that they meet the same neighbours; each for about ``seconds``."""
    counts = {}
    for name, lane in lanes.items():
        few = max(2, WARM_UP // size)
        lane.run(size, few)
        counts[name] = max(2, round(seconds * lane.run(size, few).rate / size))
    runs: dict[str, list[Run]] = {name: [] for name in lanes}
    for _ in range(rounds):
        for name, lane in lanes.items():
            runs[name].append(lane.run(size, counts[name]))
    return runs


def ratio(own: Iterable[Run], other: Iterable[Run]) -> float:
    """Return the median over rounds of how many times faster the first is."""
    return statistics.median(a.rate / b.rate for a, b in zip(own, other, strict=True))


def rows_of(loop: str, security: str, size: int, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Return one row of figures for each stack."""
    rows = []
    for name, found in runs.items():
        rates = [run.rate / 1e9 for run in found]
        row = {
            "loop": loop,
            "security": security,
            "size": size,
            "stack": name,
            "gb_per_s": round(statistics.median(rates), 3),
            "lowest": round(min(rates), 3),
            "highest": round(max(rates), 3),
            "sender_s_per_gb": round(statistics.median(run.sender for run in found) * 1e9, 3),
            "receiver_s_per_gb": round(statistics.median(run.receiver for run in found) * 1e9, 3),
            "mobillm_ratio": round(ratio(runs["mobillm"], found), 3),
        }
        if found[0].overhead is not None:
            row["overhead_bytes_ratio"] = round(found[0].overhead, 6)
        rows.append(row)
    return rows


def table_of(rows: Sequence[dict[str, Any]], loop: str, security: str) -> Table:
    """Return the table of one loop and security: GB/s and, in brackets, how many times faster ours is."""
    table = Table(title=f"{loop}, {security}: GB/s (ours / it)")
    table.add_column("payload")
    for name in STACKS:
        table.add_column(name)
    for size in dict.fromkeys(row["size"] for row in rows):
        cells = [
            f"{row['gb_per_s']:.2f} ({row['mobillm_ratio']:.2f})"
            for row in rows
            if (row["loop"], row["security"], row["size"]) == (loop, security, size)
        ]
        if cells:
            table.add_row(f"{size // KIB} KiB", *cells)
    return table


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys, from the rows of the default loop without TLS."""
    default = [row for row in rows if (row["loop"], row["security"]) == DEFAULT]
    figures = {
        key: min(row["mobillm_ratio"] for row in default if row["stack"] == name and row["size"] >= SIZES[1])
        for key, name in KEYS.items()
    }
    overheads = {row["size"]: row["overhead_bytes_ratio"] for row in default if row["stack"] == "mobillm"}
    return figures | {"overhead_bytes_ratio": overheads[SIZES[1]]}


def make_certificates(directory: pathlib.Path) -> None:
    """Make what both ends need for TLS."""
    command = [sys.executable, "-m", "mobillm", "certs", "--out", str(directory), "--host", "localhost"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Measure all loops, securities and sizes; return the rows."""
    cores = sorted(os.sched_getaffinity(0))
    pair = (cores[0], cores[-1])
    groups = [(loop, security) for loop in args.loops for security in args.securities]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        tls = pathlib.Path(folder) / "tls"
        make_certificates(tls)
        task = progress.add_task("", total=len(groups) * len(SIZES))
        for loop, security in groups:
            for size in SIZES:
                progress.update(task, description=f"{loop}, {security}, {size // KIB} KiB")
                with contextlib.ExitStack() as stack:
                    lanes = {
                        name: stack.enter_context(Lane(name, loop, tls if security == "tls" else None, pair))
                        for name in STACKS
                    }
                    runs = race(lanes, size, args.rounds, args.seconds)
                rows += rows_of(loop, security, size, runs)
                progress.advance(task)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables and write the keys."""
    parser = argparse.ArgumentParser(prog="benchmarks.transport", description=__doc__)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=["uvloop", "asyncio"])
    parser.add_argument("--securities", nargs="+", choices=SECURITIES, default=SECURITIES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each run (default: %(default)s)")
    parser.add_argument("--congestion", default="reno", help="of all sockets (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    console = Console()
    if not isolate(args.congestion):
        console.print("no namespace (needs root): the system's congestion control is used", style="yellow")
    rows = measure(args, Console(stderr=True))
    for loop in args.loops:
        for security in args.securities:
            console.print(table_of(rows, loop, security))
    figures: dict[str, Any] = {"congestion_control": congestion(), "crc32c": "on, header and body"}
    if DEFAULT[0] in args.loops and DEFAULT[1] in args.securities:
        figures |= summary(rows)
    figures["copies_per_payload"] = {loop: copies_per_payload(LOOPS[loop], SIZES[1]) for loop in args.loops}
    figures["idle_bytes_per_connection"] = idle_bytes_per_connection(IDLE)
    console.print_json(data=figures)
    write_json(args.json, figures | {"table": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
