"""What ``mobillm demo`` does: run the processes, show their progress, print the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import rich.box
import rich.table
from rich.console import Console

from ..device.progress import Progress
from ..errors import MobiLLMError
from ..transport.tokens import DEFAULT_TENANT, read_token_file
from .console import print_json
from .demo import EPOCHS
from .failure import DONE
from .progress import ProgressDisplay

__all__ = ["run_demo"]

START_SECONDS = 60
STOP_SECONDS = 30


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    console = Console(stderr=args.json)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mobillm-demo-") as folder:
        place = pathlib.Path(folder)
        _prepare(console, args.task)
        with _server(place) as (address, token):
            console.print(f"server: a process of its own, listening on {address}")
            result = _device(console, args, address, token, args.out or place / "side")
        with console.status("measuring what LoRA needs for one step, in a process of its own ..."):
            lora = _lora(args.task, result["longest"], args.limit)
            result |= {f"lora_{name}": value for name, value in lora.items()}
    result["seconds"] = time.monotonic() - start
    if args.json:
        print_json(result)
    else:
        _show(console, args.task, result)
    return DONE


def _prepare(console: Console, task: str) -> None:
    """Fetch the model and the data, and dequantize the model once."""
    with console.status("fetching SmolLM2-135M and the data (first run only) ..."):
        # Torch takes seconds to import; by now the person sees why.
        from ..nn.cache import cache_directory
        from ..nn.gguf import dequantized_directory
        from ..nn.models import resolve_model
        from .demo_data import load_messages

        if task == "classification":
            load_messages(cache_directory())
        dequantized_directory(pathlib.Path(resolve_model("smollm2")))
    console.print(f"model and data are in {cache_directory()}")


@contextlib.contextmanager
def _server(place: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Run ``mobillm serve`` for the time of the block; give its address and token."""
    command = [
        sys.executable,
        "-m",
        "mobillm",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "1",
        "--json",
    ]
    command += ["--data-dir", str(place / "server"), "--token-file", str(place / "token")]
    with open(place / "server.log", "w+b") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None  # stdout=PIPE
            line = process.stdout.readline()
            if not line:
                process.wait(START_SECONDS)
                log.seek(0)
                raise MobiLLMError(f"the server did not start: {log.read().decode().strip()}")
            yield json.loads(line)["address"], read_token_file(place / "token")[DEFAULT_TENANT]
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _device(
    console: Console, args: argparse.Namespace, address: str, token: str, output: pathlib.Path
) -> dict[str, Any]:
    """Run the device process and show its progress; return its result."""
    command = [sys.executable, "-m", "mobillm.cli.demo_device", "--server", address, "--token", token]
    command += ["--task", args.task, "--epochs", str(args.epochs or EPOCHS[args.task])]
    command += ["--taps", args.taps, "--output", str(output)]
    if args.limit is not None:
        command += ["--limit", str(args.limit)]
    if args.trace is not None:
        command += ["--trace", str(args.trace)]
    result: dict[str, Any] | None = None
    console.print("device: a process of its own, one thread; loading the model ...")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # stdout=PIPE
        try:
            with ProgressDisplay() as display:
                for line in process.stdout:
                    message = json.loads(line)
                    if "start" in message:
                        console.print(message["start"])
                    elif "progress" in message:
                        display.update(Progress(**message["progress"]))
                    else:
                        result = message["result"]
        except BaseException:
            process.terminate()
            raise
    if result is None:
        raise MobiLLMError(
            f"the device process failed with exit code {process.returncode}; its output is above"
        )
    return result


def _lora(task: str, length: int, limit: int | None) -> dict[str, Any]:
    batch = 32 if task == "classification" else 4
    batch = batch if limit is None else min(batch, limit)
    command = [sys.executable, "-W", "ignore", "-m", "mobillm.cli.demo_lora", "--task", task]
    command += ["--batch", str(batch), "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise MobiLLMError(f"the LoRA step failed: {reason}; install the extra mobillm[bench]")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _show(console: Console, task: str, result: dict[str, Any]) -> None:
    report = result["report"]
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="what came out")
    for column in ("", "here", "compared with"):
        table.add_column(column)
    if task == "classification":
        accuracy = report["evaluation"]["accuracy"]
        head = result["head_only"]["accuracy"]
        table.add_row(
            "held-out accuracy", f"{accuracy:.1%} side-tuned", f"{head:.1%} frozen model, trained head only"
        )
    else:
        table.add_row(
            "held-out perplexity", f"{result['after']:.2f} side-tuned", f"{result['before']:.2f} frozen model"
        )
    peak, lora = result["peak_bytes"], result["lora_peak_bytes"]
    table.add_row(
        "peak memory of the device",
        f"{peak / 2**20:.0f} MiB",
        f"{lora / 2**20:.0f} MiB for one LoRA step in {result['lora_dtype']}: {lora / peak:.1f}x",
    )
    sent, fp16 = report["bytes_sent"], report["bytes_fp16"]
    table.add_row("sent", f"{sent / 1e6:.1f} MB", f"{fp16 / 1e6:.1f} MB in fp16: {fp16 / sent:.1f}x")
    table.add_row(
        "overlap",
        f"{report['both_busy']:.0%} of {report['stream_seconds']:.0f} s of streaming, both computed",
        f"device {report['device_busy']:.0f} s, server {report['server_busy']:.0f} s of computing",
    )
    table.add_row(
        "wall time", f"{result['seconds']:.0f} s in all", f"{report['seconds']:.0f} s of it fine-tuning"
    )
    console.print(table)
    if task == "classification":
        console.print("three held-out messages, predicted on the device with the pulled side network:")
        for item in result["predictions"]:
            mark = "right" if item["label"] == item["truth"] else "wrong"
            console.print(
                f"  {item['label']} ({item['score']:.0%}, {mark}): {item['text']}",
                markup=False,
                highlight=False,
            )
    else:
        for name, key in (("frozen model", "text_before"), ("side-tuned", "text_after")):
            console.print(f"{name}: {result['prompt']}{result[key]}", markup=False, highlight=False)
