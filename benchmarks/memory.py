"""How much memory does one step need, method by method?

``python -m benchmarks.memory --model opt-350m-shape --batch 16 --seq 256 --json F``. Each method runs in a
process of its own, with one thread; the figure is that process's peak of resident memory, with everything
that is imported and loaded. Weights are random, shapes exact. The task is classification, the optimizer
AdamW. The server of the methods that need one is another process, and not in the figure.

Keys: ``peak_bytes.<method>``, ``seconds.<method>`` and ``ratio.<method>_over_<one of ours>``. Methods that
are in the file already are kept unless they are named by ``--methods``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from benchmarks.harness import write_json

OURS = ("mobillm", "mobillm_int8", "mobillm_streamed", "mobillm_tail")
METHODS = ("inference", "full", "lora", "lora_checkpointing", "bitfit", "lst", *OURS)
SHAPES = ("opt-350m-shape", "opt-1.3b-shape", "smollm2", "llama-1.1b-shape")


@contextlib.contextmanager
def serving() -> Iterator[list[str]]:
    """Run a server for the time of the block; give its address and token."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        command = [sys.executable, "-m", "mobillm", "serve", "--listen", "127.0.0.1:0", "--threads", "1"]
        command += ["--json", "--data-dir", folder, "--token-file", str(place / "token")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                address = json.loads(process.stdout.readline())["address"]
                yield [address, (place / "token").read_text().strip()]
            finally:
                process.terminate()


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one method in a process of its own and return its figures."""
    command = [sys.executable, "-m", "benchmarks.memory_step"]
    command += [method, args.model, str(args.batch), str(args.seq)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        access = stack.enter_context(serving()) if method in OURS else []
        done = subprocess.run([*command, *access], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{method} ended with status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ratios(peaks: dict[str, int]) -> dict[str, float]:
    """Divide every other method's peak by ours."""
    return {
        f"ratio.{method}_over_{own}": round(peak / peaks[own], 3)
        for own in OURS
        if own in peaks
        for method, peak in peaks.items()
        if method != own
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the methods and write the figures after each of them."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument("--model", choices=SHAPES, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=None)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    known: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        known = json.loads(args.json.read_text())
        if any(known.get(key) != getattr(args, key) for key in ("model", "batch", "seq")):
            parser.error(f"{args.json} holds figures of another model, --batch or --seq; name another file")
    console = Console(stderr=True)
    kept = {method for method in METHODS if f"peak_bytes.{method}" in known}
    for method in args.methods or [method for method in METHODS if method not in kept]:
        with console.status(f"{args.model}: {method} ..."):
            figures = measure(method, args)
        known |= {f"peak_bytes.{method}": figures["peak_bytes"], f"seconds.{method}": figures["seconds"]}
        console.print(f"{method}: {figures['peak_bytes'] / 2**20:.0f} MiB, {figures['seconds']} s")
        peaks = {m: known[f"peak_bytes.{m}"] for m in METHODS if f"peak_bytes.{m}" in known}
        known = {key: value for key, value in known.items() if not key.startswith(("ratio.", "machine"))}
        known |= {"model": args.model, "batch": args.batch, "seq": args.seq} | ratios(peaks)
        write_json(args.json, known)
    print(json.dumps({key: value for key, value in known.items() if key != "machine"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
